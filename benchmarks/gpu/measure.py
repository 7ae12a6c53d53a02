"""The tools of the sections: a stopwatch with a budget, cases of sizes, and samples that are ready to step."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.floor import TransformerCost, floor_s
from benchmarks.gpu.model import ModelSize
from benchmarks.gpu.prompts import BLANK
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import QueuedRequest, expand
from serve_app.images.geometry import Size
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.models.pipeline import SampleState
from serve_app.request import EditRequest, Pixels

GUIDANCE = 4.0
"""The served default."""
_STEPS = 50
"""Of the schedule of the samples stepped here."""
# Work shorter than this is repeated more often, at little cost.
_SHORT_S = 0.3
_SHORT_REPEATS = 4


@dataclass
class Stopwatch:
    """A stopwatch for work on one device, with a budget. Seconds throughout."""

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
        """Return the seconds of one run, with the device idle before and after it."""
        self.wait()
        start_s = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start_s

    def warm_up(self, work: Callable[[], object]) -> float:
        """Return the seconds of a run that counts as warm-up, in which kernels are chosen and memory is allocated."""
        seconds = self.once(work)
        self.warmup_s += seconds
        return seconds

    def median(self, work: Callable[[], object]) -> float:
        """Return the median of `repeats` runs after one warm-up; of four times as many if the work is short."""
        first_s = self.warm_up(work)
        repeats = self.repeats * (_SHORT_REPEATS if first_s < _SHORT_S else 1)
        return statistics.median(self.once(work) for _ in range(repeats))

    def wait(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True, slots=True)
class Case:
    """The sides in pixels of a square output and its reference, which always has the model's native area."""

    output_side: int
    native_side: int

    def __str__(self) -> str:
        return f"{self.output_side}² out, {self.native_side}² reference"


@dataclass
class Bench:
    """The model under test, its stopwatch, and the peak (TFLOP/s) to which shares of the floor refer."""

    pipeline: StepwiseQwenImageEditPipeline
    size: ModelSize
    watch: Stopwatch
    peak_tflops: float
    batches: Sequence[int]
    max_samples: int

    @property
    def whole(self) -> Case:
        """Native output, native reference: a request without `size`."""
        return Case(self.size.native_side, self.size.native_side)

    @property
    def small(self) -> Case:
        """Half the side of both, as set by `model.native_area`."""
        return Case(self.size.native_side // 2, self.size.native_side // 2)

    @property
    def reduced(self) -> Case:
        """Half the side of the output, the reference at the native area: a request with `size` and `fit=free`."""
        return Case(self.size.native_side // 2, self.size.native_side)

    @property
    def cost(self) -> TransformerCost:
        return self.size.cost

    @contextmanager
    def native(self, case: Case) -> Iterator[None]:
        """Give the pipeline this case's native area, as the setting `model.native_area` does."""
        before = self.pipeline.config.native_area
        self.pipeline.register_to_config(native_area=case.native_side**2)
        try:
            yield
        finally:
            self.pipeline.register_to_config(native_area=before)

    def entry(self, case: Case, prompts: Sequence[str], *, guided: bool, negative: str = BLANK) -> QueuedRequest:
        """Return a request of one sample a prompt, each with a picture of its own. Call it inside `native(case)`."""
        request = edit_request(case, prompts, guided=guided, negative=negative, steps=_STEPS)
        return expand(request, self.pipeline.geometry, defaults=SamplingDefaults(_STEPS, GUIDANCE))

    def states(self, entry: QueuedRequest) -> list[SampleState]:
        """Encode the entry's samples together and return their states."""
        encodings = self.pipeline.encode([self.pipeline.prepare(condition) for condition in entry.conditions])
        return [self.pipeline.start(*pair) for pair in zip(encodings, entry.samples, strict=True)]

    def step_s(self, states: Sequence[SampleState]) -> float:
        """Return the median seconds of one step of all states, the first of their schedule each time."""

        def step() -> None:
            for state in states:
                state.step = 0
            self.pipeline.step(states)

        return self.watch.median(step)

    def floor_s(self, case: Case, states: Sequence[SampleState]) -> float:
        """Return the least seconds of one step of all states, for their texts without padding."""
        image_tokens = (case.output_side**2 + case.native_side**2) // self.pipeline.geometry.token_side**2
        return floor_s(self.cost.batch_flop(image_tokens, chain(*text_tokens(states))), self.peak_tflops)


def edit_request(
    case: Case, prompts: Sequence[str], *, guided: bool, steps: int, negative: str = BLANK, seed: int = 1
) -> EditRequest:
    """Return the request of one caller: as many pictures as prompts."""
    return EditRequest(
        images=[picture(case.native_side, index) for index in range(len(prompts))],
        prompt=list(prompts),
        negative_prompt=negative,
        size=Size(case.output_side, case.output_side),
        fit="free",
        guidance_scale=GUIDANCE if guided else 1.0,
        num_inference_steps=steps,
        seed=seed,
    )


def picture(side: int, seed: int) -> Pixels:
    """Return a square of noise. No two are alike, and a GPU draws as much power as with real data."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def text_tokens(states: Sequence[SampleState]) -> tuple[list[int], list[int]]:
    """Return the text tokens of each row of the transformer's batch: of the prompts, of the negative prompts."""
    encodings = [state.encoding for state in states]
    positive = [encoding.positive.shape[0] for encoding in encodings]
    return positive, [encoding.negative.shape[0] for encoding in encodings if encoding.negative is not None]


def text_lengths(states: Sequence[SampleState]) -> str:
    """Return the lengths that occur: prompts / negative prompts."""
    return " / ".join(", ".join(map(str, sorted(set(each)))) for each in text_tokens(states) if each)


def matmul_tflops(watch: Stopwatch, dtype: torch.dtype) -> float:
    """Return the TFLOP/s of one large matrix product of random numbers, the most that this very device reaches."""
    side = 8192 if watch.device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=watch.device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / watch.median(lambda: left @ right) / 1e12


def first_line(error: BaseException, most: int = 160) -> str:
    """Return the first line of an error, short enough for a table."""
    lines: list[Any] = str(error.__cause__ or error).strip().splitlines()
    text = f"{type(error.__cause__ or error).__name__}: {lines[0] if lines else ''}"
    return text.replace("|", "\\|")[:most]
