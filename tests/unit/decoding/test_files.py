"""Untrusted picture files in, pixels out."""

import subprocess
import sys
from typing import Any

import numpy as np
import PIL.Image
import pytest

from serve_app.decoding.files import decode
from serve_app.errors import InvalidInput
from serve_app.settings import LimitSettings
from tests.pictures import file_of, one_bit_png, photo

LIMITS = LimitSettings()


def refusal(data: bytes, index: int = 0, limits: LimitSettings = LIMITS) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode(data, index, limits)
    assert caught.value.param == "images"
    assert " at 0x" not in caught.value.message
    assert "BytesIO" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_decode_to_the_same_pixels(file_format: str) -> None:
    pixels = decode(file_of(PIL.Image.fromarray(photo()), file_format), 0, LIMITS)
    np.testing.assert_array_equal(pixels, photo())
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "AVIF", "JPEG2000", "MPO", "GIF"])
def test_lossy_files_decode_to_nearly_the_same_pixels(file_format: str) -> None:
    pixels = decode(file_of(PIL.Image.fromarray(photo()), file_format), 0, LIMITS)
    assert np.abs(pixels.astype(int) - photo()).mean() < 8


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [PIL.Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    for file_format in ("GIF", "WEBP", "PNG"):
        data = file_of(frames[0], file_format, save_all=True, append_images=frames[1:], duration=50)
        red, green, blue = decode(data, 0, LIMITS)[4, 4]
        assert red > 200
        assert green < 50
        assert blue < 50


def test_cmyk_jpeg_becomes_rgb() -> None:
    data = file_of(PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert np.abs(decode(data, 0, LIMITS)[8, 8].astype(int) - [255, 0, 0]).max() < 16


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    pixels = decode(file_of(PIL.Image.fromarray(values), "PNG"), 0, LIMITS)
    assert pixels[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_nan_is_refused() -> None:
    data = file_of(PIL.Image.fromarray(np.array([[np.nan, 1.0]], np.float32)), "TIFF")
    assert refusal(data, 2) == "Invalid image format at index 2: it holds NaN or infinity"


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (PIL.Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        (PIL.Image.new("L", (2, 2), 7), 7),
        (PIL.Image.new("P", (2, 2), 0), 0),
    ],
)
def test_a_transparent_colour_is_laid_on_white(image: Any, key: Any) -> None:
    assert (decode(file_of(image, "PNG", transparency=key), 0, LIMITS) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, file_format: str) -> None:
    corner = np.zeros((16, 32, 3), np.uint8)
    corner[:8, :8] = 255  # white where the photo's own top left is
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(file_of(PIL.Image.fromarray(corner), file_format, exif=exif), 0, LIMITS)
    assert pixels.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    row, column = {1: (2, 2), 2: (2, -3), 3: (-3, -3), 4: (-3, 2), 5: (2, 2), 6: (2, -3), 7: (-3, -3), 8: (-3, 2)}[
        orientation
    ]
    assert pixels[row, column].min() > 200


def test_a_photo_with_damaged_exif_is_still_read() -> None:
    data = file_of(PIL.Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0garbage, no TIFF header")
    assert decode(data, 0, LIMITS).shape == (48, 64, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_files_are_refused(file_format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = file_of(PIL.Image.fromarray(noise), file_format)
    assert refusal(data[: int(len(data) * share)], 1).startswith("Invalid image format at index 1: ")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_are_read_or_refused_and_nothing_else(seed: int) -> None:
    random = np.random.default_rng(seed)
    file_format = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "JPEG2000"][seed % 8]
    data = bytearray(file_of(PIL.Image.fromarray(photo()), file_format))
    for position in random.integers(0, len(data), 8):
        data[position] = random.integers(0, 256)
    try:
        assert decode(bytes(data), 0, LIMITS).shape[2] == 3
    except InvalidInput as error:
        assert error.message  # noqa: PT017, either outcome is right


def test_what_is_no_picture_is_refused_in_plain_words() -> None:
    assert refusal(b"hello, I am a text file\n") == (
        "Invalid image format at index 0: not a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PPM file, "
        "or its header is damaged"
    )
    assert refusal(b"", 3) == "Invalid image format at index 3: the file is empty"


def test_formats_that_run_programs_are_not_read() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert "not a JPEG" in refusal(eps)


@pytest.mark.parametrize("side", [7000, 10_000, 20_000])
def test_too_many_pixels_are_refused(side: int) -> None:
    data = one_bit_png(side, side)
    assert len(data) < 150_000
    assert refusal(data, 5).startswith("Image at index 5 is too large: ")


def test_a_decompression_bomb_is_refused_without_its_memory() -> None:
    code = (
        "import resource, sys, time\n"
        "from serve_app.errors import InvalidInput\n"
        "from serve_app.decoding.files import decode\n"
        "from serve_app.settings import LimitSettings\n"
        "import PIL.Image; PIL.Image.init()\n"
        "data = sys.stdin.buffer.read()\n"
        "before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()\n"
        "try:\n    decode(data, 0, LimitSettings())\n"
        "except InvalidInput: print('refused')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - start)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], input=one_bit_png(20_000, 20_000), capture_output=True)
    verdict, figures = run.stdout.decode().splitlines()
    grown_kib, seconds = map(float, figures.split())
    assert verdict == "refused"
    assert grown_kib < 10 * 1024  # its pixels would take 400 MB
    assert seconds < 1


def test_long_strips_are_refused_before_decoding() -> None:
    expected = "Image at index 1 is too long: 1000x100 has an aspect ratio above 8:1"
    assert refusal(one_bit_png(1000, 100), 1) == expected


def test_the_limit_itself_is_allowed() -> None:
    limits = LimitSettings(max_image_pixels=64 * 48)
    data = file_of(PIL.Image.fromarray(photo()), "PNG")
    assert decode(data, 0, limits).shape == (48, 64, 3)
    assert "64x48" in refusal(data, 0, LimitSettings(max_image_pixels=64 * 48 - 1))
