"""What the sections measure with: a stopwatch with a budget, cases of sizes, and samples ready to step."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_floor import TransformerCost, floor_s
from benchmarks.gpu_model import ModelSize
from benchmarks.gpu_prompts import BLANK
from serve_app.engine.scheduler import QueuedRequest, expand
from serve_app.images import Size
from serve_app.models.pipeline import SampleState, StepwiseQwenImageEditPipeline
from serve_app.request import EditRequest, Pixels

GUIDANCE = 4.0
"""The served default."""
_STEPS = 50
"""Of the schedule of the samples stepped here."""
# Work shorter than this is repeated more often, since it costs nothing.
_SHORT_S = 0.3
_SHORT_REPEATS = 4


@dataclass
class Stopwatch:
    """Times work on one device, and knows when the time for it is up. Seconds throughout."""

    device: torch.device
    budget_s: float
    repeats: int = 3
    started_s: float = field(default_factory=time.monotonic)
    warmup_s: float = 0.0
    """Spent on warm-ups so far."""

    @property
    def left_s(self) -> float:
        return self.budget_s - (time.monotonic() - self.started_s)

    def once(self, work: Callable[[], object]) -> float:
        """Seconds of one run, the device idle before and after it."""
        self.wait()
        start_s = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start_s

    def warm_up(self, work: Callable[[], object]) -> float:
        """Seconds of one run that counts as warm-up: kernels are chosen and memory is taken in it."""
        seconds = self.once(work)
        self.warmup_s += seconds
        return seconds

    def median(self, work: Callable[[], object]) -> float:
        """The median of `repeats` runs after one warm-up; four times as many runs of short work."""
        first_s = self.warm_up(work)
        repeats = self.repeats * (_SHORT_REPEATS if first_s < _SHORT_S else 1)
        return statistics.median(self.once(work) for _ in range(repeats))

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True, slots=True)
class Case:
    """Sides in pixels of a square output and its reference; the reference always has the model's native area."""

    output_side: int
    native_side: int

    def __str__(self) -> str:
        return f"{self.output_side}² out, {self.native_side}² reference"


@dataclass
class Bench:
    """The model under test with its stopwatch and the peak (TFLOP/s) that shares of the floor refer to."""

    pipeline: StepwiseQwenImageEditPipeline
    size: ModelSize
    watch: Stopwatch
    peak_tflops: float
    batches: Sequence[int]
    max_samples: int

    @property
    def whole(self) -> Case:
        """Native output, native reference: what a request without `size` gets."""
        return Case(self.size.native_side, self.size.native_side)

    @property
    def small(self) -> Case:
        """Half the side of both, as `model.native_area` sets it."""
        return Case(self.size.native_side // 2, self.size.native_side // 2)

    @property
    def reduced(self) -> Case:
        """Half the side of the output, the reference at the native area: a request with `size`."""
        return Case(self.size.native_side // 2, self.size.native_side)

    @property
    def cost(self) -> TransformerCost:
        return self.size.cost

    @contextmanager
    def native(self, case: Case) -> Iterator[None]:
        """The pipeline with this case's native area, as the setting `model.native_area` makes it."""
        before = self.pipeline.config.native_area
        self.pipeline.register_to_config(native_area=case.native_side**2)
        try:
            yield
        finally:
            self.pipeline.register_to_config(native_area=before)

    def entry(self, case: Case, prompts: Sequence[str], *, guided: bool, negative: str = BLANK) -> QueuedRequest:
        """One sample for each prompt, each with a picture of its own. Call it inside `native(case)`."""
        request = edit_request(case, prompts, guided=guided, negative=negative, steps=_STEPS)
        return expand(request, self.pipeline.geometry, default_steps=_STEPS, default_guidance=GUIDANCE)

    def states(self, entry: QueuedRequest) -> list[SampleState]:
        """The entry's samples, encoded together and started."""
        encodings = self.pipeline.encode([self.pipeline.prepare(condition) for condition in entry.conditions])
        return [self.pipeline.start(*pair) for pair in zip(encodings, entry.samples, strict=True)]

    def step_s(self, states: Sequence[SampleState]) -> float:
        """Median seconds of one step of all states, the first of their schedule each time."""

        def step() -> None:
            for state in states:
                state.step = 0
            self.pipeline.step(states)

        return self.watch.median(step)

    def floor_s(self, case: Case, states: Sequence[SampleState]) -> float:
        """Seconds of one step of all states at the floor, their real texts counted and no padding."""
        image_tokens = (case.output_side**2 + case.native_side**2) // self.pipeline.geometry.multiple**2
        return floor_s(self.cost.batch_flop(image_tokens, chain(*text_tokens(states))), self.peak_tflops)


def edit_request(
    case: Case, prompts: Sequence[str], *, guided: bool, steps: int, negative: str = BLANK, seed: int = 1
) -> EditRequest:
    """What one caller asks for: as many pictures as prompts."""
    return EditRequest(
        images=[picture(case.native_side, index) for index in range(len(prompts))],
        prompt=list(prompts),
        negative_prompt=negative,
        size=Size(case.output_side, case.output_side),
        guidance_scale=GUIDANCE if guided else 1.0,
        num_inference_steps=steps,
        seed=seed,
    )


def picture(side: int, seed: int) -> Pixels:
    """A square of noise: no two alike, and the GPU draws the power that real data make it draw."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def text_tokens(states: Sequence[SampleState]) -> tuple[list[int], list[int]]:
    """Text tokens of each row of the transformer's batch: of the prompts, of the negative prompts."""
    encodings = [state.encoding for state in states]
    positive = [encoding.positive.shape[0] for encoding in encodings]
    return positive, [encoding.negative.shape[0] for encoding in encodings if encoding.negative is not None]


def text_lengths(states: Sequence[SampleState]) -> str:
    """The lengths that occur: prompts / negative prompts."""
    return " / ".join(", ".join(map(str, sorted(set(each)))) for each in text_tokens(states) if each)


def matmul_tflops(watch: Stopwatch, dtype: torch.dtype) -> float:
    """TFLOP/s of one large matrix product of random numbers: what this very device reaches at best."""
    side = 8192 if watch.device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=watch.device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / watch.median(lambda: left @ right) / 1e12


def first_line(error: BaseException, most: int = 160) -> str:
    """What an error says, short enough for a table."""
    lines: list[Any] = str(error.__cause__ or error).strip().splitlines()
    text = f"{type(error.__cause__ or error).__name__}: {lines[0] if lines else ''}"
    return text.replace("|", "\\|")[:most]
