"""`python -m training.steps`: what fewer steps cost a model: PSNR to its own full edit, and edits confirmed."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.models import loading
from serve_app.models.loading import LoadedModel
from serve_app.request import EditRequest
from serve_app.settings import BUILTIN_TINY, ModelSettings
from training.evaluate import Picture, edit_all, psnr_db
from training.instructions import IDENTITY, INSTRUCTIONS, Instruction
from training.photos import Held, evaluation_pictures

PICTURES = 4
STEPS = (13, 11, 8, 7, 4, 2)


@dataclass(frozen=True)
class Row:
    """The edits of one number of steps. `own_db`: mean PSNR to the same edits with the default number of steps."""

    steps: int
    own_db: float
    confirmed: float


Edit = tuple[Instruction, Held, int]
"""An instruction, the picture that it is for, and the seed."""


def curve(
    model: LoadedModel, steps: Sequence[int], pictures: int, instructions: Sequence[Instruction] = INSTRUCTIONS
) -> list[Row]:
    """Return a row for the default number of steps of a model, and then one for each of `steps`."""
    edits = taught_edits(model, pictures, instructions)
    full = make(model, edits, model.default_steps)
    rows = []
    for count in (model.default_steps, *steps):
        results = full if count == model.default_steps else make(model, edits, count)
        rows.append(Row(count, mean_db(results, full), confirmed_share(edits, results)))
    return rows


def taught_edits(model: LoadedModel, pictures: int, instructions: Sequence[Instruction] = INSTRUCTIONS) -> list[Edit]:
    """Return the edits of so many pictures by each instruction, at the model's native size."""
    side = round(model.pipeline.config.native_area**0.5)
    scenes, photos = (evaluation_pictures((side, side), pictures, sky=sky) for sky in (True, False))
    return [
        (instruction, each, index)
        for instruction in instructions
        if instruction is not IDENTITY
        for index, each in enumerate(scenes if instruction.needs_sky else photos)
    ]


def make(model: LoadedModel, edits: Sequence[Edit], steps: int) -> list[Picture]:
    """Return the result of each edit."""
    requests = [
        EditRequest(
            images=[each.pixels],
            prompt=instruction.wordings[0],
            seed=seed,
            num_inference_steps=steps,
            guidance_scale=model.default_guidance,
        )
        for instruction, each, seed in edits
    ]
    return edit_all(model.pipeline, requests)


def mean_db(results: Sequence[Picture], others: Sequence[Picture]) -> float:
    """Return the mean PSNR of results to others."""
    return float(np.mean([psnr_db(one, other) for one, other in zip(results, others, strict=True)]))


def confirmed_share(edits: Sequence[Edit], results: Sequence[Picture]) -> float:
    """Return the share of the results that show what their instruction asks for."""
    confirmed = [
        instruction.confirm(each.pixels, result) for (instruction, each, _), result in zip(edits, results, strict=True)
    ]
    return float(np.mean(confirmed))


def table(rows: Sequence[Row]) -> str:
    lines = ["| steps | PSNR to the full edit, dB | edits confirmed |", "|---|---|---|"]
    full, *others = rows
    lines.append(f"| {full.steps} | | {full.confirmed:.0%} |")
    return "\n".join([*lines, *(f"| {row.steps} | {row.own_db:.1f} | {row.confirmed:.0%} |" for row in others)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.steps", description=__doc__)
    parser.add_argument("--model", default=BUILTIN_TINY, help="as `model.source` (%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="numbers of steps (%(default)s)")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="for each instruction (%(default)s)")
    arguments = parser.parse_args()
    model = loading.load(ModelSettings(source=arguments.model))
    print(table(curve(model, arguments.steps, arguments.pictures)))


if __name__ == "__main__":
    main()
