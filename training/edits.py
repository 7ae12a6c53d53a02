"""Batches of edits, as the text encoder and the transformer are trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from serve_app.models.families import StepwiseQwenImageEditPipeline
from training.data import example
from training.instructions import INSTRUCTIONS
from training.recipe import Run, Stage


def as_tensor(pictures: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """Convert uint8 height × width × 3 to float32 batch × 3 × height × width in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


# Width over height; one for each batch, since a batch has one shape.
ASPECT_RATIOS = (1.0, 1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3)
NO_PROMPT = " "
NO_INSTRUCTION = len(INSTRUCTIONS)
"""The label of an example without a prompt; other labels are places in INSTRUCTIONS."""
# The share of examples without an instruction, from which guidance steers away.
_DROPPED_PROMPTS = 0.1


@dataclass(frozen=True)
class Edits:
    """Batches of edits by seed: pictures as tensors, inputs of the text encoder, labels of the instructions."""

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
        dropped = rng.random(self.batch) < _DROPPED_PROMPTS
        prompts = [NO_PROMPT if no else each.prompt for no, each in zip(dropped, examples, strict=True)]
        texts = self.processor(
            text=[self.template.format(prompt) for prompt in prompts],
            images=[PIL.Image.fromarray(each.source) for each in examples],
            padding=True,
            return_tensors="pt",
        )
        return {
            "source": as_tensor([each.source for each in examples]),
            "target": as_tensor([each.target for each in examples]),
            "labels": torch.tensor(
                [
                    NO_INSTRUCTION if no else INSTRUCTIONS.index(each.instruction)
                    for no, each in zip(dropped, examples, strict=True)
                ]
            ),
            "texts": {name: texts[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")},
        }

    def _size(self, rng: np.random.Generator) -> tuple[int, int]:
        """Return a height and width of about `side`² pixels, in multiples to which the pipeline rounds."""
        ratio, grid = ASPECT_RATIOS[rng.integers(len(ASPECT_RATIOS))], 2 * self.multiple
        width, height = (round(self.side * ratio**power / grid) * grid for power in (0.5, -0.5))
        return max(grid, height), max(grid, width)


def edits_of(
    run: Run, stage: Stage, pipeline: StepwiseQwenImageEditPipeline, photos: Sequence[NDArray[np.uint8]]
) -> Edits:
    """Return the batches of a stage for this pipeline's tokens and texts."""
    return Edits(
        photos, stage.side, run.recipe.multiple, stage.batch, pipeline.processor, pipeline.prompt_template_encode
    )


def embed(pipeline: StepwiseQwenImageEditPipeline, texts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed texts as the pipeline does, with gradients. Padding is on the right, so all rows lose the same template."""
    texts = {name: value.to(pipeline.text_encoder.device) for name, value in texts.items()}
    hidden = pipeline.text_encoder(**texts, output_hidden_states=True).hidden_states[-1]
    first = pipeline.prompt_template_encode_start_idx
    return hidden[:, first:], texts["attention_mask"][:, first:]


def half(device: torch.device) -> torch.autocast:
    """Use bfloat16 on a GPU; on a CPU it gains nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
