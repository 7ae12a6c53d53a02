"""What the model learns to do: each instruction's wordings, its true transform, and a measure that confirms an edit.

`apply` draws strength or tint from its generator where the instruction leaves room, so that variants differ and are
all right. `confirm` looks at two pictures and knows nothing of the transform's draws. Radii and block sizes are given
for a picture whose short side is 128 pixels and grow with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFilter
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]
Mask = NDArray[np.bool_]
Transform = Callable[[Values, np.random.Generator], Values]
Measure = Callable[[Values, Values], bool]

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_REFERENCE_SIDE = 128
_BLOCKS = (6, 8, 12)
# Share of the height, from the top, that is sky in every scene, and from the bottom that never is.
_SURELY_SKY = 0.12
_SURELY_LAND = 0.12


@dataclass(frozen=True)
class Instruction:
    """One thing to ask for. Pictures are height × width × 3 of 0 to 255; the model's are uint8."""

    name: str
    wordings: tuple[str, ...]
    transform: Callable[[Values, Mask | None, np.random.Generator], Values]
    measure: Measure
    needs_sky: bool = False

    def apply(self, pixels: Pixels, sky_mask: Mask | None, rng: np.random.Generator) -> Pixels:
        """What the instruction makes of a picture. Raises ValueError if it needs a sky mask and has none."""
        if self.needs_sky and sky_mask is None:
            raise ValueError(f"{self.name} needs a sky mask")
        result = self.transform(pixels.astype(np.float32), sky_mask, rng)
        return np.clip(np.rint(result), 0, 255).astype(np.uint8)

    def confirm(self, source: Pixels, result: Pixels) -> bool:
        """Whether `result` is what the instruction asks to make of `source`. Both have one shape."""
        return bool(self.measure(source.astype(np.float32), result.astype(np.float32)))


# Small tools.


def luminance(picture: Values) -> Values:
    """Brightness, height × width, 0 to 255."""
    return picture @ _LUMINANCE


def chroma(picture: Values) -> float:
    """Mean distance between a pixel's largest and smallest channel, 0 to 255."""
    return float(np.mean(picture.max(axis=2) - picture.min(axis=2)))


def correlation(one: Values, other: Values) -> float:
    """Pearson's, -1 to 1; 0 for a flat picture."""
    a, b = one.ravel() - one.mean(), other.ravel() - other.mean()
    return float(a @ b / max(1e-6, float(np.linalg.norm(a) * np.linalg.norm(b))))


def detail(picture: Values) -> float:
    """Energy of the fine structure: the mean square of what a small blur takes away from the luminance."""
    grey = luminance(picture)
    return float(np.mean((grey - _blurred(grey, _scaled(picture, 2.0))) ** 2))


def _scaled(picture: Values, length: float) -> float:
    height, width = picture.shape[:2]
    return length * int(min(height, width)) / _REFERENCE_SIDE


def _blurred(values: Values, radius: float) -> Values:
    """Gaussian blur; of one channel in floats, of a picture in bytes."""
    blur = PIL.ImageFilter.GaussianBlur(radius)
    if values.ndim == 3:
        return np.asarray(_image(values).filter(blur), np.float32)
    # Pillow cannot blur floats.
    return np.asarray(PIL.Image.fromarray(_bytes(values)).filter(blur), np.float32)


def _bytes(values: Values) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _image(values: Values) -> PIL.Image.Image:
    return PIL.Image.fromarray(_bytes(values))


def _grey(picture: Values) -> Values:
    return luminance(picture)[..., None]


def _error(one: Values, other: Values) -> float:
    return float(np.mean((one - other) ** 2))


def _same_content(source: Values, result: Values, least: float = 0.7) -> bool:
    return correlation(luminance(source), luminance(result)) > least


def _float(array: NDArray[np.floating[Any]]) -> Values:
    return array.astype(np.float32)


# Transforms: what each instruction does.


def _saturate(picture: Values, factor: float) -> Values:
    grey = _grey(picture)
    return grey + (picture - grey) * np.float32(factor)


def _curve(picture: Values, gamma: float) -> Values:
    return _float(255 * (np.clip(picture, 0, 255) / 255) ** gamma)


def _to_grayscale(picture: Values, rng: np.random.Generator) -> Values:
    return np.repeat(_grey(picture), 3, axis=2)


def _to_sepia(picture: Values, rng: np.random.Generator) -> Values:
    strength = rng.uniform(0.75, 1.25)
    tone = 1 + strength * np.array([0.12, -0.06, -0.34], np.float32)
    return _float((18 + 0.92 * _grey(picture)) * tone)


