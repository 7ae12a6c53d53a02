"""The policy: which samples exist, who joins, which samples take the next step, whose result is whose.

Pure: no torch, no Ray, no thread, and no clock of its own. The engine asks `plan` before every step and obeys.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from serve_app.images import Geometry, Size
from serve_app.request import EditRequest, Pixels

# A batch may be at most this much slower, per sample, than the best one measured and still count as the knee.
KNEE_TOLERANCE = 0.05
# How many joins' price newcomers wait at most: by benchmarks/joining.py, 1 is dearer, and 3 is no better.
JOINS_WAITED = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """What the samples of one forward must share: RoPE is computed once for the whole batch (diffusers 0.42)."""

    output: Size
    reference: Size

    def tokens(self, multiple: int) -> int:
        """Image tokens of one transformer row; `multiple` is the side of a token in pixels."""
        return (self.output.pixels + self.reference.pixels) // multiple**2


@dataclass(frozen=True, slots=True)
class Condition:
    """What variants of one picture share, and what is encoded once for all of them."""

    picture: Pixels
    prompt: str
    negative_prompt: str | None
    """None where guidance is off."""
    reference: Size


@dataclass(slots=True, eq=False)
class Sample:
    """One output picture in the making. `tokens` are those of one step: both rows where guidance is on."""

    entry: "Entry"
    image_index: int
    variant_index: int
    shape: Shape
    tokens: int
    seed: int
    steps: int
    guidance: float
    preview_steps: tuple[int, ...] = ()
    """After how many steps a preview is wanted."""
    steps_done: int = 0
    encoded: bool = False
    state: Any = None
    """The pipeline's, opaque here."""

    @property
    def steps_left(self) -> int:
        return self.steps - self.steps_done


