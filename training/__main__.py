"""`python -m training`: the recipe of builtin:tiny. It may be stopped at any time; the same command continues."""

import argparse
from pathlib import Path

import torch

from training import photos
from training.autoencoder import train_autoencoder
from training.command import add_options, find_device, train
from training.edits import NO_PROMPT
from training.evaluate import write_card
from training.instructions import INSTRUCTIONS
from training.parts import build_pipeline
from training.recipe import RECIPES, Run


def main() -> None:
    arguments = _parse()
    device = find_device()
    name = arguments.recipe or ("gpu" if device.type == "cuda" else "cpu")
    run = Run(RECIPES[name], arguments.folder / name, device, arguments.seed, arguments.workers)
    pictures = photos.load(arguments.photos)
    vae = train_autoencoder(run, pictures)
    torch.manual_seed(run.seed)
    wordings = [wording for instruction in INSTRUCTIONS for wording in instruction.wordings]
    pipeline = build_pipeline(run.recipe, vae, [NO_PROMPT, *wordings])
    write_card(train(run, pipeline, pictures, arguments.output))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="gpu where there is one, else cpu")
    add_options(parser, Path("build/training"), "serve_app/models/builtin_tiny")
    return parser.parse_args()


if __name__ == "__main__":
    main()
