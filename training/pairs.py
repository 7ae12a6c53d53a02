"""The table of instructions that take a second picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.pictures import Mask, Pixels, Values, as_pixels, as_values, squared_error
from training.wordings import PAIR_WORDINGS

PairTransform = Callable[[Values, Values, Mask | None], Values]
# A result is confirmed if its error is below this share of the errors of both pictures untouched.
_MOST_ERROR = 0.3
# The contrast of a picture that takes over colours grows or shrinks by no more than this.
_MOST_CONTRAST = 2.5


@dataclass(frozen=True)
class Pair:
    """An instruction for two pictures of one shape: what it makes of the first with the second."""

    name: str
    transform: PairTransform
    needs_sky: bool = False
    weight: float = 1.0
    """How often it is drawn for training; higher for instructions that are slow to learn."""

    @property
    def wordings(self) -> tuple[str, ...]:
        """The instruction in people's words."""
        return PAIR_WORDINGS[self.name]

    def apply(self, first: Pixels, second: Pixels, sky_mask: Mask | None) -> Pixels:
        """Return the edited picture, uint8. Raises ValueError if the instruction needs a sky mask and gets none."""
        if self.needs_sky and sky_mask is None:
            raise ValueError(f"{self.name} needs a sky mask")
        return as_pixels(self.transform(first.astype(np.float32), second.astype(np.float32), sky_mask))

    def confirm(self, first: Pixels, second: Pixels, sky_mask: Mask | None, result: Pixels) -> bool:
        """Return whether `result` is far nearer to the true result than either picture is."""
        truth = self.apply(first, second, sky_mask).astype(np.float32)
        errors = [squared_error(picture.astype(np.float32), truth) for picture in (first, second)]
        least = min((error for error in errors if error > 0), default=0.0)
        return squared_error(result.astype(np.float32), truth) < _MOST_ERROR * least


def _paste(vertical: str, horizontal: str) -> PairTransform:
    """Return a transform that takes a quarter or a half from the second picture: `` for both halves of an axis."""

    def transform(first: Values, second: Values, sky: Mask | None) -> Values:
        middle_row, middle_column = first.shape[0] // 2, first.shape[1] // 2
        rows = {"top": slice(middle_row), "bottom": slice(middle_row, None), "": slice(None)}[vertical]
        columns = {"left": slice(middle_column), "right": slice(middle_column, None), "": slice(None)}[horizontal]
        result = first.copy()
        result[rows, columns] = second[rows, columns]
        return result

    return transform


def _blend(first: Values, second: Values, sky: Mask | None) -> Values:
    return as_values((first + second) / 2)


def _show(first: Values, second: Values, sky: Mask | None) -> Values:
    return second


def _fill_sky(first: Values, second: Values, sky: Mask | None) -> Values:
    return first if sky is None else np.where(sky[..., None], second, first)


def _take_colors(first: Values, second: Values, sky: Mask | None) -> Values:
    """Return the first picture with mean and deviation of each channel of the second."""
    (mean, deviation), (wanted_mean, wanted_deviation) = (
        (picture.mean(axis=(0, 1)), picture.std(axis=(0, 1))) for picture in (first, second)
    )
    contrast = np.clip(wanted_deviation / np.maximum(deviation, 1), 1 / _MOST_CONTRAST, _MOST_CONTRAST)
    return as_values((first - mean) * contrast + wanted_mean)


PAIRS: tuple[Pair, ...] = (
    Pair("top-left", _paste("top", "left"), weight=2),
    Pair("top-right", _paste("top", "right"), weight=2),
    Pair("bottom-left", _paste("bottom", "left"), weight=2),
    Pair("bottom-right", _paste("bottom", "right"), weight=2),
    Pair("left-half", _paste("", "left"), weight=2),
    Pair("right-half", _paste("", "right"), weight=2),
    Pair("blend", _blend),
    Pair("colours", _take_colors, weight=2),
    Pair("sky", _fill_sky, needs_sky=True),
    Pair("show", _show),
)
