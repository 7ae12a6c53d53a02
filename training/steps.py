"""`python -m training.steps`: what fewer steps cost a model: PSNR to its own full edit, and edits confirmed."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.models import loading
from serve_app.models.loading import LoadedModel
from serve_app.request import EditRequest
from serve_app.settings import BUILTIN_TINY, ModelSettings
from training.evaluate import edit_all, psnr_db
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


def curve(
    model: LoadedModel, steps: Sequence[int], pictures: int, instructions: Sequence[Instruction] = INSTRUCTIONS
) -> list[Row]:
    """Return a row for the default number of steps of a model, and then one for each of `steps`."""
    side = round(model.pipeline.config.native_area**0.5)
    scenes, photos = (evaluation_pictures((side, side), pictures, sky=sky) for sky in (True, False))
    edits = [
        (instruction, each, index)
        for instruction in instructions
        if instruction is not IDENTITY
        for index, each in enumerate(scenes if instruction.needs_sky else photos)
    ]
    full = _edit(model, edits, model.default_steps)
    rows = []
    for count in (model.default_steps, *steps):
        results = full if count == model.default_steps else _edit(model, edits, count)
        own_db = np.mean([psnr_db(one, other) for one, other in zip(results, full, strict=True)])
        confirmed = [
            instruction.confirm(each.pixels, result)
            for (instruction, each, _), result in zip(edits, results, strict=True)
        ]
        rows.append(Row(count, float(own_db), float(np.mean(confirmed))))
    return rows


def _edit(model: LoadedModel, edits: Sequence[tuple[Instruction, Held, int]], steps: int) -> list[np.ndarray]:
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
