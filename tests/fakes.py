"""Fakes: a Backend that computes with arithmetic instead of a model, and a clock.

An output depends only on its own pictures, mask, prompt, seed, steps and guidance, so that any mix-up between samples
shows.
"""

import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from serve_app.engine.engine import EditEngine
from serve_app.engine.scheduler import ONE_PER_TOKEN, Condition, Sample, StepCost
from serve_app.errors import InvalidInput, NotFinite
from serve_app.images.geometry import Geometry
from serve_app.request import EditRequest, GenerationRequest, Pixels


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class State:
    prompt: str
    base: int
    seed: int
    steps: int
    guidance: float
    sample: Sample
    done: int = 0
    poisoned: bool = False


@dataclass
class ArithmeticPipeline:
    """Backend without a model. The `on_…` callbacks run before each call of their stage and may raise.

    `gate`: holds every step until it is set. `at_step`: released when a step begins.
    """

    on_step: Callable[[Sequence[State]], None] = lambda states: None
    on_prepare: Callable[[Condition], None] = lambda condition: None
    on_encode: Callable[[Sequence[Condition]], None] = lambda conditions: None
    on_preview: Callable[[Sequence[State]], None] = lambda states: None
    on_decode: Callable[[Sequence[State]], None] = lambda states: None
    max_references: ClassVar[int] = 3

    gate: threading.Event = field(default_factory=threading.Event)
    at_step: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[State]] = field(default_factory=list)
    encoded: list[Condition] = field(default_factory=list)
    previewed: list[list[State]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def geometry(self) -> Geometry:
        return Geometry(native_area=64 * 64, token_side=16)

    @property
    def makes_alpha(self) -> bool:
        return False

    @property
    def generates(self) -> bool:
        return True

    @property
    def step_cost(self) -> StepCost:
        return ONE_PER_TOKEN

    def check(self, condition: Condition) -> None:
        if len(condition.prompt) > 1000:
            raise InvalidInput("prompt: too long", param="prompt")

    def prepare(self, condition: Condition, shared: dict[Any, Any]) -> Any:
        self.on_prepare(condition)
        return condition

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def encode(self, conditions: Sequence[Any]) -> list[Condition]:
        self.on_encode(conditions)
        self.encoded += conditions
        return list(conditions)

    def prefill(self, encodings: Sequence[Any], pieces: Sequence[int] | None = None) -> list[int]:
        return [0] * len(encodings)

    def start(self, encoding: Condition, sample: Sample) -> State:
        base = sum(index * int(each.picture.astype(int).sum()) for index, each in enumerate(encoding.references, 1))
        if encoding.mask is not None:
            base += zlib.crc32(encoding.mask.tobytes())
        return State(encoding.prompt, base, sample.seed, sample.steps, sample.guidance, sample)

    def step(self, states: Sequence[State]) -> None:
        self.at_step.release()
        assert self.gate.wait(20)
        self.on_step(states)
        self.batches.append(list(states))
        for state in states:
            state.done += 1

    def preview(self, states: Sequence[State]) -> list[Pixels]:
        """Return pictures that are as bright as the number of steps done."""
        self.on_preview(states)
        self.previewed.append(list(states))
        sizes = [state.sample.shape.output for state in states]
        return [
            np.full((size.height, size.width, 3), state.done, np.uint8)
            for size, state in zip(sizes, states, strict=True)
        ]

    def decode(self, states: Sequence[State]) -> list[Pixels]:
        self.on_decode(states)
        if any(state.poisoned for state in states):
            raise NotFinite("the model produced values that are not numbers")
        return [self._picture(state) for state in states]

    def _picture(self, state: State) -> Pixels:
        assert state.done == state.steps
        size = state.sample.shape.output
        values = (state.base, state.seed, state.steps, state.guidance, state.prompt)
        # Not `hash`, which differs between processes.
        rng = np.random.default_rng(zlib.crc32(repr(values).encode()))
        return rng.integers(0, 256, (size.height, size.width, 3), dtype=np.uint8)


def picture(seed: int, width: int = 64, height: int = 64) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def edit_request(seed: int = 0, **fields: Any) -> EditRequest:
    return EditRequest(
        **{"images": [picture(seed)], "prompt": f"prompt {seed}", "seed": seed, "num_inference_steps": 4, **fields}
    )


def generation_request(seed: int = 0, **fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": f"prompt {seed}", "seed": seed, "num_inference_steps": 4, **fields})


@dataclass
class ArithmeticModel:
    """Substitute for LoadedModel, which would import torch for seconds in every process."""

    pipeline: ArithmeticPipeline
    prefix_stats: None = None
    license: None = None

    def memory(self) -> dict[str, int]:
        return {}


@dataclass
class ArithmeticLocal:
    """Substitute for `serve_app.models.runtime.LocalEditor`, which imports torch."""

    model: ArithmeticModel
    engine: EditEngine
