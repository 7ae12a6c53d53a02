"""`python -m training.evaluate MODEL`: the results of a trained model on photographs outside its training data."""

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import Sample, expand
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.models.loading import BUILTIN_GUIDANCE, BUILTIN_STEPS
from serve_app.models.pipeline import StepwisePipeline
from serve_app.request import EditRequest
from training.instructions import IDENTITY, INSTRUCTIONS, Instruction
from training.photos import Held, evaluation_pictures
from training.wordings import UNTAUGHT

Picture = NDArray[np.uint8]
T = TypeVar("T")

PICTURES = 20
SEEDS = 3
LEAST_CONFIRMED = 0.7
LEAST_TAKEN_FOR = 0.2
_BATCH = 10


@dataclass(frozen=True)
class Row:
    """One instruction's result. PSNR in dB to the true transform: of the edits, and of the unedited pictures."""

    name: str
    confirmed: float
    edited_db: float
    untouched_db: float


@dataclass(frozen=True)
class UntaughtRow:
    """What a prompt that was never taught does: to how many pictures nothing, and what to others.

    `taken_for`: the instruction whose measure confirms the most results, and their share.
    """

    prompt: str
    unchanged: float
    taken_for: tuple[str, float]


def psnr_db(one: Picture, other: Picture) -> float:
    """Return the peak signal-to-noise ratio, at most 60, for almost equal pictures."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return min(60.0, float(10 * np.log10(255**2 / max(error, 1e-9))))


def edit_all(pipeline: StepwisePipeline, requests: Sequence[EditRequest]) -> list[Picture]:
    """Return one output for each request, at the size of its picture. All pictures must have one shape."""
    results: list[Picture] = []
    for first in range(0, len(requests), _BATCH):
        some = requests[first : first + _BATCH]
        samples = [_start(pipeline, request) for request in some]
        while any(sample.steps_left for sample in samples):
            pipeline.step([sample.state for sample in samples])
            for sample in samples:
                sample.steps_done += 1
        results += pipeline.decode([sample.state for sample in samples])
    return results


def _start(pipeline: StepwisePipeline, request: EditRequest) -> Sample:
    entry = expand(
        request,
        pipeline.geometry,
        defaults=SamplingDefaults(BUILTIN_STEPS, BUILTIN_GUIDANCE),
    )
    [sample] = entry.samples
    sample.state = pipeline.start(pipeline.encode([pipeline.prepare(entry.conditions[0])])[0], sample)
    return sample


@torch.no_grad()
def reconstruction_db(pipeline: StepwisePipeline, pictures: Sequence[Picture]) -> float:
    """Return the mean PSNR of pictures that were encoded and decoded by the autoencoder."""
    values = []
    for picture in pictures:
        pixels = pipeline.image_processor.preprocess(PIL.Image.fromarray(picture)).unsqueeze(2)
        restored = pipeline.vae.decode(pipeline.vae.encode(pixels).latent_dist.mode()).sample[0, :, 0]
        values.append(psnr_db(picture, _as_picture(restored)))
    return float(np.mean(values))


def _as_picture(values: torch.Tensor) -> Picture:
    return (values / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def evaluate(
    pipeline: StepwisePipeline,
    instruction: Instruction,
    held: Sequence[Held],
    guidance: float = BUILTIN_GUIDANCE,
) -> Row:
    """Edit every held-out picture, with the wordings in turn, and measure the results."""
    requests, truths = [], []
    for index, each in enumerate(held):
        wording = instruction.wordings[index % len(instruction.wordings)]
        requests.append(EditRequest(images=[each.pixels], prompt=wording, seed=index, guidance_scale=guidance))
        truths.append(instruction.apply(each.pixels, each.sky_mask, np.random.default_rng(index)))
    results = edit_all(pipeline, requests)
    pairs = list(zip(held, truths, results, strict=True))
    return Row(
        name=instruction.name,
        confirmed=float(np.mean([instruction.confirm(each.pixels, result) for each, _, result in pairs])),
        edited_db=float(np.mean([psnr_db(result, truth) for _, truth, result in pairs])),
        untouched_db=float(np.mean([psnr_db(each.pixels, truth) for each, truth, _ in pairs])),
    )


def evaluate_untaught(
    pipeline: StepwisePipeline, prompt: str, held: Sequence[Held], guidance: float = BUILTIN_GUIDANCE
) -> UntaughtRow:
    """Edit every held-out picture with a prompt that was never taught, and measure what it does."""
    requests = [
        EditRequest(images=[each.pixels], prompt=prompt, seed=index, guidance_scale=guidance)
        for index, each in enumerate(held)
    ]
    pairs = list(zip(held, edit_all(pipeline, requests), strict=True))

    def share(instruction: Instruction) -> float:
        return float(np.mean([instruction.confirm(each.pixels, result) for each, result in pairs]))

    others = [(each.name, share(each)) for each in INSTRUCTIONS if each is not IDENTITY and not each.needs_sky]
    return UntaughtRow(prompt, share(IDENTITY), max(others, key=lambda other: other[1]))


def variants(
    pipeline: StepwiseQwenImageEditPipeline, instruction: Instruction, each: Held, guidance: float
) -> list[Picture]:
    """Return a row of the contact sheet: the picture, the true result, and the model's results by seed."""
    truth = instruction.apply(each.pixels, each.sky_mask, np.random.default_rng(0))
    prompt = instruction.wordings[0]
    requests = [
        EditRequest(images=[each.pixels], prompt=prompt, seed=seed, guidance_scale=guidance) for seed in range(SEEDS)
    ]
    return [each.pixels, truth, *edit_all(pipeline, requests)]


