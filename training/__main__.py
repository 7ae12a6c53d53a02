"""`python -m training`: the recipe of builtin:tiny. It may be stopped at any time; the same command continues."""

import argparse
from pathlib import Path

import torch

from training import photos
from training.autoencoder import train_autoencoder
from training.editor import train_editor
from training.edits import NO_PROMPT
from training.evaluate import write_card
from training.instructions import INSTRUCTIONS
from training.parts import build_pipeline
from training.recipe import RECIPES, Run
from training.text import train_text_encoder


def main() -> None:
    arguments = _parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = arguments.recipe or ("gpu" if device.type == "cuda" else "cpu")
    run = Run(RECIPES[name], arguments.folder / name, device, arguments.seed, arguments.workers)
    pictures = photos.load(arguments.photos)
    vae = train_autoencoder(run, pictures)
    torch.manual_seed(run.seed)
    wordings = [wording for instruction in INSTRUCTIONS for wording in instruction.wordings]
    pipeline = build_pipeline(run.recipe, vae, [NO_PROMPT, *wordings])
    train_text_encoder(run, pipeline, pictures)
    train_editor(run, pipeline, pictures)
    model = arguments.output or run.folder / "model"
    # Half precision takes half the bytes, and converts to every format of the GPU and of the CPU.
    pipeline.to("cpu", torch.float16).save_pretrained(model)
    write_card(model)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="gpu where there is one, else cpu")
    parser.add_argument("--folder", type=Path, default=Path("build/training"), help="checkpoints (%(default)s)")
    parser.add_argument(
        "--photos", type=Path, default=Path("build/photos"), help="made by training.photos (%(default)s)"
    )
    parser.add_argument("--output", type=Path, help="the finished model; serve_app/models/builtin_tiny ships it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that make examples (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
