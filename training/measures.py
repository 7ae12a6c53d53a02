"""Measures that confirm an edit from two pictures, without the random values that its transform drew."""

from collections.abc import Callable

import numpy as np

from training.pictures import (
    LUMINANCE,
    Values,
    chroma,
    correlation,
    detail,
    luminance,
    same_content,
    squared_error,
)
from training.transforms import BLOCKS, block_side, edge_weight, painting, sketch

Measure = Callable[[Values, Values], bool]
# The shares of the height that are sky in every scene, from the top, and in none, from the bottom.
_SURELY_SKY = 0.12
_SURELY_LAND = 0.12


def is_grayscale(source: Values, result: Values) -> bool:
    return chroma(result) < min(12, 0.5 * chroma(source)) and same_content(source, result)


def _color_disorder(picture: Values) -> float:
    """Return the distance of the colours from one linear function of brightness, 0 to 255."""
    grey = luminance(picture).ravel()
    design = np.stack([grey, np.ones_like(grey)], axis=1)
    values = np.stack([picture[..., 0] - picture[..., 1], picture[..., 1] - picture[..., 2]], axis=2).reshape(-1, 2)
    solution = np.linalg.lstsq(design, values, rcond=None)[0]
    return float(np.sqrt(np.mean((values - design @ solution) ** 2)))


def _warmth(picture: Values) -> float:
    return float(np.mean(picture[..., 0] - picture[..., 2]))


def is_sepia(source: Values, result: Values) -> bool:
    ordered = _color_disorder(result) < max(4.0, 0.6 * _color_disorder(source)) and _color_disorder(result) < 14
    changed = squared_error(source, result) > 60
    return changed and ordered and 15 < _warmth(result) < 110 and same_content(source, result)


def is_negative(source: Values, result: Values) -> bool:
    return correlation(source, result) < -0.6


def is_brighter(source: Values, result: Values) -> bool:
    rise = float(luminance(result).mean() - luminance(source).mean())
    return rise > 10 and same_content(source, result)


def is_darker(source: Values, result: Values) -> bool:
    before, after = float(luminance(source).mean()), float(luminance(result).mean())
    return after < before - min(12, 0.15 * before) and same_content(source, result)


def is_vivid(source: Values, result: Values) -> bool:
    return chroma(result) > 1.25 * chroma(source) and same_content(source, result)


def is_muted(source: Values, result: Values) -> bool:
    return 0.1 < chroma(result) / max(1.0, chroma(source)) < 0.65 and same_content(source, result)


def is_bright_vivid(source: Values, result: Values) -> bool:
    rise = float(luminance(result).mean() - luminance(source).mean())
    return rise > 7 and chroma(result) > 1.12 * chroma(source) and same_content(source, result)


def is_warmer(source: Values, result: Values) -> bool:
    return _warmth(result) - _warmth(source) > 14 and same_content(source, result)


def is_cooler(source: Values, result: Values) -> bool:
    return _warmth(result) - _warmth(source) < -14 and same_content(source, result)


def is_blurred(source: Values, result: Values) -> bool:
    return detail(result) < 0.12 * detail(source) and same_content(source, result)


def is_sharp(source: Values, result: Values) -> bool:
    return detail(result) > 1.25 * detail(source) and same_content(source, result)


def is_mosaic(source: Values, result: Values) -> bool:
    return same_content(source, result, 0.5) and any(
        _blockiness(result, block) > max(1.7, 1.5 * _blockiness(source, block)) for block in BLOCKS
    )


def _blockiness(picture: Values, block: int) -> float:
    """Return the steps between pixels across edges of blocks over those inside; 1 in a picture without blocks."""
    side = block_side(picture, block)
    grey = luminance(picture)
    across, inside = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(grey, axis=axis)).mean(axis=1 - axis)
        edges = np.arange(1, len(steps) + 1) % side == 0
        across.append(steps[edges].mean())
        inside.append(steps[~edges].mean())
    return float((sum(across) + 0.1) / (sum(inside) + 0.1))


def is_sketch(source: Values, result: Values) -> bool:
    truth = luminance(sketch(source, 2.4, 1.8))
    on_paper = chroma(result) < 14 and luminance(result).mean() > 165
    alike = correlation(luminance(result), truth)
    return bool(on_paper and alike > 0.45 and alike > correlation(luminance(source), truth) + 0.05)


def is_painting(source: Values, result: Values) -> bool:
    """Return whether the result is nearer to a painting than to the source, with less detail and stronger colours."""
    nearest = min(squared_error(result, painting(source, saturation)) for saturation in (1.5, 1.8, 2.1))
    plainer = detail(result) < 0.8 * detail(source)
    return plainer and chroma(result) > 1.05 * chroma(source) and nearest < 0.65 * squared_error(result, source)


def is_tinted(channel: int) -> Measure:
    def dominance(picture: Values) -> float:
        means = picture.mean(axis=(0, 1))
        return float(means[channel] - np.delete(means, channel).max())

    def measure(source: Values, result: Values) -> bool:
        after = dominance(result)
        return after > 15 and after - dominance(source) > 10 and same_content(source, result, 0.6)

    return measure


def is_mirrored(source: Values, result: Values) -> bool:
    mirrored = source[:, ::-1]
    nearer = squared_error(result, mirrored) < 0.7 * squared_error(result, source)
    return nearer and correlation(mirrored, result) > 0.85


def is_vignetted(source: Values, result: Values) -> bool:
    edge = edge_weight(source, 2.0)[..., 0]
    corners, middle = edge > 0.55, edge < 0.12

    def ratio(picture: Values) -> float:
        grey = luminance(picture)
        return float((grey[corners].mean() + 3) / (grey[middle].mean() + 3))

    kept = np.abs(luminance(result)[middle].mean() - luminance(source)[middle].mean()) < 35
    return bool(kept and ratio(result) < 0.7 * ratio(source))


def is_unchanged(source: Values, result: Values) -> bool:
    return correlation(source, result) > 0.9 and squared_error(source, result) < 650


def sky_is(kind: str) -> Measure:
    def measure(source: Values, result: Values) -> bool:
        sky = slice(0, max(1, int(len(source) * _SURELY_SKY)))
        land = slice(len(source) - max(1, int(len(source) * _SURELY_LAND)), None)
        before, after = (np.median(picture[sky], axis=(0, 1)) for picture in (source, result))
        kept = float(np.abs(source[land].mean(axis=(0, 1)) - result[land].mean(axis=(0, 1))).max()) < 25
        return kept and _SKY_TESTS[kind](before, after)

    return measure


def _turned_blue(before: Values, after: Values) -> bool:
    return bool(after[2] - after[0] > 40 and after[2] - after[0] > before[2] - before[0] + 25)


def _turned_orange(before: Values, after: Values) -> bool:
    return bool(after[0] - after[2] > 50 and after[0] - after[2] > before[0] - before[2] + 25)


def _turned_dark(before: Values, after: Values) -> bool:
    return bool(after @ LUMINANCE < 70 and after @ LUMINANCE < before @ LUMINANCE - 25)


_SKY_TESTS: dict[str, Callable[[Values, Values], bool]] = {
    "blue": _turned_blue,
    "orange": _turned_orange,
    "night": _turned_dark,
}
