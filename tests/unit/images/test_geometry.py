"""Sizes of pictures and of results."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.images.geometry import WHOLE, Fit, Framing, Geometry, Size, View, WantedSize, center_crop, is_shrunk

GEOMETRY = Geometry(native_area=256 * 256, token_side=16)
SIZES = st.builds(Size, st.integers(1, 9000), st.integers(1, 9000))


@pytest.mark.parametrize(
    "text", ["0x0", "0x8", "1024", "1024X768", "-1x5", "1024x768 ", "٣x٣", "9999999x1", "auto", ""]
)
def test_texts_that_are_no_size_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        Size.parse(text)


def test_size_reads_what_it_writes() -> None:
    assert Size.parse("1024x768") == Size(1024, 768)
    assert str(Size(1024, 768)) == "1024x768"
    assert Size(100, 400).aspect_ratio == Size(400, 100).aspect_ratio == 4


def test_a_size_has_at_least_one_pixel() -> None:
    with pytest.raises(ValueError, match="1x1"):
        Size(0, 5)


@given(SIZES, SIZES, st.one_of(st.none(), SIZES), st.sampled_from(["cover", "free"]))
def test_with_slots_all_grids_are_centred_alike(picture: Size, further: Size, size: Size | None, fit: Fit) -> None:
    """No reference lies half a token beside the output, as one with an odd number of tokens would: all are even."""
    geometry = Geometry(native_area=1024 * 1024, token_side=16, has_slots=True)
    framing = geometry.frame(picture, size, fit)
    if fit == "cover":
        assert framing.view.size == framing.output
    for grid in (framing.output, framing.view.size, geometry.view(further).size):
        assert grid.width % 32 == grid.height % 32 == 0


def test_auto_keeps_the_aspect_ratio_at_the_native_area() -> None:
    geometry = Geometry(native_area=1024 * 1024, token_side=16)
    assert geometry.auto(Size(500, 500)) == Size(1024, 1024)
    wide = geometry.auto(Size(1600, 900))
    assert wide.width % 32 == wide.height % 32 == 0
    assert abs(wide.width / wide.height - 16 / 9) < 0.05
    assert min(geometry.auto(Size(100_000, 1)).height, geometry.auto(Size(1, 100_000)).width) > 0


def test_cover_is_the_next_multiple() -> None:
    assert Geometry(1024, 16).cover(Size(1, 33)) == Size(16, 48)
    assert Geometry(1024, 16).cover(Size(32, 48)) == Size(32, 48)


class TestFrame:
    @pytest.mark.parametrize(
        ("size", "result"), [(None, Size(352, 192)), ("original", Size(333, 167))], ids=["auto", "original"]
    )
    def test_without_a_size_in_pixels_all_is_of_the_pictures_own_aspect_ratio(
        self, size: WantedSize, result: Size
    ) -> None:
        auto = Size(352, 192)
        assert GEOMETRY.frame(Size(333, 167), size, "cover") == Framing(View(WHOLE, auto, auto), auto, result)

    def test_cover_reads_the_middle_of_the_picture_on_the_grid_of_the_output(self) -> None:
        framing = GEOMETRY.frame(Size(200, 75), Size(100, 75), "cover")
        grid = Size(112, 80)
        assert framing == Framing(View((0.25, 0.0, 0.75, 1.0), grid, grid), grid, Size(100, 75))
        tall = GEOMETRY.frame(Size(100, 400), Size(96, 96), "cover")
        assert tall.view.crop == (0.0, 0.375, 1.0, 0.625)

    def test_free_reads_all_of_the_picture_at_the_native_area(self) -> None:
        framing = GEOMETRY.frame(Size(512, 512), Size(100, 75), "free")
        native = Size(256, 256)
        assert framing == Framing(View(WHOLE, native, native), Size(112, 80), Size(100, 75))

    def test_the_text_encoder_never_reads_more_than_the_native_area(self) -> None:
        framing = GEOMETRY.frame(Size(512, 512), Size(512, 500), "cover")
        assert framing.view.size == framing.output == Size(512, 512)
        assert framing.view.text_size == Size(256, 256)

    def test_a_text_area_is_that_of_what_the_text_encoder_reads(self) -> None:
        geometry = Geometry(256 * 256, 16, text_area=128 * 128)
        assert geometry.view(Size(200, 100)) == View(WHOLE, Size(352, 192), Size(192, 96))
        # Never more than the transformer reads.
        small = geometry.frame(Size(200, 100), Size(64, 32), "cover")
        assert (small.view.size, small.view.text_size) == (Size(64, 32), Size(64, 32))

    @given(picture=SIZES, size=SIZES)
    def test_cover_gives_reference_and_output_one_grid(self, picture: Size, size: Size) -> None:
        framing = GEOMETRY.frame(picture, size, "cover")
        assert framing.view.size == framing.output == GEOMETRY.cover(size)
        assert framing.view.text_size.pixels <= framing.view.size.pixels
        assert framing.result == size


@given(picture=SIZES, aspect=SIZES)
def test_a_crop_is_the_largest_part_in_the_middle_with_the_aspect_ratio(picture: Size, aspect: Size) -> None:
    left, top, right, bottom = center_crop(picture, aspect)
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    assert (left, right) == (0, 1) or (top, bottom) == (0, 1)
    assert left + right == pytest.approx(1)
    assert top + bottom == pytest.approx(1)
    width, height = (right - left) * picture.width, (bottom - top) * picture.height
    assert width / height == pytest.approx(aspect.width / aspect.height)


@given(size=SIZES, factor=st.integers(1, 9))
def test_a_crop_to_the_pictures_own_aspect_ratio_is_all_of_it(size: Size, factor: int) -> None:
    assert center_crop(Size(size.width * factor, size.height * factor), size) == WHOLE
    assert center_crop(size, Size(size.width * factor, size.height * factor)) == WHOLE


@given(size=SIZES, draft=st.sampled_from([1, 2, 4, 8]), scale=st.floats(0.01, 1))
def test_a_picture_shrunk_twice_with_rounding_is_known_as_shrunk(size: Size, draft: int, scale: float) -> None:
    first = Size(-(-size.width // draft), -(-size.height // draft))
    second = Size(max(1, round(first.width * scale)), max(1, round(first.height * scale)))
    assert is_shrunk(second, size)
    assert is_shrunk(size, size)


@pytest.mark.parametrize("copy", [Size(300, 400), Size(401, 300), Size(400, 301), Size(200, 100), Size(100, 100)])
def test_what_is_larger_or_of_another_aspect_ratio_is_not_shrunk(copy: Size) -> None:
    assert not is_shrunk(copy, Size(400, 300))
