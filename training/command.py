"""What the commands of both recipes share: their options, and the training of a pipeline to the finished model."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.models.pipeline import StepwisePipeline
from training.editor import train_editor
from training.recipe import Run
from training.text import train_text_encoder


def add_options(parser: argparse.ArgumentParser, folder: Path, shipped: str) -> None:
    """Add the options of every recipe. `folder`: the default for checkpoints; `shipped`: the model's folder here."""
    add = parser.add_argument
    add("--folder", type=Path, default=folder, help="checkpoints (%(default)s)")
    add("--photos", type=Path, default=Path("build/photos"), help="made by training.photos (%(default)s)")
    add("--output", type=Path, help=f"the finished model; {shipped} ships it")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=1, help="processes that make examples (%(default)s)")


def find_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(run: Run, pipeline: StepwisePipeline, pictures: Sequence[NDArray[np.uint8]], output: Path | None) -> Path:
    """Train a pipeline, but for its autoencoder, and save it. Return its folder: `output`, else in that of the run."""
    train_text_encoder(run, pipeline, pictures)
    train_editor(run, pipeline, pictures)
    model = output or run.folder / "model"
    # Half precision takes half the bytes, and converts to every format of the GPU and of the CPU.
    pipeline.to("cpu", torch.float16).save_pretrained(model)
    return model
