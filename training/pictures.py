"""Pictures as arrays, and the quantities that transforms and measures compute from them.

Radii and block sizes are given for a picture whose short side is 128 pixels and grow with it.
"""

from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFilter
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]
Mask = NDArray[np.bool_]

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_REFERENCE_SIDE = 128


def luminance(picture: Values) -> Values:
    """Return the brightness, height × width, 0 to 255."""
    return picture @ LUMINANCE


def chroma(picture: Values) -> float:
    """Return the mean distance between a pixel's largest and smallest channel, 0 to 255."""
    return float(np.mean(picture.max(axis=2) - picture.min(axis=2)))


def correlation(one: Values, other: Values) -> float:
    """Return Pearson's correlation, -1 to 1; 0 for a flat picture."""
    a, b = one.ravel() - one.mean(), other.ravel() - other.mean()
    return float(a @ b / max(1e-6, float(np.linalg.norm(a) * np.linalg.norm(b))))


def detail(picture: Values) -> float:
    """Return the energy of the fine structure: the mean square of luminance minus slightly blurred luminance."""
    grey = luminance(picture)
    return float(np.mean((grey - blurred(grey, scaled(picture, 2.0))) ** 2))


def scaled(picture: Values, length: float) -> float:
    height, width = picture.shape[:2]
    return length * int(min(height, width)) / _REFERENCE_SIDE


def blurred(values: Values, radius: float) -> Values:
    """Return a Gaussian blur of a picture, or of one channel, computed in bytes."""
    blur = PIL.ImageFilter.GaussianBlur(radius)
    if values.ndim == 3:
        return np.asarray(as_image(values).filter(blur), np.float32)
    # Pillow cannot blur floats.
    return np.asarray(PIL.Image.fromarray(as_pixels(values)).filter(blur), np.float32)


def as_pixels(values: Values) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def as_image(values: Values) -> PIL.Image.Image:
    return PIL.Image.fromarray(as_pixels(values))


def greyed(picture: Values) -> Values:
    return luminance(picture)[..., None]


def squared_error(one: Values, other: Values) -> float:
    return float(np.mean((one - other) ** 2))


def same_content(source: Values, result: Values, least: float = 0.7) -> bool:
    return correlation(luminance(source), luminance(result)) > least


def as_values(array: NDArray[np.floating[Any]]) -> Values:
    return array.astype(np.float32)