@dataclass(slots=True, eq=False)
class Entry:
    """A request as the queue holds it; `samples` are those not yet finished, in output order."""

    sequence: int
    arrived_s: float
    deadline_s: float
    conditions: tuple[Condition, ...]
    samples: list[Sample] = field(default_factory=list)
    alone: bool = False
    """It shares no step, and nothing else is in flight while it is."""
    joined: bool = False
    """Whether any of its samples has joined."""

    @property
    def work_tokens(self) -> int:
        """Tokens still to be pushed through the transformer: a diffusion edit tells its cost in advance."""
        return sum(sample.tokens * sample.steps_left for sample in self.samples)

    @property
    def steps_left(self) -> int:
        return sum(sample.steps_left for sample in self.samples)

    @property
    def waiting(self) -> int:
        return sum(not sample.encoded for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of `plan`, as in the settings of the same names; the last two are measured.

    `join_s`: what a join costs however few join, for encoding them and for decoding them apart from the others.
    """

    max_samples: int
    batch_tokens: int
    max_paused: int
    join: Literal["step", "batch"]
    order: Literal["shortest", "fifo"]
    aging: float
    seconds_per_token: float
    join_s: float = 0.0


def expand(
    request: EditRequest,
    geometry: Geometry,
    *,
    default_steps: int,
    default_guidance: float,
    sequence: int = 0,
    arrived_s: float = 0.0,
    deadline_s: float = math.inf,
    alone: bool = False,
) -> Entry:
    """A request's samples: every variant of the first picture, then every variant of the second, and so on.

    Who steps them without a queue leaves out `sequence`, `arrived_s`, `deadline_s` and `alone`.
    """
    steps = request.num_inference_steps or default_steps
    guidance = request.guidance_scale or default_guidance
    negative = request.negative_prompt if guidance > 1 else None
    entry = Entry(sequence, arrived_s, deadline_s, _conditions(request, geometry, negative), alone=alone)
    for index, condition in enumerate(entry.conditions):
        output = geometry.cover(request.size) if request.size else condition.reference
        shape = Shape(output, condition.reference)
        rows = 1 if negative is None else 2
        entry.samples += [
            Sample(
                entry=entry,
                image_index=index,
                variant_index=variant,
                shape=shape,
                tokens=rows * shape.tokens(geometry.multiple),
                seed=request.output_seed(index, variant),
                steps=steps,
                guidance=guidance,
                preview_steps=preview_steps(steps, request.partial_images),
            )
            for variant in range(request.n)
        ]
    return entry


def preview_steps(steps: int, previews: int) -> tuple[int, ...]:
    """After which steps to show a preview: evenly spread, each step once, never before the first or after the last."""
    return tuple(sorted({steps * k // (previews + 1) for k in range(1, previews + 1)} - {0}))


def _conditions(request: EditRequest, geometry: Geometry, negative: str | None) -> tuple[Condition, ...]:
    return tuple(
        Condition(picture, prompt, negative, geometry.auto(Size(picture.shape[1], picture.shape[0])))
        for picture, prompt in zip(request.images, request.prompts, strict=True)
    )


def in_order(entries: Sequence[Entry], policy: Policy) -> list[Entry]:
    """The entries, the first to be served first.

    `shortest` sorts by remaining work minus `aging` × time waited, both in seconds. Time waited grows alike for all, so
    `now` cancels out of every comparison, and with it the bound: an entry with work W is never overtaken by one that
    arrived more than W / aging seconds after it.
    """
    if policy.order == "fifo":
        return sorted(entries, key=lambda entry: entry.sequence)
    return sorted(
        entries,
        key=lambda entry: (
            entry.work_tokens * policy.seconds_per_token + policy.aging * entry.arrived_s,
            entry.sequence,
        ),
    )


def plan(entries: Sequence[Entry], policy: Policy, caps: Mapping[Shape, int] | None = None) -> list[Sample]:
    """The samples that take the next step, first in order first. Those not yet encoded join with this step.

    All have the shape of the first sample in order. At most `max_samples` (or the shape's cap, where memory ran out
    before) and, beyond the first, at most `batch_tokens`. Never are more than `max_samples` + `max_paused` encoded.
    """
    samples = [sample for entry in _apart(in_order(entries, policy)) for sample in entry.samples]
    encoded = sum(sample.encoded for sample in samples)
    if policy.join == "batch" and encoded:
        samples = [sample for sample in samples if sample.encoded]
    room = policy.max_samples + policy.max_paused - encoded
    return _fill(samples, room, policy, caps or {})


def holds(batch: Sequence[Sample], policy: Policy, waited_s: float) -> bool:
    """Whether those of a planned batch who would join should wait until one of the others is done.

    A join holds up everybody in the batch for `join_s`; together with those for whom there is room then, it costs that
    once. So they wait while that, added up over them and with `waited_s`, what they have waited already, costs less
    than some joins. A diffusion edit tells beforehand when it is done. The first in order never waits, nor do those who
    join an empty machine.
    """
    staying = [sample for sample in batch if sample.encoded]
    joining = len(batch) - len(staying)
    if not joining or not batch[0].encoded:
        return False
    step_s = sum(sample.tokens for sample in staying) * policy.seconds_per_token
    until_one_is_done_s = min(sample.steps_left for sample in staying) * step_s
    return waited_s + joining * until_one_is_done_s < JOINS_WAITED * policy.join_s * len(batch)


def plan_or_hold(
    entries: Sequence[Entry], policy: Policy, waited_s: float, caps: Mapping[Shape, int] | None = None
) -> tuple[list[Sample], int]:
    """As `plan`, without those whom `holds` tells to wait, and how many they are."""
    batch = plan(entries, policy, caps)
    if not holds(batch, policy, waited_s):
        return batch, 0
    held = sum(not sample.encoded for sample in batch)
    return plan(entries, replace(policy, join="batch"), caps), held


def _apart(ordered: list[Entry]) -> list[Entry]:
    """Those that may be in flight together.

    Behind one that must be alone nothing joins, and it joins once those before it are done and nothing is in flight.
    """
    in_flight = [entry for entry in ordered if entry.joined]
    if any(entry.alone for entry in in_flight):
        return in_flight
    turn = next((place for place, entry in enumerate(ordered) if entry.alone), len(ordered))
    together = [entry for place, entry in enumerate(ordered) if entry.joined or place < turn]
    return together or ordered[turn : turn + 1]


def _fill(samples: Sequence[Sample], room: int, policy: Policy, caps: Mapping[Shape, int]) -> list[Sample]:
    batch: list[Sample] = []
    tokens = 0
    for sample in samples:
        if not sample.encoded and room <= 0:
            continue
        if batch:
            cap = min(policy.max_samples, caps.get(batch[0].shape, policy.max_samples))
            if len(batch) >= cap:
                break
            if sample.shape != batch[0].shape or tokens + sample.tokens > policy.batch_tokens:
                continue
        batch.append(sample)
        tokens += sample.tokens
        room -= not sample.encoded
    return batch


def knee(seconds_by_samples: Mapping[int, float]) -> int:
    """The smallest batch within KNEE_TOLERANCE of the best throughput, from the seconds of one step by batch size."""
    best = max(samples / seconds for samples, seconds in seconds_by_samples.items())
    return min(
        samples for samples, seconds in seconds_by_samples.items() if samples / seconds >= (1 - KNEE_TOLERANCE) * best
    )


def work_s(entries: Iterable[Entry], policy: Policy) -> float:
    """Seconds that the remaining steps take at the present rate."""
    return sum(entry.work_tokens for entry in entries) * policy.seconds_per_token


def drain_s(entries: Iterable[Entry], policy: Policy) -> int:
    """Whole seconds until the present work is done, at least 1: what `Retry-After` says."""
    return max(1, math.ceil(work_s(entries, policy)))
