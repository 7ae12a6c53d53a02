"""Train the text encoder to classify instructions, whatever their words and whatever the picture.

Training it together with the transformer takes many times longer, since the transformer uses the text late.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from serve_app.models.pipeline import StepwisePipeline
from training.edits import NO_INSTRUCTION, edits_of, embed, half
from training.loop import batches, train
from training.recipe import Run


def train_text_encoder(run: Run, pipeline: StepwisePipeline, photos: Sequence[NDArray[np.uint8]]) -> None:
    """Train the pipeline's text encoder in place, under a classifier that is discarded, and freeze it."""
    pipeline.to(run.device)
    encoder, stage = pipeline.text_encoder.train(), run.recipe.text_stage
    classifier = nn.Linear(run.recipe.text_width, NO_INSTRUCTION + 1).to(run.device)

    def loss_of(batch: dict[str, Any]) -> torch.Tensor:
        with half(run.device):
            text, mask = embed(pipeline, batch["texts"])
            kept = mask.unsqueeze(-1)
            scores = classifier((text * kept).sum(dim=1) / kept.sum(dim=1))
        return nn.functional.cross_entropy(scores.float(), batch["labels"].to(run.device))

    models = {"text_encoder": encoder, "classifier": classifier}
    train(run, "text", models, stage, loss_of, partial(batches, edits_of(run, stage, pipeline, photos), run))
    encoder.eval().requires_grad_(False)
