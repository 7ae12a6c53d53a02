"""The transform of each instruction. Strength or tint is random if the instruction leaves it open."""

import math
from collections.abc import Callable

import numpy as np
import PIL.ImageFilter

from training.pictures import Mask, Values, as_image, as_values, blurred, greyed, luminance, scaled

Transform = Callable[[Values, np.random.Generator], Values]
SkyTransform = Callable[[Values, Mask | None, np.random.Generator], Values]
# Pixels at the native 128²: one and two tokens of the transformer. It did not learn blocks that cut through tokens.
BLOCKS = (8, 16)
_STROKES = 2
_TONES = 6


def plain(transform: Transform) -> SkyTransform:
    """Return a transform that ignores the mask of the sky."""
    return lambda picture, sky, rng: transform(picture, rng)


def _saturate(picture: Values, factor: float) -> Values:
    grey = greyed(picture)
    return grey + (picture - grey) * np.float32(factor)


def _curve(picture: Values, gamma: float) -> Values:
    return as_values(255 * (np.clip(picture, 0, 255) / 255) ** gamma)


def to_grayscale(picture: Values, rng: np.random.Generator) -> Values:
    return np.repeat(greyed(picture), 3, axis=2)


def to_sepia(picture: Values, rng: np.random.Generator) -> Values:
    strength = rng.uniform(0.75, 1.25)
    tone = 1 + strength * np.array([0.12, -0.06, -0.34], np.float32)
    return as_values((18 + 0.92 * greyed(picture)) * tone)


def to_negative(picture: Values, rng: np.random.Generator) -> Values:
    return 255 - picture


def to_brighter(picture: Values, rng: np.random.Generator) -> Values:
    return _curve(picture, rng.uniform(0.5, 0.68)) + np.float32(8)


def to_darker(picture: Values, rng: np.random.Generator) -> Values:
    return _curve(picture, rng.uniform(1.35, 1.7)) * np.float32(0.82)


def to_vivid(picture: Values, rng: np.random.Generator) -> Values:
    contrast = 128 + (picture - 128) * np.float32(1.1)
    return _saturate(contrast, rng.uniform(1.7, 2.4))


def to_muted(picture: Values, rng: np.random.Generator) -> Values:
    return 128 + (_saturate(picture, rng.uniform(0.3, 0.48)) - 128) * np.float32(0.85)


def to_bright_vivid(picture: Values, rng: np.random.Generator) -> Values:
    return _saturate(_curve(picture, rng.uniform(0.62, 0.75)) + np.float32(4), rng.uniform(1.7, 2.2))


def _shift_warmth(picture: Values, warmth: float) -> Values:
    return picture + np.array([1.0, 0.15, -1.0], np.float32) * np.float32(warmth)


def to_warmer(picture: Values, rng: np.random.Generator) -> Values:
    return _shift_warmth(picture, rng.uniform(24, 46))


def to_cooler(picture: Values, rng: np.random.Generator) -> Values:
    return _shift_warmth(picture, -rng.uniform(24, 46))


def to_blurred(picture: Values, rng: np.random.Generator) -> Values:
    return blurred(picture, scaled(picture, rng.uniform(2.2, 3.6)))


def to_sharp(picture: Values, rng: np.random.Generator) -> Values:
    soft = blurred(picture, scaled(picture, 2.0))
    return picture + (picture - soft) * np.float32(rng.uniform(1.6, 2.6))


def to_mosaic(picture: Values, rng: np.random.Generator) -> Values:
    return _mosaic(picture, BLOCKS[rng.integers(len(BLOCKS))])


