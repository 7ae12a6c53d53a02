"""Results as picture files."""

import io

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from serve_app.errors import InvalidInput
from serve_app.images.colour import srgb_profile
from serve_app.images.encoding import OutputFormat, check_encodable, encode
from serve_app.images.geometry import Size
from serve_app.images.pixels import lay_on_white
from serve_app.settings import LimitSettings
from tests.pictures import photo

LIMITS = LimitSettings()


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_lossless_at_100(output_format: OutputFormat) -> None:
    data = encode(photo(), output_format, 100)
    image = PIL.Image.open(io.BytesIO(data))
    assert image.format == output_format.upper()
    np.testing.assert_array_equal(np.asarray(image), photo())


def transparent_photo() -> NDArray[np.uint8]:
    """Return the photo, in its left half with an alpha of all values, and noise where that is 0."""
    pixels = np.dstack([photo(), np.arange(64 * 48, dtype=np.uint32).astype(np.uint8).reshape(48, 64)])
    pixels[:, 32:, 3] = 255
    pixels[::3, :32, 3] = 0
    return pixels


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_lossless_keeps_alpha_and_the_colours_below_it(output_format: OutputFormat) -> None:
    image = PIL.Image.open(io.BytesIO(encode(transparent_photo(), output_format, 100)))
    assert image.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(image), transparent_photo())


def test_lossy_webp_keeps_alpha() -> None:
    image = PIL.Image.open(io.BytesIO(encode(transparent_photo(), "webp", 80)))
    np.testing.assert_array_equal(np.asarray(image)[:, :, 3], transparent_photo()[:, :, 3])


@pytest.mark.parametrize("compression", [50, 100])
def test_jpeg_is_laid_on_white(compression: int) -> None:
    laid = encode(lay_on_white(transparent_photo()), "jpeg", compression)
    assert encode(transparent_photo(), "jpeg", compression) == laid
    clear = PIL.Image.open(io.BytesIO(encode(np.zeros((16, 16, 4), np.uint8), "jpeg", compression)))
    assert np.asarray(clear).min() >= 250


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_less_quality_makes_smaller_files(output_format: OutputFormat) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = [len(encode(noise, output_format, quality)) for quality in (0, 30, 60, 95, 100)]
    assert sizes == sorted(set(sizes))


def test_jpeg_at_100_keeps_the_colours() -> None:
    pixels = np.asarray(PIL.Image.open(io.BytesIO(encode(photo(), "jpeg", 100))))
    assert np.abs(pixels.astype(int) - photo()).max() <= 5


def test_read_only_pixels_are_encoded() -> None:
    pixels = photo()
    pixels.flags.writeable = False
    assert encode(pixels, "png", 100).startswith(b"\x89PNG")


def test_every_file_says_that_it_is_srgb() -> None:
    for output_format in ("jpeg", "webp"):
        for compression in (50, 100):
            image = PIL.Image.open(io.BytesIO(encode(photo(), output_format, compression)))
            assert image.info["icc_profile"] == srgb_profile()
    assert PIL.Image.open(io.BytesIO(encode(photo(), "png", 100))).info["srgb"] == 0


@pytest.mark.parametrize(("output_format", "most"), [("webp", 16_383), ("jpeg", 65_500)])
def test_a_side_longer_than_the_format_can_have_is_refused(output_format: OutputFormat, most: int) -> None:
    for width, height in ((most, 1), (1, most)):
        check_encodable(Size(width, height), output_format)
        assert encode(np.zeros((height, width, 3), np.uint8), output_format, 50)
    with pytest.raises(InvalidInput, match=f"at most {most} pixels a side") as caught:
        check_encodable(Size(1, most + 1), output_format)
    assert caught.value.param == "size"
    with pytest.raises((OSError, ValueError)):
        encode(np.zeros((most + 1, 1, 3), np.uint8), output_format, 50)
    check_encodable(Size(1, most + 1), "png")
