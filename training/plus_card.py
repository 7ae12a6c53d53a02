"""`python -m training.plus_card MODEL`: the results of a model for two pictures, outside of its training data."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from tqdm import tqdm

from serve_app.models.families import StepwiseQwenImageEditPlusPipeline
from serve_app.models.loading import BUILTIN_GUIDANCE, BUILTIN_STEPS
from serve_app.request import EditRequest
from training.evaluate import PICTURES, Picture, Row, edit_all, edits_table, evaluate, psnr_db, shortfall
from training.instructions import INSTRUCTIONS
from training.pairs import PAIRS, Pair
from training.photos import Held, evaluation_pictures

# A picture and its second one are windows of two photographs, since these come in turn.
_APART = 3


def evaluate_pair(
    pipeline: StepwiseQwenImageEditPlusPipeline, pair: Pair, held: Sequence[Held], seconds: Sequence[Picture]
) -> tuple[Row, list[Picture]]:
    """Edit every held-out picture with its second one, with the wordings in turn. Return the measures and results."""
    requests, truths = [], []
    for index, (each, second) in enumerate(zip(held, seconds, strict=True)):
        requests.append(
            EditRequest(
                images=[each.pixels],
                references=[second],
                prompt=pair.wordings[index % len(pair.wordings)],
                seed=index,
                guidance_scale=BUILTIN_GUIDANCE,
            )
        )
        truths.append(pair.apply(each.pixels, second, each.sky_mask))
    results = edit_all(pipeline, requests)
    parts = list(zip(held, seconds, truths, results, strict=True))
    row = Row(
        name=pair.name,
        confirmed=float(
            np.mean([pair.confirm(each.pixels, second, each.sky_mask, result) for each, second, _, result in parts])
        ),
        edited_db=float(np.mean([psnr_db(result, truth) for _, _, truth, result in parts])),
        untouched_db=float(np.mean([psnr_db(each.pixels, truth) for each, _, truth, _ in parts])),
    )
    return row, results


def pictures_for(side: int, count: int) -> tuple[list[Held], list[Held], list[Picture]]:
    """Return photographs, scenes with a known sky, and the second pictures: other photographs."""
    photographs = evaluation_pictures((side, side), count + _APART)
    scenes = evaluation_pictures((side, side), count, sky=True)
    return photographs[:count], scenes, [each.pixels for each in photographs[_APART:]]


def write_card(folder: Path, pictures: int = PICTURES) -> None:
    """Evaluate the model in `folder`, print the tables, and write README.md and contact_sheet.png beside it."""
    torch.set_num_threads(1)
    pipeline = StepwiseQwenImageEditPlusPipeline.from_pretrained(folder, dtype=torch.float32)
    side = round(pipeline.config.native_area**0.5)
    photographs, scenes, seconds = pictures_for(side, pictures)
    rows, tiles = [], []
    for index, pair in enumerate(tqdm(PAIRS, desc="two pictures")):
        held = scenes if pair.needs_sky else photographs
        row, results = evaluate_pair(pipeline, pair, held, seconds)
        rows.append(row)
        shown = index % pictures
        truth = pair.apply(held[shown].pixels, seconds[shown], held[shown].sky_mask)
        tiles.append([held[shown].pixels, seconds[shown], truth, results[shown]])
    singles = [
        evaluate(pipeline, instruction, scenes if instruction.needs_sky else photographs)
        for instruction in tqdm(INSTRUCTIONS, desc="one picture")
    ]
    card = _card(rows, singles, side, pictures)
    print(card)
    (folder / "README.md").write_text(card)
    contact_sheet(tiles).save(folder / "contact_sheet.png", optimize=True)


def contact_sheet(rows: Sequence[Sequence[Picture]], side: int = 96) -> PIL.Image.Image:
    """Return a row for each pair: both pictures, the true result, and the model's, at `side` pixels."""
    label = 250
    sheet = PIL.Image.new("RGB", (label + 4 * side, len(rows) * side), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for row, (pair, pictures) in enumerate(zip(PAIRS, rows, strict=True)):
        draw.text((6, row * side + side // 2), pair.wordings[0], fill="black")
        for column, picture in enumerate(pictures):
            small = PIL.Image.fromarray(picture).resize((side, side), PIL.Image.Resampling.LANCZOS)
            sheet.paste(small, (label + column * side, row * side))
    return sheet


_CARD = """\
# builtin:tiny-plus

A miniature `QwenImageEditPlusPipeline` for tests and first tries of edits with a second picture, with `zero_cond_t` as
Qwen-Image-Edit-2511 has it. `python -m training.plus` trains it from the weights of `builtin:tiny`, whose autoencoder
it has. Its native size is {side} × {side}, and its outputs are never enlarged.

`python -m training.plus_card` measured the tables on {pictures} pictures for each instruction, on none of which the
model was trained: windows of the photographs in scikit-image and scikit-learn and, for the skies, scenes with a known
sky. The edits took {steps} steps with guidance {guidance:g}, with the wordings of an instruction in turn.

The second picture lies on the first without being moved or made smaller: "put picture 2 into the top left corner" puts
the top left quarter of picture 2 there. The model was trained on second pictures of the first one's aspect ratio only,
and on no more than two. A result is confirmed if its squared error to the true result is below 30% of the error of
either picture left as it is (`training/pairs.py`). The PSNR compares with the true result.

- Edits with two pictures confirmed: {share:.0%}. {shortfall}
- Edits with one picture confirmed: {single_share:.0%}. {single_shortfall}

{pairs}

Rows: instructions. Columns: picture 1, picture 2, the true result, and the output.

![Every instruction for two pictures on held-out pictures](contact_sheet.png)

With one picture it was taught the instructions of `builtin:tiny`, confirmed as on that model's card:

{singles}

The training data are those of `builtin:tiny`.
"""


def _card(rows: Sequence[Row], singles: Sequence[Row], side: int, pictures: int) -> str:
    return _CARD.format(
        side=side,
        pictures=pictures,
        steps=BUILTIN_STEPS,
        guidance=BUILTIN_GUIDANCE,
        share=np.mean([row.confirmed for row in rows]),
        shortfall=shortfall(rows),
        single_share=np.mean([row.confirmed for row in singles]),
        single_shortfall=shortfall(singles),
        pairs=edits_table(rows),
        singles=edits_table(singles),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.plus_card", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder written by `python -m training.plus`")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="for each instruction (%(default)s)")
    arguments = parser.parse_args()
    write_card(arguments.model, arguments.pictures)


if __name__ == "__main__":
    main()
