"""Masks: which pixels a result has from its input, and how the others fade into them."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.images.geometry import Size, center_crop
from serve_app.images.masks import finish, mask_from_pil, resize_mask
from serve_app.images.pixels import lay_on_white
from tests.scenes import difference, scene

MADE, KEPT = scene(1, 90, 60), scene(2, 90, 60)


def drawn(left: int, top: int, right: int, bottom: int, width: int = 90, height: int = 60) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def with_alpha(picture: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """Return a picture of which a third is clear, a third is opaque, and the rest between."""
    alpha = np.random.default_rng(seed).integers(-255, 510, picture.shape[:2]).clip(0, 255)
    return np.dstack([picture, alpha.astype(np.uint8)])


class TestReading:
    def test_white_is_edited_where_nothing_is_transparent(self) -> None:
        grey = PIL.Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
        for image in (grey, grey.convert("RGB"), grey.convert("RGBA"), grey.convert("P")):
            assert mask_from_pil(image).tolist() == [[False, False, True, True]]

    def test_transparent_is_edited_whatever_the_colours_are(self) -> None:
        levels = np.array([[255, 255], [0, 127], [0, 128], [255, 0]], np.uint8)[None]
        assert mask_from_pil(PIL.Image.fromarray(levels, "LA")).tolist() == [[False, True, False, True]]


class TestResizing:
    def test_a_mask_of_its_size_is_not_copied(self) -> None:
        mask = drawn(3, 4, 5, 6)
        assert resize_mask(mask, Size(90, 60)) is mask

    @given(x=st.integers(0, 89), y=st.integers(0, 59), size=st.builds(Size, st.integers(1, 200), st.integers(1, 200)))
    def test_not_a_single_pixel_is_lost_or_gained(self, x: int, y: int, size: Size) -> None:
        mask = drawn(x, y, x + 1, y + 1)
        resized = resize_mask(mask, size)
        assert resized.shape == (size.height, size.width)
        rows, columns = np.nonzero(resized)
        # Pixels of the result that lie on it: never further away than by a half of the larger pixel.
        for places, place, share in ((columns, x, 90 / size.width), (rows, y, 60 / size.height)):
            if share >= 1:
                assert len(set(places)) == 1
            assert (abs((places + 0.5) * share - (place + 0.5)) <= max(1, share) / 2 + 1e-6).all()

    def test_enlarged_it_is_the_nearest_pixels(self) -> None:
        mask = np.random.default_rng(1).random((5, 7)) < 0.5
        for size in (Size(7, 5), Size(14, 10), Size(21, 15), Size(50, 33)):
            wanted = PIL.Image.fromarray(mask).resize((size.width, size.height), PIL.Image.Resampling.NEAREST)
            np.testing.assert_array_equal(resize_mask(mask, size), np.asarray(wanted))

    def test_any_part_of_any_mask_has_any_size(self) -> None:
        mask = drawn(0, 0, 1, 8, 1, 8)
        assert resize_mask(mask, Size(128, 16), center_crop(Size(1, 8), Size(128, 16))).all()
        assert resize_mask(mask, Size(1, 1), (0.0, 0.49, 1.0, 0.51)).all()

    def test_a_single_pixel_of_a_large_mask_counts(self) -> None:
        assert resize_mask(drawn(1500, 900, 1501, 901, 4000, 3000), Size(16, 16)).sum() == 1

    def test_only_the_part_that_is_shown_counts(self) -> None:
        crop = center_crop(Size(90, 60), Size(60, 60))
        for hidden in (drawn(0, 0, 15, 60), drawn(75, 0, 90, 60)):
            assert not resize_mask(hidden, Size(32, 32), crop).any()
            assert not resize_mask(hidden.T, Size(32, 32), center_crop(Size(60, 90), Size(60, 60))).any()
        assert resize_mask(drawn(0, 0, 16, 60), Size(60, 60), crop).sum() == 60
        assert resize_mask(drawn(15, 0, 75, 60), Size(32, 32), crop).all()


class TestFinish:
    @pytest.mark.parametrize("kept", [KEPT, with_alpha(KEPT)], ids=["RGB", "RGBA"])
    @given(st.integers(0, 80), st.integers(0, 50), st.integers(1, 90), st.integers(1, 60))
    def test_outside_the_mask_are_the_inputs_own_bytes(
        self, kept: NDArray[np.uint8], left: int, top: int, width: int, height: int
    ) -> None:
        mask = drawn(left, top, left + width, top + height)
        result = finish(MADE, kept, mask)
        channels = result.shape[2]
        np.testing.assert_array_equal(result[~mask], kept[~mask][:, :channels])
        # Without its alpha only if that is idle.
        assert channels == kept.shape[2] or (kept[~mask][:, 3] == 255).all()

    def test_a_full_mask_is_none(self) -> None:
        np.testing.assert_array_equal(finish(MADE, KEPT, np.ones((60, 90), bool)), MADE)
        assert finish(MADE, KEPT) is MADE

    def test_it_fades_inside_the_mask_only_and_not_at_the_pictures_border(self) -> None:
        size = 5 * 256
        made, kept = np.full((size, size, 3), 200, np.uint8), np.zeros((size, size, 3), np.uint8)
        result = finish(made, kept, drawn(600, 0, size, size, size, size))
        assert result[7, 598:607, 0].tolist() == [0, 0, 40, 80, 120, 160, 200, 200, 200]
        assert (result[:, 604:] == 200).all()

    def test_a_narrow_mask_shows_the_edit_in_its_middle(self) -> None:
        size = 8 * 256
        made, kept = np.full((size, size, 3), 200, np.uint8), np.zeros((size, size, 3), np.uint8)
        assert finish(made, kept, drawn(600, 600, 605, 900, size, size))[700, 599:606, 0].tolist() == [
            *(0, 67, 133, 200, 133, 67, 0)
        ]
        assert finish(made, kept, drawn(600, 600, 601, 601, size, size)).max() == 200

    def test_without_a_mask_a_result_is_as_transparent_as_its_picture(self) -> None:
        kept = with_alpha(KEPT)
        made = lay_on_white(with_alpha(MADE)) // 2 + lay_on_white(kept) // 2
        result = finish(made, kept)
        np.testing.assert_array_equal(result[:, :, 3], kept[:, :, 3])
        opaque = kept[:, :, 3] == 255
        np.testing.assert_array_equal(result[opaque, :3], made[opaque])

    def test_laid_on_white_it_is_what_the_model_made(self) -> None:
        kept = with_alpha(KEPT)
        # What a picture of this alpha can look like on white.
        made = lay_on_white(np.dstack([MADE, kept[:, :, 3]]))
        result = finish(made, kept)
        assert difference(lay_on_white(result), made) <= 1
        visible = kept[:, :, 3] > 64
        assert difference(result[visible, :3], MADE[visible]) <= 4
        # Nothing on white can be darker than white through this alpha.
        assert (finish(np.zeros_like(MADE), kept)[kept[:, :, 3] > 0, :3] == 0).all()

    def test_inside_a_mask_it_is_opaque(self) -> None:
        kept = with_alpha(KEPT)
        mask = drawn(20, 10, 70, 50)
        result = finish(MADE, kept, mask)
        np.testing.assert_array_equal(result[mask], np.dstack([MADE, np.full((60, 90), 255, np.uint8)])[mask])
        np.testing.assert_array_equal(finish(MADE, kept, np.ones((60, 90), bool)), MADE)

    def test_on_white_it_fades_evenly_whatever_the_alpha_is(self) -> None:
        size = 4 * 256
        made, clear = np.full((size, size, 3), 55, np.uint8), np.zeros((size, size, 4), np.uint8)
        result = finish(made, clear, drawn(600, 0, size, size, size, size))
        assert result[5, 599:605, 3].tolist() == [0, 64, 128, 191, 255, 255]
        assert np.abs(lay_on_white(result)[5, 599:605, 0].astype(int) - [255, 205, 155, 105, 55, 55]).max() <= 1
