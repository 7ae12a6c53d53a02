"""The edits that callers send: a few kinds, each always with the same picture, prompt and seed."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image

from serve_app.images.geometry import Size
from serve_app.request import EditRequest, Pixels
from serve_app.settings import PresetSettings

_BOUNDARY = "benchmark-8c1f0e"
CONTENT_TYPE = f"multipart/form-data; boundary={_BOUNDARY}"


@dataclass(frozen=True, slots=True)
class Effort:
    """Denoising steps of the plain edits, and of the short and long ones of mixed traffic. All are guided.

    `side`: of pictures and of the native size, in pixels. At 128² one sample nearly fills two cores; at 64² merging
    gains more, and a quarter of an hour holds more edits (`python -m benchmarks.engine.stages`).
    `photo_side`: of the native size for the photos of strangers: at 64² `auto` gives nine aspect ratios four shapes, at
    72² seven.

    Few steps, so that ten minutes hold many edits; at least 2, since diffusers 0.42 makes NaN of one step.
    """

    plain: int = 4
    few: int = 2
    many: int = 12
    side: int = 64
    photo_side: int = 72


@dataclass(frozen=True, slots=True)
class Edit:
    """One kind of edit. `weight`: its share of mixed traffic. `side`: of the output in pixels, None for `auto`.

    The reference keeps the native area (`fit=free`), as in the stock pipeline of the other contenders. `preset`: a name
    of PRESETS, which then sets steps and guidance; for our server only.
    """

    name: str
    picture_seed: int
    prompt: str
    steps: int
    picture: Size
    n: int = 1
    side: int | None = None
    weight: float = 1.0
    preset: str | None = None

    @property
    def seed(self) -> int:
        return 1000 * self.picture_seed

    def request(self) -> EditRequest:
        """Return the edit as a request, for a run without HTTP."""
        return EditRequest(
            images=[scene(self.picture_seed, self.picture)],
            prompt=self.prompt,
            n=self.n,
            size=Size(self.side, self.side) if self.side else None,
            fit="free" if self.side else "cover",
            num_inference_steps=None if self.preset else self.steps,
            preset=self.preset,
            seed=self.seed,
        )

    def body(self) -> bytes:
        """Return the edit as a multipart form of CONTENT_TYPE."""
        size = f"{self.side}x{self.side}" if self.side else "auto"
        fields = {
            "prompt": self.prompt,
            "n": self.n,
            "size": size,
            "fit": "free" if self.side else "cover",
            "seed": self.seed,
            **({"preset": self.preset} if self.preset else {"num_inference_steps": self.steps}),
        }
        parts = [_part(f'name="{name}"', str(value).encode()) for name, value in fields.items()]
        picture = png(scene(self.picture_seed, self.picture))
        parts.append(_part('name="images"; filename="0.png"\r\nContent-Type: image/png', picture))
        return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()


def _part(disposition: str, content: bytes) -> bytes:
    return f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"


def scene(seed: int, size: Size) -> Pixels:
    """Return a picture: a 6 × 6 grid of random colours, smoothly enlarged."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(grid).resize((size.width, size.height), PIL.Image.Resampling.BICUBIC))


def png(pixels: Pixels) -> bytes:
    """Return the picture as a PNG file."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# Of unequal lengths, as callers' prompts are.
_PROMPTS = (
    "make the sky blue",
    "enhance colors",
    "make the scene brighter and more vivid, as on a clear morning after rain",
    "turn it into black and white",
)

_ASPECTS = {
    "phone, 4:3": 4 / 3,
    "phone, 3:4": 3 / 4,
    "phone, 16:9": 16 / 9,
    "phone, 9:16": 9 / 16,
    "camera, 3:2": 3 / 2,
    "camera, 2:3": 2 / 3,
    "screenshot, 9:19.5": 9 / 19.5,
    "screenshot, 16:10": 16 / 10,
    "square": 1.0,
}
"""Aspect ratios, width by height, of what people have."""


def plain(effort: Effort) -> tuple[Edit, ...]:
    """Return four edits alike in cost: one picture, one variant, one size."""
    return tuple(
        Edit(f"plain {k}", picture_seed=k, prompt=prompt, steps=effort.plain, picture=Size(effort.side, effort.side))
        for k, prompt in enumerate(_PROMPTS, start=1)
    )


def mixed(effort: Effort) -> tuple[Edit, ...]:
    """Return eight edits unlike in cost: few steps (40 %) or many, n of 1 to 4, native size or half its side."""
    few, many, half = effort.few, effort.many, effort.side // 2
    kinds: Sequence[tuple[int, int, int | None, float]] = (
        (few, 1, None, 0.14),
        (few, 1, half, 0.12),
        (few, 2, None, 0.08),
        (few, 4, half, 0.06),
        (many, 1, None, 0.20),
        (many, 1, half, 0.18),
        (many, 2, half, 0.12),
        (many, 3, None, 0.10),
    )
    return tuple(
        Edit(
            name=f"{steps} steps, n={n}, {side or effort.side} px",
            picture_seed=10 + k,
            prompt=_PROMPTS[k % len(_PROMPTS)],
            steps=steps,
            picture=Size(effort.side, effort.side),
            n=n,
            side=side,
            weight=weight,
        )
        for k, (steps, n, side, weight) in enumerate(kinds)
    )


DRAFT = "draft"
PRESETS = {DRAFT: PresetSettings(steps=2, guidance=1)}
"""Those of our server: half the steps of a plain edit, and one row in place of two."""


def with_presets(effort: Effort) -> tuple[Edit, ...]:
    """Return the plain edits, and then the same by the preset `draft`."""
    full = plain(effort)
    return (*full, *(replace(edit, name=f"{edit.name}, {DRAFT}", preset=DRAFT) for edit in full))


def photos(effort: Effort) -> tuple[Edit, ...]:
    """Return plain edits of pictures with the aspect ratios of phones, cameras and screenshots; `size` is `auto`."""
    return tuple(
        Edit(name, 30 + k, _PROMPTS[k % len(_PROMPTS)], effort.plain, _size(effort.photo_side, aspect))
        for k, (name, aspect) in enumerate(_ASPECTS.items())
    )


def _size(side: int, aspect: float) -> Size:
    """Return the size of that aspect ratio with the area of a square of `side` pixels."""
    return Size(round(side * math.sqrt(aspect)), round(side / math.sqrt(aspect)))
