"""A model whose forward is a wait, as long as a GPU's would be, and requests for it. Many replicas fit on one core."""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve_app.engine.scheduler import ONE_PER_TOKEN, Condition, Sample, StepCost
from serve_app.images.geometry import Geometry
from serve_app.request import EditRequest, Pixels

GEOMETRY = Geometry(native_area=64 * 64, token_side=16)
DEFAULT_STEPS, DEFAULT_GUIDANCE, MAX_SAMPLES = 4, 4.0, 10
TOKENS = 2 * 2 * 64 * 64 // 16**2
"""Of one step of one sample at the native size: two rows of 2 × 64² pixels, 16² a token."""

State = tuple[Condition, Sample]


@dataclass
class Waits:
    """Seconds of all forwards: as they should have been, and as they were."""

    due_s: float = 0.0
    took_s: float = 0.0


@dataclass
class WaitingPipeline:
    """A backend whose forward of T tokens takes max(`knee_tokens`, T) × `seconds_per_token`, and no CPU.

    A result has one colour, which depends on everything that an edit's result depends on, so that any mix-up shows.
    """

    knee_tokens: int
    seconds_per_token: float
    geometry: Geometry = GEOMETRY
    waits: Waits = field(default_factory=Waits)

    @property
    def makes_alpha(self) -> bool:
        return False

    @property
    def generates(self) -> bool:
        return False

    @property
    def step_cost(self) -> StepCost:
        return ONE_PER_TOKEN

    def check(self, condition: Condition) -> None:
        pass

    def prepare(self, condition: Condition, shared: object) -> Condition:
        return condition

    def count_tokens(self, text: str) -> int:
        return 0

    def encode(self, prepared: Sequence[Condition]) -> Sequence[Condition]:
        return prepared

    def prefill(self, encodings: Sequence[Condition], pieces: Sequence[int] | None = None) -> Sequence[int]:
        return [0] * len(encodings)

    def start(self, encoding: Condition, sample: Sample) -> State:
        return encoding, sample

    def step(self, states: Sequence[State]) -> None:
        tokens = max(self.knee_tokens, sum(sample.tokens for _, sample in states))
        self.waits.due_s += tokens * self.seconds_per_token
        time.sleep(tokens * self.seconds_per_token)

    def preview(self, states: Sequence[State]) -> list[Pixels]:
        return self.decode(states)

    def decode(self, states: Sequence[State]) -> list[Pixels]:
        return [_result(condition, sample) for condition, sample in states]


def _result(condition: Condition, sample: Sample) -> Pixels:
    size = sample.shape.output
    values = (int(condition.references[0].picture.sum()), condition.prompt, sample.seed, sample.steps, sample.guidance)
    # Not `hash`, which differs from process to process.
    color = zlib.crc32(repr(values).encode()).to_bytes(4, "big")[:3]
    return np.full((size.height, size.width, 3), list(color), np.uint8)


def picture(seed: int, width: int = 64, height: int = 64) -> Pixels:
    """Return a picture of noise, height × width × 3."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def edit_request(seed: int = 0, **fields: Any) -> EditRequest:
    """Return an edit of one picture of the native size in 4 steps; `fields` replace those of the request."""
    return EditRequest(
        **{"images": [picture(seed)], "prompt": f"prompt {seed}", "seed": seed, "num_inference_steps": 4, **fields}
    )