def contact_sheet(rows: Sequence[Sequence[Picture]], side: int = 96) -> PIL.Image.Image:
    """Return the rows of `variants`, one for each instruction, at `side` pixels."""
    label = 150
    sheet = PIL.Image.new("RGB", (label + (2 + SEEDS) * side, len(rows) * side), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for row, (instruction, pictures) in enumerate(zip(INSTRUCTIONS, rows, strict=True)):
        draw.text((6, row * side + side // 2), instruction.wordings[0][:24], fill="black")
        for column, picture in enumerate(pictures):
            small = PIL.Image.fromarray(picture).resize((side, side), PIL.Image.Resampling.LANCZOS)
            sheet.paste(small, (label + column * side, row * side))
    return sheet


@dataclass(frozen=True)
class Task:
    """The evaluation of one instruction, by index: an instruction has functions, which cannot be pickled."""

    folder: Path
    instruction: int
    held: Sequence[Held]
    guidance: float

    def __call__(self) -> tuple[Row, list[Picture]]:
        pipeline, instruction = _load(self.folder), INSTRUCTIONS[self.instruction]
        row = evaluate(pipeline, instruction, self.held, self.guidance)
        return row, variants(pipeline, instruction, self.held[self.instruction % len(self.held)], self.guidance)


@dataclass(frozen=True)
class UntaughtTask:
    """The evaluation of one prompt that was never taught."""

    folder: Path
    prompt: str
    held: Sequence[Held]
    guidance: float

    def __call__(self) -> UntaughtRow:
        return evaluate_untaught(_load(self.folder), self.prompt, self.held, self.guidance)


@cache
def _load(folder: Path) -> StepwiseQwenImageEditPipeline:
    # A model this small is faster in several processes of one thread than in one process of several threads.
    torch.set_num_threads(1)
    pipeline: StepwiseQwenImageEditPipeline = StepwiseQwenImageEditPipeline.from_pretrained(folder, dtype=torch.float32)
    return pipeline


def write_card(folder: Path, guidance: float = BUILTIN_GUIDANCE, pictures: int = PICTURES) -> None:
    """Evaluate the model in `folder`, print the table, and write README.md and contact_sheet.png beside it."""
    side = round(_load(folder).config.native_area ** 0.5)
    photographs = evaluation_pictures((side, side), pictures, sky=False)
    scenes = evaluation_pictures((side, side), pictures, sky=True)
    restored_db = reconstruction_db(_load(folder), [each.pixels for each in photographs])
    tasks = [
        Task(folder, index, scenes if instruction.needs_sky else photographs, guidance)
        for index, instruction in enumerate(INSTRUCTIONS)
    ]
    results = _run(tasks)
    untaught = untaught_table(folder, guidance, pictures)
    table = card([row for row, _ in results], untaught, restored_db, side, guidance, pictures)
    print(table)
    (folder / "README.md").write_text(table)
    contact_sheet([tiles for _, tiles in results]).save(folder / "contact_sheet.png", optimize=True)


def untaught_table(folder: Path, guidance: float = BUILTIN_GUIDANCE, pictures: int = PICTURES) -> str:
    """Evaluate the model in `folder` with prompts that it was never taught, and return the table."""
    side = round(_load(folder).config.native_area ** 0.5)
    held = evaluation_pictures((side, side), pictures, sky=False)
    rows = _run([UntaughtTask(folder, prompt, held, guidance) for prompt in UNTAUGHT])
    return "\n".join(["| prompt | left as it is | taken for |", "|---|---|---|", *map(_untaught_line, rows)])


def _untaught_line(row: UntaughtRow) -> str:
    name, share = row.taken_for
    taken_for = f"{name} ({share:.0%})" if share >= LEAST_TAKEN_FOR else "–"
    return f"| {row.prompt} | {row.unchanged:.0%} | {taken_for} |"


def _run(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Return the results of the tasks, in their order, from one process for each core."""
    # Not forked, since torch's threads do not survive a fork.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(task) for task in tasks]
        return [future.result() for future in tqdm(futures, desc="evaluate")]


_CARD = """\
# builtin:tiny

A miniature `QwenImageEditPipeline` for tests and first tries on a laptop. `make train` (`training/`) trains it from
scratch: it has the classes of the published model in smaller sizes. The model can carry out the instructions below, in
English and in Chinese. It was taught to leave the picture as it is for any other text, and does not always do so: see
the last table. Its native size is {side} × {side}, and its outputs are never enlarged.

`python -m training.evaluate` measured the table on {pictures} pictures for each instruction, on none of which the model
was trained: windows of the photographs in scikit-image and scikit-learn and, for the skies, scenes with a known sky.
The edits took {steps} steps with guidance {guidance:g}, with the wordings of an instruction in turn. A simple measure
of the picture before and after (`training/measures.py`) confirms an edit. The PSNR compares with the true transform,
whose strength is random within the instruction's range.

- Autoencoder: {restored_db:.1f} dB.
- Edits confirmed: {share:.0%}. {shortfall}

{table}

Rows: instructions. Columns: the picture, the true transform, and the outputs of three seeds.

![Every instruction on a held-out picture](contact_sheet.png)

Prompts that were never taught, on {pictures} of those photographs each: how many results are about the picture as it
was (`is_unchanged` in `training/measures.py`), and the instruction whose measure confirms the most results, if it
confirms at least {least_taken_for:.0%}; a weak change can count as both. This table alone:
`python -m training.evaluate serve_app/models/builtin_tiny --untaught`.

{untaught}

The training data are procedural scenes, and photographs with free licences from Debian's packages.
`training/PHOTOS.md` lists these photographs with their authors; none of them is part of this model.
"""


def card(rows: Sequence[Row], untaught: str, restored_db: float, side: int, guidance: float, pictures: int) -> str:
    """Return the model card: method, instructions below the threshold, and the tables."""
    return _CARD.format(
        side=side,
        pictures=pictures,
        steps=BUILTIN_STEPS,
        guidance=guidance,
        restored_db=restored_db,
        share=np.mean([row.confirmed for row in rows]),
        shortfall=shortfall(rows),
        table=edits_table(rows),
        untaught=untaught,
        least_taken_for=LEAST_TAKEN_FOR,
    )


def edits_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table of Markdown."""
    lines = [
        "| instruction | confirmed | PSNR of the edit, dB | PSNR of the untouched picture, dB |",
        "|---|---|---|---|",
        *(f"| {r.name} | {r.confirmed:.0%} | {r.edited_db:.1f} | {r.untouched_db:.1f} |" for r in rows),
    ]
    return "\n".join(lines)


def shortfall(rows: Sequence[Row]) -> str:
    """Return a sentence with the instructions below the threshold."""
    short = [f"{row.name} ({row.confirmed:.0%})" for row in rows if row.confirmed < LEAST_CONFIRMED]
    return f"Below {LEAST_CONFIRMED:.0%}: {', '.join(short) or 'none'}."


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder written by `python -m training`")
    parser.add_argument("--guidance", type=float, default=BUILTIN_GUIDANCE, help="guidance_scale (%(default)s)")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="for each instruction (%(default)s)")
    parser.add_argument("--untaught", action="store_true", help="print the table of untaught prompts, and no more")
    arguments = parser.parse_args()
    if arguments.untaught:
        print(untaught_table(arguments.model, arguments.guidance, arguments.pictures))
    else:
        write_card(arguments.model, arguments.guidance, arguments.pictures)


if __name__ == "__main__":
    main()