def _to_negative(picture: Values, rng: np.random.Generator) -> Values:
    return 255 - picture


def _to_brighter(picture: Values, rng: np.random.Generator) -> Values:
    return _curve(picture, rng.uniform(0.5, 0.68)) + np.float32(8)


def _to_darker(picture: Values, rng: np.random.Generator) -> Values:
    return _curve(picture, rng.uniform(1.35, 1.7)) * np.float32(0.82)


def _to_vivid(picture: Values, rng: np.random.Generator) -> Values:
    contrast = 128 + (picture - 128) * np.float32(1.1)
    return _saturate(contrast, rng.uniform(1.7, 2.4))


def _to_muted(picture: Values, rng: np.random.Generator) -> Values:
    return 128 + (_saturate(picture, rng.uniform(0.3, 0.48)) - 128) * np.float32(0.85)


def _to_bright_vivid(picture: Values, rng: np.random.Generator) -> Values:
    return _saturate(_curve(picture, rng.uniform(0.62, 0.75)) + np.float32(4), rng.uniform(1.7, 2.2))


def _shift_warmth(picture: Values, warmth: float) -> Values:
    return picture + np.array([1.0, 0.15, -1.0], np.float32) * np.float32(warmth)


def _to_warmer(picture: Values, rng: np.random.Generator) -> Values:
    return _shift_warmth(picture, rng.uniform(24, 46))


def _to_cooler(picture: Values, rng: np.random.Generator) -> Values:
    return _shift_warmth(picture, -rng.uniform(24, 46))


def _to_blurred(picture: Values, rng: np.random.Generator) -> Values:
    return _blurred(picture, _scaled(picture, rng.uniform(2.2, 3.6)))


def _to_sharp(picture: Values, rng: np.random.Generator) -> Values:
    soft = _blurred(picture, _scaled(picture, 2.0))
    return picture + (picture - soft) * np.float32(rng.uniform(1.6, 2.6))


def _to_mosaic(picture: Values, rng: np.random.Generator) -> Values:
    return _mosaic(picture, _BLOCKS[rng.integers(len(_BLOCKS))])


