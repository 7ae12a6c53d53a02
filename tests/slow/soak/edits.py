"""The valid edits of the soak: distinct requests, each of which has one right answer."""

import io
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from serve_app.request import Pixels
from tests.scenes import scene

DISTINCT = 24
# Square and oblong, of a few hundred pixels and of a million, beside each other in one forward.
_SIDES = (48, 64, 96, 130, 200)
_PHOTO = (1200, 900)
_OUTPUTS = ("64x64", "80x48", "50x70", "40x120", "128x96", "original")
_PROMPTS = ("make the sky blue", "turn it into a sketch", "make it grayscale", "mirror it", "blur it", "x" * 300)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


@dataclass(frozen=True)
class Edit:
    """A valid edit: `files` and `fields` as sent, and `key`, its number."""

    key: int
    files: tuple[bytes, ...]
    fields: dict[str, str]

    @property
    def outputs(self) -> int:
        return len(self.files) * int(self.fields["n"])

    def form(self, **more: str) -> dict[str, Any]:
        """Return the arguments for httpx."""
        files = [("images", (f"{k}.img", data)) for k, data in enumerate(self.files)]
        return {"files": files, "data": {**self.fields, **more}}


def distinct_edits(rng: random.Random) -> list[Edit]:
    return [_edit(key, rng) for key in range(DISTINCT)]


def _edit(key: int, rng: random.Random) -> Edit:
    pictures = rng.choice((1, 1, 1, 2, 3))
    sizes = [(rng.choice(_SIDES), rng.choice(_SIDES)) for _ in range(pictures)]
    fields = {
        "prompt": rng.choice(_PROMPTS),
        "n": str(rng.choice((1, 1, 2))),
        "seed": str(1000 * key),
        "num_inference_steps": str(rng.choice((1, 2, 4))),
        "guidance_scale": rng.choice(("1", "2.5")),
    }
    if rng.random() < 0.4:
        fields["size"] = rng.choice(_OUTPUTS)
    elif rng.random() < 0.2:
        sizes[0] = _PHOTO
    files = tuple(_file(scene(10 * key + k, *size), rng.choice(_FORMATS)) for k, size in enumerate(sizes))
    return Edit(key, files, fields)


def _file(pixels: Pixels, file_format: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


def read(data: bytes) -> Pixels:
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
