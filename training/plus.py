"""`python -m training.plus`: teach builtin:tiny a second picture. It may be stopped, and continues from there."""

import argparse
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

from serve_app.models.families import StepwiseQwenImageEditPipeline, StepwiseQwenImageEditPlusPipeline
from training import photos
from training.command import add_options, find_device, train
from training.plus_card import write_card
from training.recipe import PLUS, Recipe, Run

TEXT_SIDE = 64
"""The side in pixels of a square picture for the text encoder."""


def extend(folder: Path, recipe: Recipe) -> StepwiseQwenImageEditPlusPipeline:
    """Return a pipeline for two pictures with the weights of the one for one picture in `folder`.

    As in Qwen-Image-Edit-2511, the transformer is told that the pictures it reads have no noise (`zero_cond_t`).
    """
    tiny = StepwiseQwenImageEditPipeline.from_pretrained(folder, dtype=torch.float32)
    parts = dict(tiny.components)
    transformer = QwenImageTransformer2DModel.from_config({**parts["transformer"].config, "zero_cond_t": True})
    transformer.load_state_dict(parts["transformer"].state_dict())
    return StepwiseQwenImageEditPlusPipeline(
        **{**parts, "transformer": transformer},
        native_area=recipe.native_side**2,
        grid_positions=False,
        text_area=TEXT_SIDE**2,
    )


def main() -> None:
    arguments = _parse()
    run = Run(PLUS, arguments.folder, find_device(), arguments.seed, arguments.workers)
    pictures = photos.load(arguments.photos)
    torch.manual_seed(run.seed)
    pipeline = extend(arguments.start, run.recipe)
    write_card(train(run, pipeline, pictures, arguments.output))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.plus", description=__doc__)
    start = Path("serve_app/models/builtin_tiny")
    parser.add_argument("--start", type=Path, default=start, help="the trained model (%(default)s)")
    add_options(parser, Path("build/training/plus"), "serve_app/models/builtin_tiny_plus")
    return parser.parse_args()


if __name__ == "__main__":
    main()
