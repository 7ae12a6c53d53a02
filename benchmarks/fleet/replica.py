"""A simulated replica, which batches as the engine does.

`serve_app.engine.scheduler.plan`, the engine's own rule, decides which samples share a forward. Simplified: a forward
of T tokens takes `max(knee, T) × seconds_per_token`; encoding, decoding and the network take no time; nothing fails.
"""

import math
import weakref
from dataclasses import dataclass

from serve_app.engine.sampling import Sampling
from serve_app.engine.scheduler import Policy, QueuedRequest, Sample, Shape, plan, work_s

_MAX_SAMPLES = 10


@dataclass(frozen=True, slots=True)
class Edit:
    """A request of the trace: `samples` outputs of `steps` steps, each of `tokens` tokens a step."""

    at_s: float
    shape: Shape
    samples: int
    steps: int
    tokens: int

    @property
    def all_tokens(self) -> int:
        return self.samples * self.steps * self.tokens


@dataclass(frozen=True, slots=True)
class Speed:
    """A GPU's speed: a forward is no faster below `knee_tokens`; a replica is ready `startup_s` after its start."""

    seconds_per_token: float
    knee_tokens: int
    startup_s: float = 0.0


class Replica:
    """One engine. `next_s`: when its batch has to be planned anew; infinite if there is nothing to do."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self._policy = Policy(_MAX_SAMPLES, speed.knee_tokens, 8, "step", "shortest", 0.1, speed.seconds_per_token)
        self.entries: list[QueuedRequest] = []
        self.forwards = self.sample_steps = 0
        self.next_s = math.inf
        self._batch: list[Sample] = []
        self._since_s = self._step_s = 0.0

    def take(self, entry: QueuedRequest, now_s: float) -> None:
        """Add a request, which joins at the end of the present step."""
        self.entries.append(entry)
        if self._batch:
            steps = math.ceil((now_s - self._since_s) / self._step_s - 1e-9)
            self.next_s = min(self.next_s, self._since_s + steps * self._step_s)
        else:
            self._start_batch(now_s)

    def turn(self, now_s: float) -> list[QueuedRequest]:
        """Plan anew at a step's end; return the requests that are done."""
        self._credit(now_s)
        for sample in self._batch:
            if sample.steps_left == 0:
                sample.request.samples.remove(sample)
        done = [entry for entry in self.entries if not entry.samples]
        self.entries = [entry for entry in self.entries if entry.samples]
        self._start_batch(now_s)
        return done

    def open_work_s(self, now_s: float) -> float:
        self._credit(now_s)
        return work_s(self.entries, self._policy)

    def open_tokens(self) -> int:
        """Return the tokens of one step of all open samples."""
        return sum(sample.tokens for entry in self.entries for sample in entry.samples)

    def room_tokens(self) -> int:
        """Return how many more tokens fit into a forward below the knee."""
        return self.speed.knee_tokens - self.open_tokens()

    def _credit(self, now_s: float) -> None:
        """Count the steps that have ended by now."""
        if not self._batch:
            return
        steps = int((now_s - self._since_s) / self._step_s + 1e-9)
        for sample in self._batch:
            sample.steps_done += steps
        self._since_s += steps * self._step_s
        self.forwards += steps
        self.sample_steps += steps * len(self._batch)

    def _start_batch(self, now_s: float) -> None:
        self._batch = plan(self.entries, self._policy, now_s)
        for sample in self._batch:
            sample.encoded = True
        tokens = max(self.speed.knee_tokens, sum(sample.tokens for sample in self._batch))
        self._since_s, self._step_s = now_s, tokens * self.speed.seconds_per_token
        steps = min((sample.steps_left for sample in self._batch), default=math.inf)
        self.next_s = now_s + steps * self._step_s


def samples_of(entry: QueuedRequest, edit: Edit) -> list[Sample]:
    return [
        Sample(
            request_ref=weakref.ref(entry),
            image_index=0,
            variant_index=variant,
            shape=edit.shape,
            tokens=edit.tokens,
            # A simulated step takes the time of its tokens.
            flops=edit.tokens,
            result=edit.shape.output,
            seed=0,
            sampling=Sampling(edit.steps, 4.0),
        )
        for variant in range(edit.samples)
    ]
