"""Train text encoder and transformer together, by flow matching, on pictures and what instructions make of them."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from serve_app.pipeline import StepwiseQwenImageEditPipeline
from training.autoencoder import as_tensor
from training.data import example
from training.loop import batches, train
from training.recipe import Run

# Width over height; one a batch, since a batch shares its shape.
ASPECT_RATIOS = (1.0, 1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3)
NO_PROMPT = " "
# The share of examples without an instruction: what guidance steers away from.
_DROPPED_PROMPTS = 0.1
# Encoded batches at hand when examples are used more than once.
_POOL = 48


@dataclass(frozen=True)
class Edits:
    """Batches of edits by seed: pictures as tensors, texts as the text encoder takes them."""

    photos: Sequence[NDArray[np.uint8]]
    side: int
    multiple: int
    batch: int
    processor: Any
    template: str

    def __call__(self, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        size = self._size(rng)
        examples = [example(rng, self.photos, size) for _ in range(self.batch)]
        prompts = [NO_PROMPT if rng.random() < _DROPPED_PROMPTS else each.prompt for each in examples]
        texts = self.processor(
            text=[self.template.format(prompt) for prompt in prompts],
            images=[PIL.Image.fromarray(each.source) for each in examples],
            padding=True,
            return_tensors="pt",
        )
        return {
            "source": as_tensor([each.source for each in examples]),
            "target": as_tensor([each.target for each in examples]),
            "texts": {name: texts[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")},
        }

    def _size(self, rng: np.random.Generator) -> tuple[int, int]:
        """Height and width of about `side`² pixels, in the steps that the pipeline rounds to."""
        ratio, grid = ASPECT_RATIOS[rng.integers(len(ASPECT_RATIOS))], 2 * self.multiple
        width, height = (round(self.side * ratio**power / grid) * grid for power in (0.5, -0.5))
        return max(grid, height), max(grid, width)


def train_editor(run: Run, pipeline: StepwiseQwenImageEditPipeline, photos: Sequence[NDArray[np.uint8]]) -> None:
    """Train the pipeline's text encoder and transformer in place, at one picture size after the other."""
    pipeline.to(run.device)
    models = {"text_encoder": pipeline.text_encoder.train(), "transformer": pipeline.transformer.train()}
    for stage in run.recipe.edit_stages:
        edits = Edits(
            photos,
            stage.side,
            run.recipe.multiple,
            stage.batch,
            pipeline.processor,
            pipeline.prompt_template_encode,
        )
        train(run, "editor", models, stage, partial(_loss, pipeline), partial(_encoded, pipeline, edits, run))
    for model in models.values():
        model.eval()


@dataclass(frozen=True)
class Encoded:
    """A batch on the device: packed latents, texts, and the transformer's grid of tokens."""

    target: torch.Tensor
    reference: torch.Tensor
    texts: dict[str, torch.Tensor]
    grid: tuple[int, int, int]


def _encoded(pipeline: StepwiseQwenImageEditPipeline, edits: Edits, run: Run, step: int) -> Iterator[Encoded]:
    """Batches from the `step`-th on, each used `edit_uses` times, among others, before it is forgotten."""
    uses = run.recipe.edit_uses
    rng = random.Random(step)
    pool: deque[Encoded] = deque(maxlen=_POOL)
    for batch in batches(edits, run, step // uses):
        pool.append(_encode(pipeline, batch, run))
        yield pool[-1]
        for _ in range(uses - 1):
            yield rng.choice(pool)


@torch.no_grad()
def _encode(pipeline: StepwiseQwenImageEditPipeline, batch: dict[str, Any], run: Run) -> Encoded:
    height, width = (side // run.recipe.multiple for side in batch["target"].shape[2:])
    with _half(run.device):
        return Encoded(
            target=_latents(pipeline, batch["target"].to(run.device)),
            reference=_latents(pipeline, batch["source"].to(run.device)),
            texts={name: value.to(run.device) for name, value in batch["texts"].items()},
            grid=(1, height, width),
        )


def _half(device: torch.device) -> torch.autocast:
    # On a CPU bfloat16 gains nothing.
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _loss(pipeline: StepwiseQwenImageEditPipeline, batch: Encoded) -> torch.Tensor:
    """Flow matching: from a mix of picture and noise, predict the way from the picture to the noise."""
    target, count = batch.target, len(batch.target)
    noise = torch.randn_like(target)
    sigma = _noise_levels(count, target.device)
    with _half(target.device):
        text, mask = _embed(pipeline, batch.texts)
        predicted = pipeline.transformer(
            hidden_states=torch.cat([(1 - sigma) * target + sigma * noise, batch.reference], dim=1),
            timestep=sigma.flatten(),
            encoder_hidden_states=text,
            encoder_hidden_states_mask=mask,
            img_shapes=[[batch.grid, batch.grid]] * count,
            return_dict=False,
        )[0][:, : target.shape[1]]
    loss: torch.Tensor = (predicted.float() - (noise - target).float()).square().mean()
    return loss


def _noise_levels(count: int, device: torch.device) -> torch.Tensor:
    """Shares of noise, count × 1 × 1: half of them evenly spread, half in the middle, where the picture is decided."""
    even = torch.rand(count, 1, 1, device=device)
    middle = torch.sigmoid(0.3 + torch.randn(count, 1, 1, device=device))
    return torch.where(torch.rand(count, 1, 1, device=device) < 0.5, even, middle)


def _latents(pipeline: StepwiseQwenImageEditPipeline, pictures: torch.Tensor) -> torch.Tensor:
    latents = pipeline._encode_vae_image(pictures.unsqueeze(2), generator=None)
    packed: torch.Tensor = pipeline._pack_latents(latents, len(latents), latents.shape[1], *latents.shape[3:])
    return packed


def _embed(
    pipeline: StepwiseQwenImageEditPipeline, texts: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the pipeline's own, with gradients: padding is on the right, so the template is cut off all rows alike."""
    hidden = pipeline.text_encoder(**texts, output_hidden_states=True).hidden_states[-1]
    first = pipeline.prompt_template_encode_start_idx
    return hidden[:, first:], texts["attention_mask"][:, first:]
