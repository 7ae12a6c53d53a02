"""What is trained, and for how long: the sizes of the model and of its training, in one place."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Recipe:
    """Sizes in pixels, widths in channels, lengths of training in optimiser steps."""

    native_side: int
    vae_width: int
    vae_levels: tuple[int, ...]
    vae_crop: int
    vae_batch: int
    vae_steps: int
    vae_rate: float
    text_width: int
    width: int
    heads: int
    layers: int
    edit_batch: int
    # (side in pixels, steps): small first, which is many times cheaper, then the native size.
    edit_stages: tuple[tuple[int, int], ...]
    edit_rate: float

    @property
    def multiple(self) -> int:
        """Pixels of one side of a transformer token: two latents, each of one pixel at the deepest level."""
        return int(2 ** len(self.vae_levels))


# Made for half an hour of one large GPU; not yet run on one.
GPU = Recipe(
    native_side=256,
    vae_width=24,
    vae_levels=(1, 2, 4, 4),
    vae_crop=128,
    vae_batch=64,
    vae_steps=12_000,
    vae_rate=4e-4,
    text_width=128,
    width=192,
    heads=6,
    layers=5,
    edit_batch=128,
    edit_stages=((128, 12_000), (256, 10_000)),
    edit_rate=6e-4,
)
# Some hours of two CPU cores. An autoencoder that compresses 4 times learns many times faster than one of 8.
CPU = Recipe(
    native_side=128,
    vae_width=16,
    vae_levels=(1, 2, 4),
    vae_crop=64,
    vae_batch=8,
    vae_steps=6_000,
    vae_rate=4e-4,
    text_width=64,
    width=128,
    heads=4,
    layers=6,
    edit_batch=16,
    edit_stages=((64, 16_000), (128, 1_500)),
    edit_rate=6e-4,
)
# A minute: shows that everything fits together, and nothing else.
SMOKE = Recipe(
    native_side=64,
    vae_width=8,
    vae_levels=(1, 2, 4),
    vae_crop=32,
    vae_batch=2,
    vae_steps=3,
    vae_rate=4e-4,
    text_width=32,
    width=32,
    heads=2,
    layers=2,
    edit_batch=2,
    edit_stages=((32, 2), (64, 2)),
    edit_rate=6e-4,
)
RECIPES = {"gpu": GPU, "cpu": CPU, "smoke": SMOKE}


@dataclass(frozen=True)
class Run:
    """One training run: its recipe, where it keeps its files, where it computes, and how its numbers are drawn."""

    recipe: Recipe
    folder: Path
    device: torch.device
    seed: int = 0
    workers: int = 1