def _mosaic(picture: Values, block: int) -> Values:
    """Return blocks of one colour each."""
    height, width = picture.shape[:2]
    side = block_side(picture, block)
    small = (max(1, -(-width // side)), max(1, -(-height // side)))
    padded = np.pad(picture, ((0, small[1] * side - height), (0, small[0] * side - width), (0, 0)), mode="edge")
    means = padded.reshape(small[1], side, small[0], side, 3).mean(axis=(1, 3))
    return as_values(means.repeat(side, axis=0).repeat(side, axis=1)[:height, :width])


def block_side(picture: Values, block: int) -> int:
    """Return a block's side in pixels: `block` up to an area of 128², whole multiples of it in larger pictures."""
    height, width = picture.shape[:2]
    return block * max(1, round(math.sqrt(height * width) / 128))


def to_sketch(picture: Values, rng: np.random.Generator) -> Values:
    return sketch(picture, rng.uniform(1.8, 3.0), rng.uniform(1.4, 2.2))


def sketch(picture: Values, radius: float, darkness: float) -> Values:
    """Return grey lines on white paper: the luminance divided by its own surroundings."""
    grey = luminance(picture)
    lines = np.minimum(1, (grey + 24) / (blurred(grey, scaled(picture, radius)) + 24))
    return np.repeat(as_values(245 * lines**darkness)[..., None], 3, axis=2)


def to_painting(picture: Values, rng: np.random.Generator) -> Values:
    return painting(picture, rng.uniform(1.5, 2.1))


def painting(picture: Values, saturation: float) -> Values:
    """Return broad strokes of strong colours, without small details, and with half of the shading in few tones."""
    strokes = picture
    for _ in range(_STROKES):
        strokes = np.asarray(as_image(strokes).filter(PIL.ImageFilter.MedianFilter(_stroke(picture))), np.float32)
    grey = greyed(strokes)
    tones = np.rint(grey / 255 * (_TONES - 1)) * np.float32(255 / (_TONES - 1))
    return _saturate(strokes, saturation) + (tones - grey) * np.float32(0.5)


def _stroke(picture: Values) -> int:
    """Return the width of a stroke, an odd number of pixels: 5 in a picture of 128 × 128."""
    return max(3, round(scaled(picture, 5)) // 2 * 2 + 1)


def tint(color: tuple[float, float, float]) -> Transform:
    def transform(picture: Values, rng: np.random.Generator) -> Values:
        strength = np.float32(rng.uniform(0.65, 0.9))
        hue = np.array(color, np.float32) + rng.uniform(-0.06, 0.06, 3).astype(np.float32)
        return picture + ((35 + 0.85 * greyed(picture)) * hue - picture) * strength

    return transform


def to_mirrored(picture: Values, rng: np.random.Generator) -> Values:
    return picture[:, ::-1]


def to_vignetted(picture: Values, rng: np.random.Generator) -> Values:
    return picture * (1 - np.float32(rng.uniform(0.75, 0.95)) * edge_weight(picture, rng.uniform(1.7, 2.4)))


def edge_weight(picture: Values, power: float) -> Values:
    """Return weights from 0 in the middle to 1 in the corners, height × width × 1."""
    height, width = picture.shape[:2]
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    return as_values((np.hypot(rows, columns) / 2**0.5) ** power)[..., None]


def unchanged(picture: Values, rng: np.random.Generator) -> Values:
    return picture


# The colours of a sky at the top and at the horizon.
_Sky = tuple[tuple[float, float, float], tuple[float, float, float]]
_SKIES: dict[str, _Sky] = {
    "blue": ((35, 95, 215), (120, 180, 245)),
    "orange": ((225, 90, 30), (255, 190, 85)),
    "night": ((6, 9, 34), (28, 34, 78)),
}
_SKY_DETAIL = {"blue": 0.45, "orange": 0.4, "night": 0.15}


def repaint_sky(kind: str) -> SkyTransform:
    def transform(picture: Values, sky: Mask | None, rng: np.random.Generator) -> Values:
        if sky is None or not sky.any():
            return picture
        top, bottom = (np.array(color, np.float32) for color in _SKIES[kind])
        shift = rng.normal(0, 5 if kind == "night" else 10, 3).astype(np.float32)
        depth = np.arange(len(sky), dtype=np.float32) / max(1, int(np.nonzero(sky.any(axis=1))[0].max()))
        gradient = top + shift + (bottom - top) * np.minimum(1, depth)[:, None, None]
        grey = luminance(picture)
        clouds = (grey - grey[sky].mean())[..., None] * np.float32(_SKY_DETAIL[kind] * rng.uniform(0.7, 1.1))
        return np.where(sky[..., None], gradient + clouds, picture)

    return transform
