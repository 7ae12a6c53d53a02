"""Procedural pictures: landscapes whose sky is known to the pixel, and textures without any."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
# In any precision, since drawn colours need little.
Values = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Color = tuple[float, float, float]

# Colours at the top and at the horizon, 0 to 255.
SKIES: dict[str, tuple[Color, Color]] = {
    "blue": ((50, 105, 205), (170, 205, 240)),
    "pale": ((185, 200, 212), (228, 230, 228)),
    "overcast": ((120, 124, 128), (186, 188, 188)),
    "pink": ((200, 130, 165), (238, 195, 190)),
    "green": ((120, 165, 140), (205, 220, 185)),
    "orange": ((215, 105, 45), (250, 200, 110)),
    "night": ((8, 10, 30), (35, 40, 75)),
    "violet": ((85, 65, 130), (205, 150, 175)),
}
_GROUNDS: tuple[Color, ...] = (
    (70, 125, 50),  # grass
    (115, 140, 60),
    (205, 180, 130),  # sand
    (45, 90, 125),  # water
    (60, 120, 120),
    (232, 236, 242),  # snow
    (110, 80, 55),  # soil
    (90, 90, 95),  # road
)
_WALLS: tuple[Color, ...] = ((225, 215, 195), (180, 70, 55), (235, 205, 110), (150, 165, 180), (245, 245, 240))
_ROOFS: tuple[Color, ...] = ((150, 60, 45), (75, 65, 65), (95, 110, 125), (120, 85, 50))
_LEAVES: tuple[Color, ...] = ((40, 95, 40), (80, 120, 45), (180, 110, 40), (60, 80, 60), (170, 140, 50))
# Shapes are drawn this many times larger and then reduced, for smooth edges.
_OVERSAMPLING = 2


@dataclass(frozen=True)
class Scene:
    """A landscape: uint8 height × width × 3, and the mask of its sky, bool height × width."""

    pixels: Pixels
    sky_mask: Mask


def scene(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    skies: tuple[str, ...] = tuple(SKIES),
    photo: Pixels | None = None,
) -> Scene:
    """Return a landscape of height × width `size`: sky, mountains, ground, houses and trees.

    `photo`, of the same size, replaces ground and mountains: real textures under a sky of known shape.
    """
    height, width = size
    horizon = int(height * rng.uniform(0.35, 0.7))
    sky = _sky(rng, size, horizon, skies[rng.integers(len(skies))])
    land = _ground(rng, size, horizon) if photo is None else photo.astype(np.float32)
    layers = _Layers(size)
    layers.ridge(rng, horizon, height * rng.uniform(0.005, 0.06), layer=1)
    mountains = int(rng.integers(0, 3))
    for number in range(mountains):
        layers.ridge(rng, horizon - int(height * 0.06 * number), height * rng.uniform(0.05, 0.16), layer=2 + number)
    result, covered = layers.compose(sky, land, _mountain_colors(rng, mountains) if photo is None else None)
    result, covered = _with_objects(rng, result, covered, horizon)
    pixels = np.clip(result + rng.normal(0, rng.uniform(0, 3), (height, width, 1)), 0, 255).astype(np.uint8)
    return Scene(pixels, covered < 0.5)


def texture(rng: np.random.Generator, size: tuple[int, int]) -> Pixels:
    """Return simple shapes on a noisy ground, height × width × 3: edges, flat colours and grain of every kind."""
    values = _random_color(rng) + noise(rng, size, int(rng.integers(2, 9)))[..., None] * rng.normal(0, 60, 3)
    values += noise(rng, size, int(rng.integers(12, 40)))[..., None] * rng.uniform(0, 40)
    big = PIL.Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    big = big.resize((size[1] * _OVERSAMPLING, size[0] * _OVERSAMPLING), PIL.Image.Resampling.BILINEAR)
    draw = PIL.ImageDraw.Draw(big)
    for _ in range(int(rng.integers(1, 9))):
        _shape(rng, draw, big.size)
    return np.array(big.reduce(_OVERSAMPLING))


def noise(rng: np.random.Generator, size: tuple[int, int], cells: int, stretch: float = 1.0) -> Values:
    """Return smooth noise in [-1, 1], height × width.

    About `cells` bumps fit along the short side; each is `stretch` times as wide as high.
    """
    height, width = size
    rows = max(2, round(cells * height / min(size)))
    columns = max(2, round(cells * width / min(size) / stretch))
    grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    smooth = PIL.Image.fromarray(grid).resize((width, height), PIL.Image.Resampling.BICUBIC)
    clipped: Values = np.clip(np.asarray(smooth), -1, 1)
    return clipped


class _Layers:
    """The layers of a landscape and their shares of each pixel: 1 is the ground, then mountains from near to far."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.alphas: dict[int, Values] = {}

    def ridge(self, rng: np.random.Generator, base: int, roughness: float, layer: int) -> None:
        """Assign everything below an uneven line around row `base` to `layer`."""
        height, width = self.size
        line = _line(rng, width, 5) * roughness if layer == 1 else _jagged(rng, width) * roughness * 2
        rows = np.arange(height, dtype=np.float32)[:, None]
        self.alphas[layer] = np.clip(rows - (base - line)[None, :] + 0.5, 0, 1).astype(np.float32)

    def compose(self, sky: Values, land: Values, mountain_colors: list[Color] | None) -> tuple[Values, Values]:
        """Return the picture, and the share of each pixel that is not sky, 0 to 1."""
        result, covered = sky, np.zeros(self.size, np.float32)
        for layer, alpha in sorted(self.alphas.items(), reverse=True):
            fill = land
            if layer > 1 and mountain_colors is not None:
                shade = 0.85 + 0.15 * land.mean(axis=2, keepdims=True) / max(1.0, float(land.mean()))
                fill = np.array(mountain_colors[layer - 2], np.float32) * shade
            result = result + (fill - result) * alpha[..., None]
            covered = np.maximum(covered, alpha)
        return result, covered


