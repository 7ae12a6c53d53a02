"""Sizes: of pictures, those that a model can make, and the part of a picture that an output shows."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from serve_app.errors import InvalidInput
from serve_app.settings import LimitSettings

SIZE_PATTERN = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")

Fit = Literal["cover", "free"]
"""What a size of another aspect ratio than the picture's means: crop the picture, or let the model recompose it."""

Box = tuple[float, float, float, float]
"""A part of a picture: left, top, right and bottom, as shares of its width and height."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

# Two roundings, each by less than a pixel: of a decoder that shrinks by 2, 4 or 8, and of a resize after it.
_ROUNDING_PIXELS = 2


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
            raise ValueError(
                f"must be `auto`, `original` or WIDTHxHEIGHT in pixels, such as 1024x768, not {text[:40]!r}"
            )
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


WantedSize = Size | Literal["original"] | None
"""The `size` of a request; None: `auto`."""


@dataclass(frozen=True, slots=True)
class View:
    """What the model reads of one picture: the part `crop`, at `size`; the text encoder reads it at `text_size`."""

    crop: Box
    size: Size
    text_size: Size


@dataclass(frozen=True, slots=True)
class Framing:
    """What the model reads of a picture that is edited, and what it makes.

    `output`: the size of what the model makes. `result`: the size of what the caller gets.
    """

    view: View
    output: Size
    result: Size


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes that a model can make: `native_area` in pixels, and the side of a square token in pixels.

    `text_area`: pixels of a picture for the text encoder; None: those that the transformer reads. `has_slots`: whether
    the text encoder has one token for every 2 × 2 of the transformer's, so that sides have an even number of tokens,
    and both read a picture at one size, however large.
    """

    native_area: int
    token_side: int
    text_area: int | None = None
    has_slots: bool = False

    @property
    def multiple(self) -> int:
        """The number of pixels of which both sides of a picture are a multiple."""
        return 2 * self.token_side if self.has_slots else self.token_side

    def auto(self, picture: Size) -> Size:
        """Return the size at the native area that has the picture's aspect ratio.

        The same as `calculate_dimensions` of diffusers' QwenImageEditPipeline, which rounds to 32 for tokens of 16
        pixels, except that a side never rounds to zero.
        """
        return self._sized(picture, self.native_area)

    def _sized(self, picture: Size, area: int) -> Size:
        width = math.sqrt(area * picture.width / picture.height)
        height = width * picture.height / picture.width
        grid = 2 * self.token_side
        return Size(max(grid, round(width / grid) * grid), max(grid, round(height / grid) * grid))

    def view(self, picture: Size) -> View:
        """Return the view of a whole picture, at the native area."""
        auto = self.auto(picture)
        return View(WHOLE, auto, self._sized(picture, self.text_area) if self.text_area else auto)

    def cover(self, size: Size) -> Size:
        """Return the smallest size that the model can make and that is at least `size` on both sides."""
        grid = self.multiple
        return Size(math.ceil(size.width / grid) * grid, math.ceil(size.height / grid) * grid)

    def frame(self, picture: Size, size: WantedSize, fit: Fit) -> Framing:
        """Return the framing of a picture for the `size` and `fit` of a request.

        Reference and output have one grid, so that the model keeps what it does not edit in its place; only `free`
        gives them two, as diffusers does. A size that is no multiple is made at `cover` of it and then resized. The
        reference is stretched by as much before, so the result is not.
        """
        whole = self.view(picture)
        if not isinstance(size, Size):
            return Framing(whole, whole.size, picture if size == "original" else whole.size)
        output = self.cover(size)
        if fit == "free":
            return Framing(whole, output, size)
        return Framing(View(center_crop(picture, size), output, self._text_size(output, size)), output, size)

    def _text_size(self, output: Size, size: Size) -> Size:
        """Return the size at which the text encoder reads a picture that the transformer reads at the size `output`."""
        if self.has_slots:
            return output
        # The tokens of a larger picture could exceed the transformer's positions for texts.
        return min(output, self._sized(size, self.text_area or self.native_area), key=lambda each: each.pixels)


def center_crop(picture: Size, aspect: Size) -> Box:
    """Return the largest part in the middle of a picture that has the aspect ratio of `aspect`."""
    # Of whole numbers, so that equal aspect ratios give WHOLE.
    across, down = picture.width * aspect.height, picture.height * aspect.width
    if across > down:
        return (1 - down / across) / 2, 0.0, (1 + down / across) / 2, 1.0
    return 0.0, (1 - across / down) / 2, 1.0, (1 + across / down) / 2


def is_shrunk(copy: Size, original: Size) -> bool:
    """Whether `copy` is at most `original` on both sides and has, but for rounding, its aspect ratio."""
    fits = copy.width <= original.width and copy.height <= original.height
    narrow, low = copy.width - _ROUNDING_PIXELS, copy.height - _ROUNDING_PIXELS
    wide, tall = copy.width + _ROUNDING_PIXELS, copy.height + _ROUNDING_PIXELS
    return fits and narrow * original.height <= tall * original.width and low * original.width <= wide * original.height


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
