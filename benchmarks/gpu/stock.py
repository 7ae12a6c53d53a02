"""The stock pipeline of diffusers on the same weights, beside ours."""

import functools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import torch
from diffusers import QwenImageEditPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

from benchmarks.gpu.measure import GUIDANCE, Bench, Case, edit_request, picture
from benchmarks.gpu.model import build_transformer, on_device
from benchmarks.gpu.prompts import BLANK, equal_prompts
from benchmarks.gpu.report import Rows, ms, yes_no
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import expand
from serve_app.errors import OutOfMemory
from serve_app.request import Pixels

_STEPS = 4
_WARM_UP_STEPS = 2
_SEED = 1
_PEAK = 255.0
_NO_ERROR_DB = 99.0


@dataclass(frozen=True, slots=True)
class _Job:
    """`batch` edits with pictures of their own and the same prompt."""

    case: Case
    guided: bool
    batch: int
    steps: int = _STEPS


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The pictures, and the seconds of a step (median) and of the whole call."""

    pictures: Sequence[Pixels]
    step_s: float
    call_s: float


def stock_rows(bench: Bench) -> Rows:
    """Yield both sizes, alone and four together, guided and not."""
    stock = _stock(bench)
    for case in (bench.whole, bench.small):
        for guided, batch in ((True, 1), (True, 4), (False, 1), (False, 4)):
            head = [str(case), yes_no(guided), str(batch)]
            try:
                yield [*head, *_compare(bench, stock, _Job(case, guided, batch))]
            except (OutOfMemory, torch.OutOfMemoryError):
                yield [*head, "out of memory", "", "", "", "", ""]


def _compare(bench: Bench, stock: Any, job: _Job) -> list[str]:
    short = replace(job, steps=_WARM_UP_STEPS)
    with bench.native(job.case), _native_literal(job.case):
        bench.watch.warm_up(lambda: _stock_edits(bench, stock, short))
        theirs = _stock_edits(bench, stock, job)
        bench.watch.warm_up(lambda: _our_edits(bench, short))
        ours = _our_edits(bench, job)
    return [
        ms(theirs.step_s),
        ms(ours.step_s),
        f"{theirs.step_s / ours.step_s:.2f}×",
        f"{theirs.call_s:.2f}",
        f"{ours.call_s:.2f}",
        f"{_psnr_db(theirs.pictures, ours.pictures):.1f}",
    ]


def _stock(bench: Bench) -> Any:
    parts = bench.pipeline.components
    pipeline = QwenImageEditPipeline(**{**parts, "transformer": _unpacked(bench, parts["transformer"])})
    pipeline.prompt_template_encode_start_idx = bench.pipeline.prompt_template_encode_start_idx
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _unpacked(bench: Bench, packed: Any) -> Any:
    """Return diffusers' own transformer with the weights of the packed one, which stay where they are."""
    with on_device(torch.device("meta"), packed.dtype):
        transformer = build_transformer(bench.size)
    transformer.load_state_dict(packed.state_dict(), assign=True)
    # Tables, which are no weights.
    transformer.pos_embed = packed.pos_embed
    return transformer


@contextmanager
def _native_literal(case: Case) -> Iterator[None]:
    """Replace 1024², a literal in the stock call, by this case's native area."""
    original = pipeline_qwenimage_edit.calculate_dimensions
    dimensions = functools.partial(_dimensions, original, case.native_side**2)
    with mock.patch.object(pipeline_qwenimage_edit, "calculate_dimensions", dimensions):
        yield


def _dimensions(original: Any, native_area: int, target_area: int, ratio: float) -> Any:
    return original(native_area, ratio)


def _stock_edits(bench: Bench, stock: Any, job: _Job) -> _Outcome:
    stamps_s: list[float] = []

    def stamp(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        bench.watch.wait()
        stamps_s.append(time.perf_counter())
        return {}

    start_s = time.perf_counter()
    pictures = stock(
        image=[PIL.Image.fromarray(picture(job.case.native_side, index)) for index in range(job.batch)],
        prompt=equal_prompts(job.batch),
        negative_prompt=[BLANK] * job.batch if job.guided else None,
        true_cfg_scale=GUIDANCE if job.guided else 1.0,
        width=job.case.output_side,
        height=job.case.output_side,
        num_inference_steps=job.steps,
        generator=[torch.Generator("cpu").manual_seed(_SEED + index) for index in range(job.batch)],
        callback_on_step_end=stamp,
    ).images
    call_s = time.perf_counter() - start_s
    return _Outcome([np.asarray(each) for each in pictures], _median_gap_s(stamps_s), call_s)


def _our_edits(bench: Bench, job: _Job) -> _Outcome:
    """Run the same edits through the stages that the engine calls."""
    stamps_s: list[float] = []
    start_s = time.perf_counter()
    request = edit_request(job.case, equal_prompts(job.batch), guided=job.guided, steps=job.steps, seed=_SEED)
    states = bench.states(expand(request, bench.pipeline.geometry, defaults=SamplingDefaults(job.steps, GUIDANCE)))
    for _ in range(job.steps):
        bench.pipeline.step(states)
        stamps_s.append(time.perf_counter())
    pictures = bench.pipeline.decode(states)
    return _Outcome(pictures, _median_gap_s(stamps_s), time.perf_counter() - start_s)


def _median_gap_s(stamps_s: Sequence[float]) -> float:
    return statistics.median(after - before for before, after in pairwise(stamps_s))


def _psnr_db(one: Sequence[Pixels], other: Sequence[Pixels]) -> float:
    """Return the PSNR of all pictures together."""
    error = float(np.mean((np.stack(one).astype(float) - np.stack(other).astype(float)) ** 2))
    return min(_NO_ERROR_DB, 10 * float(np.log10(_PEAK**2 / error))) if error else _NO_ERROR_DB