def _sky(rng: np.random.Generator, size: tuple[int, int], horizon: int, kind: str) -> Values:
    height, width = size
    top, bottom = (np.array(color, np.float32) + rng.normal(0, 8, 3).astype(np.float32) for color in SKIES[kind])
    depth = np.clip(np.arange(height, dtype=np.float32) / max(1, horizon), 0, 1)[:, None, None]
    sky: Values = top + (bottom - top) * depth + np.zeros((height, width, 3), np.float32)
    if rng.random() < 0.65:
        amount, color = _clouds(rng, size), np.minimum(255, bottom + rng.uniform(-40, 60))
        sky += (color - sky) * amount[..., None]
    if rng.random() < 0.4:
        sky = _with_sun(rng, sky, horizon, kind)
    return sky


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> Values:
    field = noise(rng, size, 4, 2.0) + 0.5 * noise(rng, size, 9, 2.0) + 0.25 * noise(rng, size, 20, 1.5)
    thickness = (field - rng.uniform(-0.2, 0.5)) * rng.uniform(0.8, 2.5)
    clouds: Values = np.clip(thickness, 0, rng.uniform(0.5, 0.95))
    return clouds


def _with_sun(rng: np.random.Generator, sky: Values, horizon: int, kind: str) -> Values:
    height, width = sky.shape[:2]
    rows, columns = np.ogrid[:height, :width]
    distance = np.hypot(rows - horizon * rng.uniform(0.1, 0.95), columns - width * rng.uniform(0.1, 0.9))
    radius = min(height, width) * rng.uniform(0.03, 0.08)
    color = np.array((235, 235, 220) if kind == "night" else (255, 245, rng.uniform(150, 225)), np.float32)
    disc = np.clip(radius - distance + 0.5, 0, 1)
    glow = 0.5 * np.exp(-((distance / (radius * rng.uniform(2, 5))) ** 2))
    result: Values = sky + (color - sky) * np.maximum(disc, glow)[..., None].astype(np.float32)
    return result


def _ground(rng: np.random.Generator, size: tuple[int, int], horizon: int) -> Values:
    """Return a coloured texture over the whole picture, which gets finer towards the horizon."""
    height = size[0]
    color = np.array(_GROUNDS[rng.integers(len(_GROUNDS))], np.float32) + rng.normal(0, 12, 3).astype(np.float32)
    contrast, stretch = rng.uniform(8, 40), rng.uniform(1, 6)
    grain = noise(rng, size, 10, stretch) + 0.7 * noise(rng, size, 30, stretch) + 0.5 * noise(rng, size, 64, 1.0)
    depth = np.clip((np.arange(height) - horizon) / max(1, height - horizon), 0, 1).astype(np.float32)[:, None]
    shade = grain * contrast * (0.4 + 0.6 * depth) + (depth - 0.5) * rng.uniform(-50, 30)
    tint = rng.uniform(0.7, 1.2, 3).astype(np.float32)
    ground: Values = np.clip(color + shade[..., None] * tint, 0, 255)
    return ground


def _mountain_colors(rng: np.random.Generator, count: int) -> list[Color]:
    near = rng.uniform(30, 120, 3) + rng.uniform(0, 30)
    return [tuple(near + (190 - near) * number / (count + 1)) for number in range(1, count + 1)]


def _line(rng: np.random.Generator, width: int, bends: int) -> Values:
    """Return a curve in [-1, 1] with about `bends` bends, one value for each column."""
    points = rng.uniform(-1, 1, bends + 2)
    return np.interp(np.linspace(0, bends + 1, width), np.arange(bends + 2), points).astype(np.float32)


def _jagged(rng: np.random.Generator, width: int) -> Values:
    """Return the outline of mountains, 0 to 1.5, one value for each column."""
    line = _line(rng, width, 4) + _line(rng, width, 12) / 3 + _line(rng, width, 40) / 10
    return np.clip(0.5 + 0.5 * line, 0, 1.5)


