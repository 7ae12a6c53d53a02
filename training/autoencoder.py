"""Train the autoencoder on crops of photographs and scenes, edited and not."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data import picture
from training.edits import as_tensor, half
from training.loop import batches, train
from training.parts import build_vae
from training.recipe import Run

# Small, since it only has to keep the latents bounded: the aim is reconstruction.
_SIZE_WEIGHT = 1e-5
_STATISTICS_PICTURES = 64


@dataclass(frozen=True)
class Crops:
    """Batches of pictures by seed: float32, batch × 3 × side × side, in [-1, 1]."""

    photos: Sequence[NDArray[np.uint8]]
    side: int
    batch: int

    def __call__(self, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        return as_tensor([picture(rng, self.photos, (self.side, self.side)) for _ in range(self.batch)])


def train_autoencoder(run: Run, photos: Sequence[NDArray[np.uint8]]) -> Any:
    """Return the trained autoencoder, frozen, with the mean and deviation of its latents in its configuration."""
    recipe = run.recipe
    torch.manual_seed(run.seed)
    vae = build_vae(recipe).to(run.device)

    def loss_of(pictures: torch.Tensor) -> torch.Tensor:
        pictures = pictures.to(run.device).unsqueeze(2)
        with half(run.device):
            # The mode: at first a sample is ten parts noise to one part picture, which slows training down.
            latents = vae.encode(pictures).latent_dist.mode()
            # Not vae.decode, which clamps, and a clamped value has no gradient.
            restored = vae.decoder(vae.post_quant_conv(latents))
        error = restored.float() - pictures
        loss: torch.Tensor = error.abs().mean() + 2 * error.square().mean()
        loss += _SIZE_WEIGHT * latents.float().square().mean()
        return loss

    for stage in recipe.vae_stages:
        crops = Crops(photos, stage.side, stage.batch)
        train(run, "autoencoder", {"vae": vae}, stage, loss_of, partial(batches, crops, run))
    return _with_statistics(vae, run, photos)


@torch.no_grad()
def _with_statistics(vae: Any, run: Run, photos: Sequence[NDArray[np.uint8]]) -> Any:
    """Return the same weights with the statistics of the latents, so that the editor gets mean 0 and deviation 1."""
    pictures = Crops(photos, run.recipe.vae_stages[-1].side, _STATISTICS_PICTURES)(run.seed).to(run.device)
    latents = vae.encode(pictures.unsqueeze(2)).latent_dist.mode()
    mean, std = latents.mean(dim=(0, 2, 3, 4)).tolist(), latents.std(dim=(0, 2, 3, 4)).tolist()
    measured = build_vae(run.recipe, mean=mean, std=std).to(run.device)
    measured.load_state_dict(vae.state_dict())
    return measured.eval().requires_grad_(False)
