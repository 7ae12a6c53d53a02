"""The recipe: the sizes of the model and the stages of its training, in one place."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch


@dataclass(frozen=True)
class Stage:
    """A stage of a training: `steps` batches of `batch` pictures of about `side`² pixels, at a peak learning `rate`."""

    side: int
    batch: int
    steps: int
    rate: float


@dataclass(frozen=True)
class Recipe:
    """A recipe. Sides in pixels, widths in channels. Stages go from small, cheap pictures to the native size."""

    native_side: int
    vae_width: int
    vae_levels: tuple[int, ...]
    vae_stages: tuple[Stage, ...]
    text_width: int
    text_stage: Stage
    width: int
    heads: int
    layers: int
    edit_stages: tuple[Stage, ...]
    # Uses of an example, each with other noise: making and encoding an example costs half a step.
    edit_uses: int

    @property
    def multiple(self) -> int:
        """Pixels of a side of a transformer token, which is two latents, each of one pixel at the deepest level."""
        return int(2 ** len(self.vae_levels))


# Meant for half an hour of one large GPU; not yet run on one.
GPU = Recipe(
    native_side=256,
    vae_width=24,
    vae_levels=(1, 2, 4, 4),
    vae_stages=(Stage(side=64, batch=64, steps=8_000, rate=3e-3), Stage(side=128, batch=32, steps=2_000, rate=1e-3)),
    text_width=128,
    text_stage=Stage(side=64, batch=64, steps=1_500, rate=2e-3),
    width=192,
    heads=6,
    layers=5,
    edit_stages=(Stage(side=128, batch=128, steps=8_000, rate=1e-2), Stage(side=256, batch=64, steps=6_000, rate=4e-3)),
    edit_uses=1,
)
# Three hours of two CPU cores. An autoencoder that compresses 4 times learns many times faster than one of 8.
CPU = Recipe(
    native_side=128,
    vae_width=16,
    vae_levels=(1, 2, 4),
    vae_stages=(Stage(side=32, batch=8, steps=3_000, rate=3e-3), Stage(side=64, batch=8, steps=400, rate=1e-3)),
    text_width=64,
    text_stage=Stage(side=64, batch=32, steps=600, rate=2e-3),
    width=128,
    heads=4,
    layers=6,
    edit_stages=(Stage(side=64, batch=16, steps=2_400, rate=1e-2), Stage(side=128, batch=8, steps=5_000, rate=5e-3)),
    edit_uses=4,
)
# The model that sees two pictures, from the weights of the one that CPU makes: half an hour of one CPU core.
PLUS = replace(
    CPU,
    native_side=64,
    text_stage=Stage(side=64, batch=16, steps=420, rate=2e-3),
    edit_stages=(Stage(side=64, batch=16, steps=1_560, rate=5e-3),),
)
# A minute, to show that everything fits together.
SMOKE = Recipe(
    native_side=64,
    vae_width=8,
    vae_levels=(1, 2, 4),
    vae_stages=(Stage(side=32, batch=2, steps=3, rate=3e-3),),
    text_width=32,
    text_stage=Stage(side=64, batch=2, steps=2, rate=2e-3),
    width=32,
    heads=2,
    layers=2,
    edit_stages=(Stage(side=32, batch=2, steps=2, rate=1e-2), Stage(side=64, batch=2, steps=2, rate=3e-3)),
    edit_uses=2,
)
RECIPES = {"gpu": GPU, "cpu": CPU, "smoke": SMOKE}


@dataclass(frozen=True)
class Run:
    """One training run: its recipe, the folder of its files, its device, its seed, and its worker processes."""

    recipe: Recipe
    folder: Path
    device: torch.device
    seed: int = 0
    workers: int = 1
