"""Pictures for tests with the real model: smooth, strongly coloured, each unlike the others."""

import numpy as np
import PIL.Image

from serve_app.request import Pixels


def scene(seed: int, width: int = 256, height: int = 256) -> Pixels:
    """Return a 6 × 6 grid of random colours, smoothly enlarged."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(grid).resize((width, height), PIL.Image.Resampling.BICUBIC))


def difference(one: Pixels, other: Pixels) -> int:
    """Return the largest difference of any value, of 255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())