def _with_objects(rng: np.random.Generator, picture: Values, covered: Values, horizon: int) -> tuple[Values, Values]:
    """Add houses, trees and simple shapes, which stand on the ground and reach into the sky."""
    height, width = covered.shape
    layer = PIL.Image.new("RGBA", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    draw = PIL.ImageDraw.Draw(layer)
    feet = sorted(rng.uniform(0, 0.6, int(rng.integers(0, 6))))
    for depth in feet:
        foot = (horizon + depth * (height - horizon)) * _OVERSAMPLING
        tall = height * _OVERSAMPLING * (0.12 + 0.35 * depth) * rng.uniform(0.7, 1.3)
        thing = (_house, _tree, _tree, _conifer, _post)[rng.integers(5)]
        thing(rng, draw, rng.uniform(0, layer.width), foot, tall)
    small = np.asarray(layer.reduce(_OVERSAMPLING), np.float32)
    alpha = small[..., 3] / 255
    return picture + (small[..., :3] - picture) * alpha[..., None], np.maximum(covered, alpha)


def _house(rng: np.random.Generator, draw: PIL.ImageDraw.ImageDraw, x: float, foot: float, tall: float) -> None:
    wide, eaves = tall * rng.uniform(0.8, 1.6), foot - tall * 0.6
    draw.rectangle((x - wide / 2, eaves, x + wide / 2, foot), fill=_pick(rng, _WALLS))
    roof = ((x - wide * 0.58, eaves), (x + wide * 0.58, eaves), (x + wide * rng.uniform(-0.2, 0.2), foot - tall))
    draw.polygon(roof, fill=_pick(rng, _ROOFS))
    pane = wide * 0.13
    glass = _pick(rng, ((60, 75, 95), (245, 225, 140), (30, 30, 40)))
    for step in (-0.3, 0.0, 0.3):
        left = x + wide * step - pane / 2
        draw.rectangle((left, eaves + tall * 0.15, left + pane, eaves + tall * 0.15 + pane * 1.2), fill=glass)
    draw.rectangle((x - pane / 2, foot - tall * 0.25, x + pane / 2, foot), fill=_pick(rng, _ROOFS))


def _tree(rng: np.random.Generator, draw: PIL.ImageDraw.ImageDraw, x: float, foot: float, tall: float) -> None:
    draw.rectangle((x - tall * 0.04, foot - tall * 0.5, x + tall * 0.04, foot), fill=_pick(rng, ((85, 60, 40),)))
    leaf = _pick(rng, _LEAVES)
    for _ in range(9):
        shade = int(rng.integers(-18, 19))
        radius, across, up = tall * rng.uniform(0.1, 0.22), tall * rng.uniform(-0.2, 0.2), tall * rng.uniform(0.45, 0.8)
        box = (x + across - radius, foot - up - radius, x + across + radius, foot - up + radius)
        draw.ellipse(box, fill=(leaf[0] + shade, leaf[1] + shade, leaf[2] + shade, 255))


def _conifer(rng: np.random.Generator, draw: PIL.ImageDraw.ImageDraw, x: float, foot: float, tall: float) -> None:
    leaf = _pick(rng, _LEAVES)
    draw.rectangle((x - tall * 0.03, foot - tall * 0.2, x + tall * 0.03, foot), fill=(70, 50, 35, 255))
    for step in range(3):
        base, wide = foot - tall * (0.15 + 0.25 * step), tall * (0.28 - 0.07 * step)
        draw.polygon(((x - wide, base), (x + wide, base), (x, base - tall * 0.4)), fill=leaf)


def _post(rng: np.random.Generator, draw: PIL.ImageDraw.ImageDraw, x: float, foot: float, tall: float) -> None:
    """Draw a coloured ball or box on the ground."""
    wide = tall * rng.uniform(0.2, 0.5)
    color = (*(int(value) for value in _random_color(rng)), 255)
    if rng.random() < 0.5:
        draw.ellipse((x - wide / 2, foot - wide, x + wide / 2, foot), fill=color)
    else:
        draw.rectangle((x - wide / 2, foot - tall * 0.6, x + wide / 2, foot), fill=color)


def _shape(rng: np.random.Generator, draw: PIL.ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    fill = tuple(int(value) for value in _random_color(rng))
    x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
    wide, tall = rng.uniform(0.05, 0.4, 2) * min(size)
    kind = rng.integers(4)
    if kind == 0:
        draw.ellipse((x - wide, y - tall, x + wide, y + tall), fill=fill)
    elif kind == 1:
        draw.rectangle((x - wide, y - tall, x + wide, y + tall), fill=fill)
    elif kind == 2:
        draw.polygon([(x + a, y + b) for a, b in rng.uniform(-1, 1, (3, 2)) * (wide, tall)], fill=fill)
    else:
        end = (x + rng.uniform(-3, 3) * wide, y + rng.uniform(-3, 3) * tall)
        draw.line((x, y, *end), fill=fill, width=int(rng.integers(1, 12)))


def _random_color(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.uniform(0, 255, 3)


def _pick(rng: np.random.Generator, colors: tuple[Color, ...]) -> tuple[int, int, int, int]:
    """Return one of the colours, slightly changed and opaque."""
    red, green, blue = np.clip(np.array(colors[rng.integers(len(colors))]) + rng.normal(0, 10, 3), 20, 235)
    return int(red), int(green), int(blue), 255
