"""PIL pictures to RGB arrays, and arrays of other sizes."""

from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from serve_app.images.geometry import Size, center_crop
from serve_app.images.pixels import from_pil, resize
from serve_app.settings import LimitSettings
from tests.scenes import difference, scene

LIMITS = LimitSettings()


def test_transparent_16_bit_grey_is_laid_on_white() -> None:
    image = PIL.Image.fromarray(np.array([[0, 32768]], np.uint16))
    image.info["transparency"] = 0
    assert from_pil(image)[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535]], np.int32), [0, 255]),
        (np.array([[-100, 100]], np.int32), [0, 255]),
        (np.array([[70000, 70000]], np.int32), [0, 0]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 128.0, 255.0]], np.float32), [0, 128, 255]),
        (np.array([[-2.0, 0.0, 2.0]], np.float32), [0, 128, 255]),
    ],
)
def test_deep_grey_uses_the_whole_range(values: Any, expected: list[int]) -> None:
    assert from_pil(PIL.Image.fromarray(values))[0, :, 1].tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_is_laid_on_white(mode: str) -> None:
    clear = PIL.Image.new("LA", (4, 4), (0, 0)) if mode in ("LA", "La") else PIL.Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    image = PIL.Image.new("PA", (4, 4), (0, 0)) if mode == "PA" else clear.convert(mode)
    assert (from_pil(image) == 255).all()


def test_half_alpha_is_half_white() -> None:
    assert from_pil(PIL.Image.new("RGBA", (1, 1), (0, 0, 0, 128)))[0, 0].tolist() == [127] * 3


@pytest.mark.parametrize("mode", ["L", "1", "P", "YCbCr", "LAB", "HSV", "RGBX", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    if mode == "LAB":
        image = PIL.Image.new("LAB", (3, 2), (255, 128, 128))
    else:
        image = PIL.Image.new("RGB", (3, 2), "white").convert(mode)
    pixels = from_pil(image)
    assert pixels.shape == (2, 3, 3)
    assert pixels.min() >= 250


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="no pixels"):
        from_pil(PIL.Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("picture", [Size(90, 60), Size(60, 90), Size(7, 7), Size(331, 217)], ids=str)
@pytest.mark.parametrize("size", [Size(96, 96), Size(100, 75), Size(40, 160), Size(300, 50)], ids=str)
def test_a_crop_around_the_middle_is_that_of_pillow(picture: Size, size: Size) -> None:
    pixels = scene(1, picture.width, picture.height)
    wanted = PIL.ImageOps.fit(PIL.Image.fromarray(pixels), (size.width, size.height), PIL.Image.Resampling.LANCZOS)
    assert difference(resize(pixels, size, center_crop(picture, size)), np.asarray(wanted)) <= 1


def test_a_picture_that_has_its_size_is_not_copied() -> None:
    pixels = scene(1, 40, 30)
    assert resize(pixels, Size(40, 30)) is pixels
    assert resize(pixels, Size(40, 30), (0.1, 0.0, 0.9, 1.0)) is not pixels


def test_a_part_of_less_than_a_pixel_can_be_enlarged() -> None:
    assert resize(scene(1, 8, 1), Size(16, 128), center_crop(Size(8, 1), Size(16, 128))).shape == (128, 16, 3)
