"""Sizes of pictures and of results."""

import pytest

from serve_app.images.geometry import Geometry, Size
from serve_app.settings import LimitSettings

LIMITS = LimitSettings()


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


def test_auto_keeps_the_aspect_ratio_at_the_native_area() -> None:
    geometry = Geometry(native_area=1024 * 1024, multiple=16)
    assert geometry.auto(Size(500, 500)) == Size(1024, 1024)
    wide = geometry.auto(Size(1600, 900))
    assert wide.width % 32 == wide.height % 32 == 0
    assert abs(wide.width / wide.height - 16 / 9) < 0.05
    assert min(geometry.auto(Size(100_000, 1)).height, geometry.auto(Size(1, 100_000)).width) > 0


def test_cover_is_the_next_multiple() -> None:
    assert Geometry(1024, 16).cover(Size(1, 33)) == Size(16, 48)
    assert Geometry(1024, 16).cover(Size(32, 48)) == Size(32, 48)
