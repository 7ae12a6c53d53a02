"""Sizes: of pictures, and those that a model can make."""

import math
import re
from dataclasses import dataclass

from serve_app.errors import InvalidInput
from serve_app.settings import LimitSettings

SIZE_PATTERN = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """Width and height in pixels. Raises ValueError if one of them is less than 1."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"must be at least 1x1, not {self.width}x{self.height}")

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Return the size that `WxH` names. Raises ValueError for any other text, and for zero."""
        match = SIZE_PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"must be `auto` or WIDTHxHEIGHT in pixels, such as 1024x768, not {text[:40]!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def aspect_ratio(self) -> float:
        """Long side divided by short side, at least 1."""
        return max(self.width, self.height) / min(self.width, self.height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes that a model can make: `native_area` in pixels, and the `multiple` that both sides must have."""

    native_area: int
    multiple: int

    def auto(self, picture: Size) -> Size:
        """Return the size at the native area that has the picture's aspect ratio.

        The same as `calculate_dimensions` of diffusers' QwenImageEditPipeline, which rounds to 32 for a `multiple` of
        16, except that a side never rounds to zero.
        """
        width = math.sqrt(self.native_area * picture.width / picture.height)
        height = width * picture.height / picture.width
        grid = 2 * self.multiple
        return Size(max(grid, round(width / grid) * grid), max(grid, round(height / grid) * grid))

    def cover(self, size: Size) -> Size:
        """Return the smallest size that the model can make and that is at least `size` on both sides."""
        grid = self.multiple
        return Size(math.ceil(size.width / grid) * grid, math.ceil(size.height / grid) * grid)


def check_picture_size(size: Size, index: int, limits: LimitSettings) -> None:
    """Raise InvalidInput for a picture with too many pixels or too large an aspect ratio."""
    if size.pixels > limits.max_image_pixels:
        raise InvalidInput(
            f"Image at index {index} is too large: {size} has more than {limits.max_image_pixels} pixels",
            param="images",
        )
    if size.aspect_ratio > limits.max_aspect_ratio:
        raise InvalidInput(
            f"Image at index {index} is too long: {size} has an aspect ratio above {limits.max_aspect_ratio:g}:1",
            param="images",
        )