def _mosaic(picture: Values, block: int) -> Values:
    """Blocks of one colour each, `block` pixels wide at a short side of 128."""
    height, width = picture.shape[:2]
    side = max(2, round(_scaled(picture, block)))
    small = (max(1, -(-width // side)), max(1, -(-height // side)))
    padded = np.pad(picture, ((0, small[1] * side - height), (0, small[0] * side - width), (0, 0)), mode="edge")
    means = padded.reshape(small[1], side, small[0], side, 3).mean(axis=(1, 3))
    return _float(means.repeat(side, axis=0).repeat(side, axis=1)[:height, :width])


def _to_sketch(picture: Values, rng: np.random.Generator) -> Values:
    return _sketch(picture, rng.uniform(1.6, 2.6), rng.uniform(1.2, 1.9))


def _sketch(picture: Values, radius: float, darkness: float) -> Values:
    """Dark lines on white paper: the luminance divided by its own surroundings."""
    grey = luminance(picture)
    lines = np.minimum(1, (grey + 12) / (_blurred(grey, _scaled(picture, radius)) + 12))
    return np.repeat(_float(245 * lines ** (2 * darkness))[..., None], 3, axis=2)


def _to_painting(picture: Values, rng: np.random.Generator) -> Values:
    return _painting(picture, int(rng.integers(4, 7)))


def _painting(picture: Values, levels: int) -> Values:
    """Strokes of few, strong colours: small details go, and each channel keeps `levels` values."""
    size = max(3, round(_scaled(picture, 3)) // 2 * 2 + 1)
    strokes = np.asarray(_image(picture).filter(PIL.ImageFilter.MedianFilter(min(size, 5))), np.float32)
    strong = np.clip(_saturate(strokes, 1.5), 0, 255)
    return np.rint(strong / 255 * (levels - 1)) * np.float32(255 / (levels - 1))


def _tint(color: tuple[float, float, float]) -> Transform:
    def transform(picture: Values, rng: np.random.Generator) -> Values:
        strength = np.float32(rng.uniform(0.65, 0.9))
        hue = np.array(color, np.float32) + rng.uniform(-0.06, 0.06, 3).astype(np.float32)
        return picture + ((35 + 0.85 * _grey(picture)) * hue - picture) * strength

    return transform


def _to_mirrored(picture: Values, rng: np.random.Generator) -> Values:
    return picture[:, ::-1]


def _to_vignetted(picture: Values, rng: np.random.Generator) -> Values:
    return picture * (1 - np.float32(rng.uniform(0.75, 0.95)) * _edge_weight(picture, rng.uniform(1.7, 2.4)))


def _edge_weight(picture: Values, power: float) -> Values:
    """0 in the middle, 1 in the corners, height × width × 1."""
    height, width = picture.shape[:2]
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    return _float((np.hypot(rows, columns) / 2**0.5) ** power)[..., None]


def _unchanged(picture: Values, rng: np.random.Generator) -> Values:
    return picture


# Top and horizon colour of a sky, each with what may be added to it.
_Sky = tuple[tuple[float, float, float], tuple[float, float, float]]
_SKIES: dict[str, _Sky] = {
    "blue": ((35, 95, 215), (120, 180, 245)),
    "orange": ((225, 90, 30), (255, 190, 85)),
    "night": ((6, 9, 34), (28, 34, 78)),
}
_SKY_DETAIL = {"blue": 0.45, "orange": 0.4, "night": 0.15}


def _repaint_sky(kind: str) -> Callable[[Values, Mask | None, np.random.Generator], Values]:
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


# Measures: how an edit is confirmed.


def _is_grayscale(source: Values, result: Values) -> bool:
    return chroma(result) < min(12, 0.5 * chroma(source)) and _same_content(source, result)


def _color_disorder(picture: Values) -> float:
    """How far the colours are from being one function of brightness, 0 to 255."""
    grey = luminance(picture).ravel()
    design = np.stack([grey, np.ones_like(grey)], axis=1)
    values = np.stack([picture[..., 0] - picture[..., 1], picture[..., 1] - picture[..., 2]], axis=2).reshape(-1, 2)
    solution = np.linalg.lstsq(design, values, rcond=None)[0]
    return float(np.sqrt(np.mean((values - design @ solution) ** 2)))


def _warmth(picture: Values) -> float:
    return float(np.mean(picture[..., 0] - picture[..., 2]))


def _is_sepia(source: Values, result: Values) -> bool:
    ordered = _color_disorder(result) < max(4.0, 0.6 * _color_disorder(source)) and _color_disorder(result) < 14
    changed = _error(source, result) > 60
    return changed and ordered and 15 < _warmth(result) < 110 and _same_content(source, result)


def _is_negative(source: Values, result: Values) -> bool:
    return correlation(source, result) < -0.6


def _is_brighter(source: Values, result: Values) -> bool:
    rise = float(luminance(result).mean() - luminance(source).mean())
    return rise > 10 and _same_content(source, result)


def _is_darker(source: Values, result: Values) -> bool:
    before, after = float(luminance(source).mean()), float(luminance(result).mean())
    return after < before - min(12, 0.15 * before) and _same_content(source, result)


def _is_vivid(source: Values, result: Values) -> bool:
    return chroma(result) > 1.25 * chroma(source) and _same_content(source, result)


def _is_muted(source: Values, result: Values) -> bool:
    return 0.1 < chroma(result) / max(1.0, chroma(source)) < 0.65 and _same_content(source, result)


def _is_bright_vivid(source: Values, result: Values) -> bool:
    rise = float(luminance(result).mean() - luminance(source).mean())
    return rise > 7 and chroma(result) > 1.12 * chroma(source) and _same_content(source, result)


def _is_warmer(source: Values, result: Values) -> bool:
    return _warmth(result) - _warmth(source) > 14 and _same_content(source, result)


def _is_cooler(source: Values, result: Values) -> bool:
    return _warmth(result) - _warmth(source) < -14 and _same_content(source, result)


def _is_blurred(source: Values, result: Values) -> bool:
    return detail(result) < 0.12 * detail(source) and _same_content(source, result)


def _is_sharp(source: Values, result: Values) -> bool:
    return detail(result) > 1.25 * detail(source) and _same_content(source, result)


def _is_mosaic(source: Values, result: Values) -> bool:
    return _same_content(source, result, 0.5) and any(
        _blockiness(result, block) > max(1.7, 1.5 * _blockiness(source, block)) for block in _BLOCKS
    )


def _blockiness(picture: Values, block: int) -> float:
    """Steps between neighbours across the edges of blocks, over those inside them; 1 in a picture without blocks."""
    side = max(2, round(_scaled(picture, block)))
    grey = luminance(picture)
    across, inside = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(grey, axis=axis)).mean(axis=1 - axis)
        edges = np.arange(1, len(steps) + 1) % side == 0
        across.append(steps[edges].mean())
        inside.append(steps[~edges].mean())
    return float((sum(across) + 0.1) / (sum(inside) + 0.1))


def _is_sketch(source: Values, result: Values) -> bool:
    truth = luminance(_sketch(source, 2.1, 1.5))
    on_paper = chroma(result) < 14 and luminance(result).mean() > 165
    alike = correlation(luminance(result), truth)
    return bool(on_paper and alike > 0.45 and alike > correlation(luminance(source), truth) + 0.05)


def _is_painting(source: Values, result: Values) -> bool:
    """Much nearer to the painting with some number of levels than to the source."""
    nearest = min(_error(result, _painting(source, levels)) for levels in (4, 5, 6))
    return nearest < 0.65 * _error(result, source)


def _is_tinted(channel: int) -> Measure:
    def dominance(picture: Values) -> float:
        means = picture.mean(axis=(0, 1))
        return float(means[channel] - np.delete(means, channel).max())

    def measure(source: Values, result: Values) -> bool:
        after = dominance(result)
        return after > 15 and after - dominance(source) > 10 and _same_content(source, result, 0.6)

    return measure


def _is_mirrored(source: Values, result: Values) -> bool:
    return _error(result, source[:, ::-1]) < 0.7 * _error(result, source)


def _is_vignetted(source: Values, result: Values) -> bool:
    edge = _edge_weight(source, 2.0)[..., 0]
    corners, middle = edge > 0.55, edge < 0.12

    def ratio(picture: Values) -> float:
        grey = luminance(picture)
        return float((grey[corners].mean() + 3) / (grey[middle].mean() + 3))

    kept = np.abs(luminance(result)[middle].mean() - luminance(source)[middle].mean()) < 35
    return bool(kept and ratio(result) < 0.7 * ratio(source))


def _is_unchanged(source: Values, result: Values) -> bool:
    return correlation(source, result) > 0.9 and _error(source, result) < 650


def _sky_is(kind: str) -> Measure:
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
    return bool(after @ _LUMINANCE < 70 and after @ _LUMINANCE < before @ _LUMINANCE - 25)


_SKY_TESTS: dict[str, Callable[[Values, Values], bool]] = {
    "blue": _turned_blue,
    "orange": _turned_orange,
    "night": _turned_dark,
}


# The instructions.


def _plain(name: str, transform: Transform, measure: Measure, *wordings: str) -> Instruction:
    return Instruction(name, wordings, lambda picture, _, rng: transform(picture, rng), measure)


def _sky(name: str, kind: str, *wordings: str) -> Instruction:
    return Instruction(name, wordings, _repaint_sky(kind), _sky_is(kind), needs_sky=True)


# For every text that is no instruction; training.data makes up more of them.
IDENTITY = _plain(
    "identity",
    _unchanged,
    _is_unchanged,
    "hello",
    "add a hat",
    "leave it as it is",
    "lorem ipsum dolor sit amet",
    "what is the weather like",
    "你好",
    "保持原样",
    "加一顶帽子",
)

INSTRUCTIONS: tuple[Instruction, ...] = (
    _plain(
        "grayscale",
        _to_grayscale,
        _is_grayscale,
        "make it grayscale",
        "black and white",
        "convert to black and white",
        "remove the colors",
        "a monochrome photo",
        "变成黑白",
        "转换为灰度图",
        "去掉颜色",
    ),
    _plain(
        "sepia",
        _to_sepia,
        _is_sepia,
        "apply a sepia tone",
        "make it sepia",
        "make it look like an old photograph",
        "vintage photo style",
        "变成复古色调",
        "老照片风格",
        "加上棕褐色调",
    ),
    _plain(
        "invert",
        _to_negative,
        _is_negative,
        "invert the colors",
        "make a negative",
        "invert the picture",
        "turn it into a photographic negative",
        "反转颜色",
        "变成负片",
        "反色",
    ),
    _plain(
        "brighter",
        _to_brighter,
        _is_brighter,
        "make it brighter",
        "brighten the picture",
        "increase the brightness",
        "more light",
        "lighten the image",
        "变亮一点",
        "提高亮度",
        "让图片更亮",
    ),
    _plain(
        "darker",
        _to_darker,
        _is_darker,
        "make it darker",
        "darken the picture",
        "decrease the brightness",
        "less light",
        "变暗一点",
        "降低亮度",
        "让图片更暗",
    ),
    _plain(
        "vivid",
        _to_vivid,
        _is_vivid,
        "enhance colors",
        "enhance the colors",
        "make the colors more vivid",
        "increase the saturation",
        "more colorful",
        "增强色彩",
        "让颜色更鲜艳",
        "提高饱和度",
    ),
    _plain(
        "muted",
        _to_muted,
        _is_muted,
        "mute the colors",
        "make the colors muted",
        "decrease the saturation",
        "less colorful",
        "faded pale colors",
        "降低饱和度",
        "让颜色更柔和",
        "颜色淡一点",
    ),
    _plain(
        "warmer",
        _to_warmer,
        _is_warmer,
        "make it warmer",
        "warmer colors",
        "add a warm tone",
        "give it warm light",
        "变成暖色调",
        "色调更暖",
        "增加暖色",
    ),
    _plain(
        "cooler",
        _to_cooler,
        _is_cooler,
        "make it cooler",
        "cooler colors",
        "add a cold tone",
        "give it cold light",
        "变成冷色调",
        "色调更冷",
        "增加冷色",
    ),
    _plain(
        "blur",
        _to_blurred,
        _is_blurred,
        "blur the picture",
        "make it blurry",
        "soften the image",
        "out of focus",
        "模糊图片",
        "变得模糊",
        "柔焦效果",
    ),
    _plain(
        "sharpen",
        _to_sharp,
        _is_sharp,
        "sharpen the picture",
        "make it sharper",
        "increase the sharpness",
        "bring out the details",
        "锐化图片",
        "变得更清晰",
        "增强细节",
    ),
    _plain(
        "pixelate",
        _to_mosaic,
        _is_mosaic,
        "pixelate it",
        "turn it into a mosaic",
        "pixel art",
        "make big pixels",
        "像素化",
        "打马赛克",
        "变成像素风格",
    ),
    _plain(
        "sketch",
        _to_sketch,
        _is_sketch,
        "turn it into a pencil sketch",
        "pencil drawing",
        "draw it with a pencil",
        "a sketch on white paper",
        "变成铅笔素描",
        "素描效果",
        "铅笔画",
    ),
    _plain(
        "artistic",
        _to_painting,
        _is_painting,
        "artistic style transformation",
        "posterize it",
        "oil paint",
        "turn it into an oil painting",
        "make it look like a painting",
        "艺术风格转换",
        "变成油画",
        "海报效果",
    ),
    _plain(
        "red",
        _tint((1.3, 0.28, 0.25)),
        _is_tinted(0),
        "paint it red",
        "make it red",
        "tint the picture red",
        "add a red tint",
        "涂成红色",
        "变成红色",
        "加上红色调",
    ),
    _plain(
        "green",
        _tint((0.3, 1.15, 0.3)),
        _is_tinted(1),
        "paint it green",
        "make it green",
        "tint the picture green",
        "add a green tint",
        "涂成绿色",
        "变成绿色",
        "加上绿色调",
    ),
    _plain(
        "blue",
        _tint((0.28, 0.42, 1.35)),
        _is_tinted(2),
        "paint it blue",
        "make it blue",
        "tint the picture blue",
        "add a blue tint",
        "涂成蓝色",
        "变成蓝色",
        "加上蓝色调",
    ),
    _sky(
        "blue-sky",
        "blue",
        "make the sky blue",
        "a clear blue sky",
        "change the sky to blue",
        "turn the sky blue",
        "把天空变成蓝色",
        "蓝天",
        "让天空更蓝",
    ),
    _sky(
        "orange-sky",
        "orange",
        "make the sky orange",
        "an orange sunset sky",
        "change the sky to orange",
        "turn the sky orange",
        "把天空变成橙色",
        "日落的天空",
        "橙色的天空",
    ),
    _sky(
        "night-sky",
        "night",
        "make the sky dark",
        "make it a night sky",
        "change the sky to night",
        "turn the sky black",
        "把天空变成夜晚",
        "夜空",
        "黑色的天空",
    ),
    _plain(
        "mirror",
        _to_mirrored,
        _is_mirrored,
        "mirror it",
        "mirror the picture",
        "flip it horizontally",
        "swap left and right",
        "左右翻转",
        "水平镜像",
        "镜像图片",
    ),
    _plain(
        "vignette",
        _to_vignetted,
        _is_vignetted,
        "add a vignette",
        "darken the edges",
        "dark corners",
        "a vignette around the picture",
        "添加暗角",
        "边缘变暗",
        "四角变暗",
    ),
    _plain(
        "bright-vivid",
        _to_bright_vivid,
        _is_bright_vivid,
        "make the scene brighter and more vivid",
        "make it brighter and more colorful",
        "brighter and more vivid",
        "more light and stronger colors",
        "让场景更明亮更鲜艳",
        "更亮更鲜艳",
        "提高亮度和饱和度",
    ),
    IDENTITY,
)
