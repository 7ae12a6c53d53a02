"""`python -m training.plus`: teach builtin:tiny a second picture. It may be stopped, and continues from there."""

import argparse
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

from serve_app.models.families import StepwiseQwenImageEditPipeline, StepwiseQwenImageEditPlusPipeline
from training import photos
from training.editor import train_editor
from training.plus_card import write_card
from training.recipe import PLUS, Recipe, Run
from training.text import train_text_encoder

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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(PLUS, arguments.folder, device, arguments.seed, arguments.workers)
    pictures = photos.load(arguments.photos)
    torch.manual_seed(run.seed)
    pipeline = extend(arguments.start, run.recipe)
    train_text_encoder(run, pipeline, pictures)
    train_editor(run, pipeline, pictures)
    model = arguments.output or run.folder / "model"
    # Half precision takes half the bytes, and converts to every format of the GPU and of the CPU.
    pipeline.to("cpu", torch.float16).save_pretrained(model)
    write_card(model)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.plus", description=__doc__)
    add = parser.add_argument
    add("--start", type=Path, default=Path("serve_app/models/builtin_tiny"), help="the trained model (%(default)s)")
    add("--folder", type=Path, default=Path("build/training/plus"), help="checkpoints (%(default)s)")
    add("--photos", type=Path, default=Path("build/photos"), help="made by training.photos (%(default)s)")
    add("--output", type=Path, help="the finished model; serve_app/models/builtin_tiny_plus ships it")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=1, help="processes that make examples (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
