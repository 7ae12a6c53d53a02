"""The sections of the GPU benchmark: each takes the bench and yields rows, the most important first.

A row that does not fit in memory says so. The caller notes the end of a section by the budget or by an error.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.gpu.attention import attention_rows, compile_rows
from benchmarks.gpu.edits import edit_rows
from benchmarks.gpu.measure import GUIDANCE, Bench, Case, text_lengths
from benchmarks.gpu.prompts import BLANK, PROMPT, equal_prompts, unequal_prompts
from benchmarks.gpu.report import Row, Rows, ms, yes_no
from benchmarks.gpu.stock import stock_rows
from serve_app.engine.calibration import calibrate
from serve_app.engine.scheduler import KNEE_TOLERANCE, knee
from serve_app.errors import OutOfMemory

EDIT_STEPS = (50, 8, 4)


@dataclass(frozen=True)
class Section:
    """A section: its title, columns, notes for the reader, and the function that measures it."""

    title: str
    columns: Row
    notes: Sequence[str]
    rows: Callable[[Bench], Rows]


def step_rows(bench: Bench) -> Rows:
    """Yield every size, guided and not, by batch."""
    for guided in (True, False):
        for case in (bench.whole, bench.small, bench.reduced):
            yield from _batches(bench, case, guided)


def _batches(bench: Bench, case: Case, guided: bool) -> Rows:
    alone_s = 0.0
    for batch in bench.batches:
        try:
            row, step_s = _batch(bench, case, guided, batch, alone_s)
        except OutOfMemory:
            yield [str(case), yes_no(guided), str(batch), "", "out of memory", *[""] * 9]
            return
        alone_s = alone_s or step_s
        yield row


def _batch(bench: Bench, case: Case, guided: bool, batch: int, alone_s: float) -> tuple[Row, float]:
    """Return one row, and the seconds of a step; `alone_s`: of a sample alone, 0 if this is the first batch."""
    with bench.native(case):
        entry = bench.entry(case, equal_prompts(batch), guided=guided)
        prepared = [bench.pipeline.prepare(condition) for condition in entry.conditions]
        encode_s = bench.watch.median(lambda: bench.pipeline.encode(prepared))
        states = bench.states(entry)
        decode_s = bench.watch.median(lambda: bench.pipeline.decode(states))
        step_s, floor_s = bench.step_s(states), bench.floor_s(case, states)
    edits = [encode_s + steps * step_s + decode_s for steps in EDIT_STEPS]
    gain = batch * (alone_s or step_s) / step_s
    return [
        str(case),
        yes_no(guided),
        str(batch),
        text_lengths(states),
        ms(step_s),
        ms(step_s / batch),
        f"{gain:.2f}×",
        ms(floor_s),
        f"{floor_s / step_s:.0%}",
        f"{encode_s:.3f}",
        f"{decode_s:.3f}",
        *(f"{edit_s:.2f}" for edit_s in edits),
    ], step_s


def text_rows(bench: Bench) -> Rows:
    """Yield the same work with texts of one length and of several."""
    for case in (bench.whole, bench.small):
        for guided, batch in ((True, 4), (True, 1), (False, 4)):
            even_share = 0.0
            for label, prompts, negative in _texts(batch, guided):
                try:
                    row, share = _text(bench, case, guided, prompts, negative)
                except OutOfMemory:
                    yield [str(case), yes_no(guided), str(batch), label, "out of memory", "", "", "", ""]
                    continue
                cost = f"{even_share / share - 1:+.0%}" if even_share else ""
                even_share = even_share or share
                yield [str(case), yes_no(guided), str(batch), label, *row, cost]


def _texts(batch: int, guided: bool) -> Iterator[tuple[str, list[str], str]]:
    """Yield label, prompts and negative prompt."""
    yield "equal", equal_prompts(batch), PROMPT
    if guided:
        yield "equal, blank negative", equal_prompts(batch), BLANK
    if batch > 1:
        yield "unequal", unequal_prompts(batch), BLANK


def _text(bench: Bench, case: Case, guided: bool, prompts: Sequence[str], negative: str) -> tuple[Row, float]:
    """Return lengths, milliseconds, floor and share as cells, and the share as a number."""
    with bench.native(case):
        states = bench.states(bench.entry(case, prompts, guided=guided, negative=negative))
        step_s, floor_s = bench.step_s(states), bench.floor_s(case, states)
    share = floor_s / step_s
    return [text_lengths(states), ms(step_s), ms(floor_s), f"{share:.0%}"], share


def knee_rows(bench: Bench) -> Rows:
    """Yield the measurement of `engine.batch_tokens: auto` at start, and the knee that it finds."""
    for case in (bench.whole, bench.small):
        with bench.native(case):
            found = calibrate(bench.pipeline, max_samples=bench.max_samples, default_guidance=GUIDANCE)
        rates = {samples: samples / seconds for samples, seconds in found.seconds_by_samples.items()}
        chosen = knee(found.seconds_by_samples)
        for samples, seconds in found.seconds_by_samples.items():
            mark = f"knee: {found.knee_tokens} tokens" if samples == chosen else ""
            share = f"{rates[samples] / max(rates.values()):.0%}"
            yield [str(case), str(samples), ms(seconds), f"{rates[samples]:.2f}", share, mark]


SECTIONS = {
    "steps": Section(
        "Steps and edits by batch",
        [
            *("case", "guided", "batch", "text tokens", "ms per step", "ms per sample", "merging", "floor, ms"),
            *("share", "encode, s", "decode, s", *(f"edit, {steps} steps, s" for steps in EDIT_STEPS)),
        ],
        [
            "All samples of a batch have the same prompt and a picture of their own; guided ones a blank negative "
            "prompt. *Text tokens*: of prompt / negative prompt; the reference is in both, 1369 tokens at 1024². "
            "*Merging*: throughput over that of batch 1. *Edit*: the whole batch, computed as encode + steps × step + "
            "decode; the section of whole edits checks that."
        ],
        step_rows,
    ),
    "stock": Section(
        "The stock pipeline beside ours",
        [
            *("case", "guided", "batch", "stock, ms per step", "ours, ms per step", "stock ÷ ours"),
            *("stock, s", "ours, s", "PSNR, dB"),
        ],
        [
            "diffusers' QwenImageEditPipeline on the same weights in the same process, rows expanded by us. It steps "
            "prompt and negative prompt in two forwards. Seconds are of a whole call of 4 steps, encode and decode "
            "included; the autoencoder is ours in both (`serve_app/models/patches.py`). PSNR: between the two results."
        ],
        stock_rows,
    ),
    "text": Section(
        "Texts of equal and of unequal length",
        ["case", "guided", "batch", "texts", "text tokens", "ms per step", "floor, ms", "share", "cost"],
        ["*Cost*: time over floor, against that of the equal texts above. *Text tokens*: prompts / negative prompts."],
        text_rows,
    ),
    "attention": Section(
        "Attention backends",
        ["backend", "guided, ms per step", "share", "unguided, ms per step", "share", "deviation"],
        [
            "One sample of the native size. Guided, its two texts differ in length, and each is a call of the backend. "
            "*Deviation*: of the unguided prediction from that of `native`, relative to its norm."
        ],
        attention_rows,
    ),
    "edits": Section(
        "Whole edits through the engine",
        ["case", "guided", "steps", "callers", "measured, s", "computed, s", "ratio", "samples per forward"],
        [
            "Callers submit one picture each to an `EditEngine` at the same moment; measured until the last has its "
            "result. Computed: encode + steps × step + decode of that batch, measured here."
        ],
        edit_rows,
    ),
    "knee": Section(
        "The knee that `batch_tokens: auto` finds",
        ["case", "samples", "ms per step", "samples per s", "of the best", ""],
        [
            "`serve_app/engine/calibration.py`: guided steps of growing batches of one grey picture, each "
            "measured three times by turns, the fastest counting; the smallest batch within "
            f"{KNEE_TOLERANCE:.0%} of the best throughput is the knee."
        ],
        knee_rows,
    ),
    "compile": Section(
        "With and without `compile_repeated_blocks`",
        [
            *("case", "guided", "batch", "eager, ms per step", "compiled, ms per step", "speed-up", "share"),
            "first step, s",
        ],
        ["`model.compile: true`, that is `compile_repeated_blocks(dynamic=True)`. *First step*: compilation included."],
        compile_rows,
    ),
}
"""In the order of measuring: the most important first."""
