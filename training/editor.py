"""Train the transformer, by flow matching, on pictures before and after an edit."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.models.packed import Grid, Layout, RowShape
from serve_app.models.pipeline import StepwisePipeline
from training.edits import Edits, edits_of, embed, half
from training.loop import batches, train
from training.recipe import Run

# Encoded batches that are kept when examples are used more than once.
_POOL = 48


def train_editor(run: Run, pipeline: StepwisePipeline, photos: Sequence[NDArray[np.uint8]]) -> None:
    """Train the pipeline's transformer in place, at one picture size after the other."""
    pipeline.to(run.device)
    models = {"transformer": pipeline.transformer.train()}
    for stage in run.recipe.edit_stages:
        edits = edits_of(run, stage, pipeline, photos)
        train(run, "editor", models, stage, partial(_loss, pipeline), partial(_encoded, pipeline, edits, run))
    pipeline.transformer.eval()


@dataclass(frozen=True)
class Encoded:
    """A batch on the device: packed latents, text with its mask, and the transformer's grid of tokens.

    `references`: those of each example end to end.
    """

    target: torch.Tensor
    references: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor
    grid: Grid


def _encoded(pipeline: StepwisePipeline, edits: Edits, run: Run, step: int) -> Iterator[Encoded]:
    """Yield batches from the `step`-th on, each `edit_uses` times on average and mixed with others."""
    uses = run.recipe.edit_uses
    rng = random.Random(step)
    pool: deque[Encoded] = deque(maxlen=_POOL)
    for batch in batches(edits, run, step // uses):
        pool.append(_encode(pipeline, batch, run))
        yield pool[-1]
        for _ in range(uses - 1):
            yield rng.choice(pool)


@torch.no_grad()
def _encode(pipeline: StepwisePipeline, batch: dict[str, Any], run: Run) -> Encoded:
    height, width = (side // run.recipe.multiple for side in batch["target"].shape[2:])
    with half(run.device):
        text, mask = embed(pipeline, batch["texts"])
        return Encoded(
            target=_latents(pipeline, batch["target"].to(run.device)),
            references=torch.cat([_latents(pipeline, each.to(run.device)) for each in batch["sources"]], dim=1),
            text=text,
            mask=mask,
            grid=(height, width),
        )


def _loss(pipeline: StepwisePipeline, batch: Encoded) -> torch.Tensor:
    """Return the loss of flow matching: predict noise minus picture from a mix of both."""
    target, count = batch.target, len(batch.target)
    noise = torch.randn_like(target)
    sigma = _noise_levels(count, target.device)
    with half(target.device):
        image = torch.cat([(1 - sigma) * target + sigma * noise, batch.references], dim=1).flatten(0, 1)
        grids = (batch.grid,) * (batch.references.shape[1] // target.shape[1])
        rows = [RowShape(batch.grid, grids, length) for length in batch.mask.sum(dim=1).tolist()]
        layout = Layout(rows, pipeline.transformer, target.device)
        text = batch.text[batch.mask.bool()]
        predicted = pipeline.transformer(image, text, sigma.flatten(), layout).view_as(target)
    loss: torch.Tensor = (predicted.float() - (noise - target).float()).square().mean()
    return loss


def _noise_levels(count: int, device: torch.device) -> torch.Tensor:
    """Return shares of noise, count × 1 × 1: half uniform, half around the middle, where the picture takes shape."""
    even = torch.rand(count, 1, 1, device=device)
    middle = torch.sigmoid(0.3 + torch.randn(count, 1, 1, device=device))
    return torch.where(torch.rand(count, 1, 1, device=device) < 0.5, even, middle)


def _latents(pipeline: StepwisePipeline, pictures: torch.Tensor) -> torch.Tensor:
    latents = pipeline._encode_vae_image(pictures.unsqueeze(2), generator=None)
    packed: torch.Tensor = pipeline._pack_latents(latents, len(latents), latents.shape[1], *latents.shape[3:])
    return packed
