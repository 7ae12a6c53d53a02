"""Batches of edits, as the text encoder and the transformer are trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from serve_app.images.geometry import Geometry, Size
from serve_app.images.pixels import resize
from serve_app.models.pipeline import StepwisePipeline
from training.data import example, example_of_two
from training.instructions import INSTRUCTIONS, Instruction
from training.pairs import PAIRS, Pair
from training.recipe import Run, Stage


def as_tensor(pictures: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """Convert uint8 height × width × 3 to float32 batch × 3 × height × width in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


# Width over height; one for each batch, since a batch has one shape.
ASPECT_RATIOS = (1.0, 1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3)
NO_PROMPT = " "
LABELS: tuple[Instruction | Pair, ...] = (*INSTRUCTIONS, *PAIRS)
"""The instructions in the order of their labels."""
NO_INSTRUCTION = len(LABELS)
"""The label of an example without a prompt."""
# The share of examples without an instruction, from which guidance steers away.
_DROPPED_PROMPTS = 0.1
# The share of batches with two pictures each, if the model takes two.
_TWO_SHARE = 0.8


@dataclass(frozen=True)
class Edits:
    """Batches of edits by seed: pictures as tensors, inputs of the text encoder, labels of the instructions.

    `templates`: for an edit of one picture and, if the model takes two, for one of two.
    """

    photos: Sequence[NDArray[np.uint8]]
    side: int
    geometry: Geometry
    batch: int
    processor: Any
    templates: tuple[str, ...]

    def __call__(self, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        size = self._size(rng)
        two = len(self.templates) > 1 and rng.random() < _TWO_SHARE
        draw, template = (example_of_two, self.templates[1]) if two else (example, self.templates[0])
        examples = [draw(rng, self.photos, size) for _ in range(self.batch)]
        dropped = rng.random(self.batch) < _DROPPED_PROMPTS
        prompts = [NO_PROMPT if no else each.prompt for no, each in zip(dropped, examples, strict=True)]
        texts = self.processor(
            text=[template.format(prompt) for prompt in prompts],
            images=[self._seen(picture) for each in examples for picture in each.sources],
            padding=True,
            return_tensors="pt",
        )
        return {
            "sources": [as_tensor(pictures) for pictures in zip(*(each.sources for each in examples), strict=True)],
            "target": as_tensor([each.target for each in examples]),
            "labels": torch.tensor(
                [
                    NO_INSTRUCTION if no else LABELS.index(each.instruction)
                    for no, each in zip(dropped, examples, strict=True)
                ]
            ),
            "texts": {name: texts[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")},
        }

    def _seen(self, picture: NDArray[np.uint8]) -> PIL.Image.Image:
        """Return a picture as the text encoder sees it."""
        if self.geometry.text_area is not None:
            height, width = picture.shape[:2]
            picture = resize(picture, self.geometry.view(Size(width, height)).text_size)
        return PIL.Image.fromarray(picture)

    def _size(self, rng: np.random.Generator) -> tuple[int, int]:
        """Return a height and width of about `side`² pixels, in multiples to which the pipeline rounds."""
        ratio, grid = ASPECT_RATIOS[rng.integers(len(ASPECT_RATIOS))], 2 * self.geometry.token_side
        width, height = (round(self.side * ratio**power / grid) * grid for power in (0.5, -0.5))
        return max(grid, height), max(grid, width)


def edits_of(run: Run, stage: Stage, pipeline: StepwisePipeline, photos: Sequence[NDArray[np.uint8]]) -> Edits:
    """Return the batches of a stage for this pipeline's tokens and texts."""
    templates = tuple(pipeline._template(pictures) for pictures in range(1, min(2, pipeline.max_references) + 1))
    return Edits(photos, stage.side, pipeline.geometry, stage.batch, pipeline.processor, templates)


def embed(pipeline: StepwisePipeline, texts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed texts as the pipeline does, with gradients. Padding is on the right, so all rows lose the same template."""
    texts = {name: value.to(pipeline.text_encoder.device) for name, value in texts.items()}
    hidden = pipeline.text_encoder(**texts, output_hidden_states=True).hidden_states[-1]
    first = pipeline.prompt_template_encode_start_idx
    return hidden[:, first:], texts["attention_mask"][:, first:]


def half(device: torch.device) -> torch.autocast:
    """Use bfloat16 on a GPU; on a CPU it gains nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
