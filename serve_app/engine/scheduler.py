"""The scheduler policy: expand requests into samples, and choose the samples that join and that step next.

Pure: no torch, no Ray, no thread, no clock: callers pass the time as `now_s`. The engine calls `plan_joins` before
every step and runs the batch that it returns.
"""

import heapq
import math
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

from serve_app.engine.sampling import Sampling, SamplingDefaults
from serve_app.errors import InvalidInput
from serve_app.images.geometry import WHOLE, Framing, Geometry, Size, View
from serve_app.images.masks import resize_mask
from serve_app.request import EditRequest, Mask, Picture, size_of, wanted_size

# The knee is the smallest batch whose throughput is at most this much below the best one measured.
KNEE_TOLERANCE = 0.05
# Samples wait to join until their total wait costs as much as this many joins. docs/design/performance.md compares 1, 2
# and 3, simulated.
JOINS_WAITED = 2
# Requests are served by their deadlines once one of them has less than this share of its time to spare.
_URGENT_SHARE = 0.05
# The work that goes before a newcomer may take this share of the time that it has to spare. The rest is for shorter
# requests that will come later and go before it as well. docs/design/performance.md compares other shares, simulated.
_WAIT_SHARE = 0.55


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of one sample, in pixels: of the output that is made, and of the references that it looks at."""

    output: Size
    references: tuple[Size, ...]

    def output_tokens(self, token_side: int) -> int:
        """Return the tokens of the output; `token_side`: in pixels."""
        return self.output.pixels // token_side**2

    def reference_tokens(self, token_side: int) -> int:
        return sum(size.pixels // token_side**2 for size in self.references)


@dataclass(frozen=True, slots=True)
class StepCost:
    """The floating-point operations of a packed forward: `per_token` that runs, and `per_pair` of tokens in attention.

    `kept_per_token`: bytes of keys and values for each token of a reference, which are kept until the samples are done.
    `pieces`: in how many pieces of equal cost the references' prefix is computed, if the model keeps its keys and
    values; 0: it does not. An edit's text is left out, since it is known only once it is tokenized: for one megapixel
    that is a sixth of the tokens, most of which stand for the picture, so that all edits of one size are alike in it. A
    text without any reference is all of its prefix, and counts there.
    """

    per_token: float
    per_pair: float
    kept_per_token: int = 0
    pieces: int = 0

    @property
    def has_prefix(self) -> bool:
        """Whether the references' keys and values are kept, so that only the output's tokens run."""
        return self.pieces > 0

    def running_tokens(self, shape: Shape, token_side: int) -> int:
        """Return the image tokens of one row that run in every step."""
        output = shape.output_tokens(token_side)
        return output if self.has_prefix else output + shape.reference_tokens(token_side)

    def of_row(self, shape: Shape, token_side: int) -> float:
        """Return the operations of one row in a step."""
        running, tokens = (
            self.running_tokens(shape, token_side),
            shape.output_tokens(token_side) + shape.reference_tokens(token_side),
        )
        return self.per_token * running + self.per_pair * running * tokens

    def of_prefill(self, shape: Shape, token_side: int) -> float:
        """Return the operations of the prefix of a picture, once for all variants; 0 without prefixes.

        Each reference attends to itself and to those before it.
        """
        lengths = [size.pixels // token_side**2 for size in shape.references] if self.has_prefix else []
        pairs = sum(length * seen for length, seen in zip(lengths, accumulate(lengths), strict=True))
        return self.per_token * sum(lengths) + self.per_pair * pairs

    def of_text(self, tokens: int) -> float:
        """Return the operations of a prefix that is a text of so many tokens; 0 without prefixes."""
        return self.per_token * tokens + self.per_pair * tokens**2 if self.has_prefix else 0.0

    def prefix_of(self, shape: Shape, token_side: int, text: int = 0) -> "PrefixWork":
        """Return the prefix of a sample, of which nothing is computed yet. `text`: its tokens, without references."""
        if not self.has_prefix:
            return PrefixWork()
        kept_bytes = self.kept_per_token * (shape.reference_tokens(token_side) + text)
        flops = self.of_prefill(shape, token_side) + self.of_text(text)
        return PrefixWork(kept_bytes, flops / self.pieces, self.pieces)


_SQUARE = Size(1, 1)

ONE_PER_TOKEN = StepCost(1.0, 0.0)
"""Work counted in tokens, for simulations, whose time is that of their tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A picture that samples look at, and how; one object for all conditions of a request that look at it so.

    Models see transparent pixels laid on white.
    """

    picture: Picture
    view: View


@dataclass(frozen=True, slots=True)
class Condition:
    """The inputs that the variants of one picture share, and that are encoded once for all of them.

    `references`: the picture that is edited, and then those that the edit looks at beside it; none if it is made from
    the text alone. `output`: as in Framing.
    """

    references: tuple[Reference, ...]
    prompt: str
    negative_prompt: str | None
    """None if guidance is off."""
    output: Size
    mask: Mask | None = None
    """The part of the picture that may change. None: all of it."""
    caller: str | None = None
    """As in EditRequest."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompt and, with guidance, the negative prompt."""
        return (self.prompt,) if self.negative_prompt is None else (self.prompt, self.negative_prompt)


@dataclass(slots=True, eq=False)
class PrefixWork:
    """The prefix of a picture, which all its variants share: its memory, and what is left to compute.

    `piece_flops`: the operations of one piece. Other samples may step between two pieces.
    """

    kept_bytes: int = 0
    piece_flops: float = 0.0
    pieces_left: int = 0

    @property
    def flops_left(self) -> float:
        return self.pieces_left * self.piece_flops


@dataclass(slots=True, eq=False)
class Sample:
    """One output picture in the making.

    `tokens`, `flops`: the image tokens that run in one step and its operations, of both rows if guidance is on.
    `result`: the size that the caller gets.
    """

    request_ref: "weakref.ref[QueuedRequest]"
    """A request holds its samples and not they it, so that all that was made for it is freed once it leaves."""
    image_index: int
    variant_index: int
    shape: Shape
    tokens: int
    flops: float
    result: Size
    seed: int
    sampling: Sampling
    prefix: PrefixWork = field(default_factory=PrefixWork)
    preview_steps: tuple[int, ...] = ()
    """The numbers of steps after which a preview is sent."""
    steps_done: int = 0
    encoded: bool = False
    state: Any = None
    """The backend's state of the sample; opaque to the scheduler."""

    @property
    def request(self) -> "QueuedRequest":
        """Return the sample's request. Raises ReferenceError if nobody holds the request any more."""
        request = self.request_ref()
        if request is None:
            raise ReferenceError("the request of this sample is gone")
        return request

    @property
    def steps(self) -> int:
        return self.sampling.steps

    @property
    def guidance(self) -> float:
        return self.sampling.guidance

    @property
    def steps_left(self) -> int:
        return self.steps - self.steps_done

    @property
    def is_ready(self) -> bool:
        """Whether the next step may be taken: its picture is encoded, and the prefix of it is complete."""
        return self.encoded and not self.prefix.pieces_left


@dataclass(slots=True, eq=False, weakref_slot=True)
class QueuedRequest:
    """A request as the scheduler sees it; `samples`: those that are not finished, in output order."""

    sequence: int
    arrived_s: float
    deadline_s: float
    conditions: tuple[Condition, ...]
    samples: list[Sample] = field(default_factory=list)
    alone: bool = False
    """Whether the request must run while no other request is in flight."""
    joined: bool = False
    """Whether any sample of the request has joined."""

    @property
    def work_flops(self) -> float:
        """Floating-point operations of the remaining steps, and of what is left of the prefixes."""
        steps = sum(sample.flops * sample.steps_left for sample in self.samples)
        return steps + sum(prefix.flops_left for prefix in {sample.prefix for sample in self.samples})

    @property
    def steps_left(self) -> int:
        return sum(sample.steps_left for sample in self.samples)

    @property
    def waiting(self) -> int:
        """Samples that are not encoded yet."""
        return sum(not sample.encoded for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of `plan`: the settings of the same names, and two measurements.

    `join_s`: the fixed cost of a join in seconds, however few samples join: they are encoded, and later decoded, apart
    from the others. `kept_bytes`: memory for what is kept for the references of encoded samples.
    """

    max_samples: int
    batch_tokens: int
    max_paused: int
    join: Literal["step", "batch"]
    order: Literal["shortest", "fifo"]
    aging: float
    seconds_per_flop: float
    join_s: float = 0.0
    kept_bytes: float = math.inf


# --- a request's samples ------------------------------------------------------------------------------------------


def expand(
    request: EditRequest,
    geometry: Geometry,
    defaults: SamplingDefaults,
    *,
    cost: StepCost = ONE_PER_TOKEN,
    count_tokens: Callable[[str], int] = len,
    sequence: int = 0,
    arrived_s: float = 0.0,
    deadline_s: float = math.inf,
    alone: bool = False,
) -> QueuedRequest:
    """Return a queued request with its samples: all variants of the first picture, then all of the second, and so on.

    `count_tokens`: returns the tokens of a text; by default one for each character. Code that steps samples without a
    queue omits `sequence`, `arrived_s`, `deadline_s` and `alone`.

    Raises InvalidInput for a mask that leaves nothing to edit in the part of its picture that the output shows, and for
    an adapter or a preset that the model does not have.
    """
    sampling = defaults.choose(request)
    negative = request.negative_prompt if sampling.guidance > 1 else None
    size = wanted_size(request, masked=bool(request.mask))
    # Without a picture, the shape of `auto` is that of a square.
    framings = [geometry.frame(picture, size, request.fit) for picture in request.sizes or [_SQUARE]]
    conditions = _conditions(request, framings, geometry, negative)
    queued = QueuedRequest(sequence, arrived_s, deadline_s, conditions, alone=alone)
    for index, (framing, condition) in enumerate(zip(framings, conditions, strict=True)):
        shape = Shape(framing.output, tuple(reference.view.size for reference in condition.references))
        rows, side = 1 if negative is None else 2, geometry.token_side
        text = 0 if condition.references else sum(map(count_tokens, condition.texts))
        prefix = cost.prefix_of(shape, side, text)
        queued.samples += [
            Sample(
                request_ref=weakref.ref(queued),
                image_index=index,
                variant_index=variant,
                shape=shape,
                tokens=rows * cost.running_tokens(shape, side),
                flops=rows * cost.of_row(shape, side),
                prefix=prefix,
                result=framing.result,
                seed=request.output_seed(index, variant),
                sampling=sampling,
                preview_steps=preview_steps(sampling.steps, request.partial_images),
            )
            for variant in range(request.n)
        ]
    return queued


def preview_steps(steps: int, previews: int) -> tuple[int, ...]:
    """Return the numbers of steps after which to send a preview.

    They are distinct and evenly spread, and never 0 or the last step.
    """
    return tuple(sorted({steps * k // (previews + 1) for k in range(1, previews + 1)} - {0}))


def _conditions(
    request: EditRequest, framings: Sequence[Framing], geometry: Geometry, negative: str | None
) -> tuple[Condition, ...]:
    known: dict[tuple[int, View], Reference] = {}

    def refer(picture: Picture, view: View) -> Reference:
        return known.setdefault((id(picture), view), Reference(picture, view))

    beside = [
        tuple(refer(picture, geometry.view(size_of(picture))) for picture in pictures)
        for pictures in request.references_by_image
    ]
    if not request.images:
        return tuple(
            Condition((), prompt, negative, framing.output, None, request.caller)
            for prompt, framing in zip(request.prompts, framings, strict=True)
        )
    _check_masks(request, framings)
    return tuple(
        Condition((refer(picture, framing.view), *others), prompt, negative, framing.output, mask, request.caller)
        for picture, prompt, framing, others, mask in zip(
            request.images, request.prompts, framings, beside, request.masks, strict=True
        )
    )


def _check_masks(request: EditRequest, framings: Sequence[Framing]) -> None:
    for index, (mask, framing) in enumerate(zip(request.masks, framings, strict=True)):
        crop = framing.view.crop
        if mask is not None and crop != WHOLE and not resize_mask(mask, framing.output, crop).any():
            raise InvalidInput(
                f"the mask at index {index} has nothing to edit in the middle of its image, which is all that "
                f"size={request.size} shows; leave size out",
                param="mask",
            )


# --- the next step ------------------------------------------------------------------------------------------------


def in_order(requests: Collection[QueuedRequest], policy: Policy, now_s: float) -> list[QueuedRequest]:
    """Return the requests in the order in which the policy serves them at the time `now_s`.

    `fifo`: by arrival. `shortest`: by remaining work minus `aging` × time waited, both in seconds, unless a request
    would then be late: those of `_urgent` come first.
    """
    if policy.order == "fifo":
        return sorted(requests, key=lambda queued: queued.sequence)
    works = [(queued, queued.work_flops * policy.seconds_per_flop) for queued in requests]
    urgent = _urgent(works, policy, now_s)
    others = sorted(
        (work_s + policy.aging * queued.arrived_s, queued.sequence, queued)
        for queued, work_s in works
        if queued.sequence not in urgent
    )
    return [*urgent.values(), *(queued for *_, queued in others)]


def _urgent(works: Sequence[tuple[QueuedRequest, float]], policy: Policy, now_s: float) -> dict[int, QueuedRequest]:
    """Return the requests that must be served by their deadlines now, in that order, by their sequence numbers.

    `works`: requests and their remaining work in seconds. If a request has little time to spare, although all served
    before it have earlier deadlines, it is urgent together with these. Requests that cannot all be in time leave out
    the longest of them, so that most are in time (Moore-Hodgson).
    """
    total_s, last = 0.0, -1
    in_time: list[tuple[float, int]] = []
    by_deadline = sorted((queued.deadline_s, queued.sequence, queued, work_s) for queued, work_s in works)
    for place, (deadline_s, _, queued, work_s) in enumerate(by_deadline):
        heapq.heappush(in_time, (-work_s, place))
        total_s += work_s
        if now_s + total_s > deadline_s:
            longest_s, _ = heapq.heappop(in_time)
            total_s += longest_s
        end_s = now_s + max(total_s, _shared_s(queued, policy))
        if deadline_s - end_s < _URGENT_SHARE * (deadline_s - queued.arrived_s):
            last = place
    places = sorted(place for _, place in in_time if place <= last)
    return {queued.sequence: queued for _, _, queued, _ in (by_deadline[place] for place in places)}


def _shared_s(queued: QueuedRequest, policy: Policy) -> float:
    """Return the time that a request takes if every forward is full, in seconds."""
    flops = (
        sample.steps_left * sample.flops * max(1.0, min(policy.max_samples, policy.batch_tokens / sample.tokens))
        for sample in queued.samples
    )
    return max(flops, default=0.0) * policy.seconds_per_flop


def plan(
    requests: Sequence[QueuedRequest], policy: Policy, now_s: float, memory_tokens: float = math.inf
) -> list[Sample]:
    """Return the samples that take the next step, in the policy's order. Samples that are not encoded join with it.

    A batch has at most `max_samples` samples and at most `batch_tokens` tokens, or `memory_tokens` if memory ran out
    with more; but always room for one sample. At most `max_samples` + `max_paused` samples are encoded at any time, and
    what is kept for them fits into `kept_bytes`, unless it is for one picture only.
    """
    samples = [sample for queued in _exclusive(in_order(requests, policy, now_s)) for sample in queued.samples]
    encoded = sum(sample.encoded for sample in samples)
    if policy.join == "batch" and encoded:
        samples = [sample for sample in samples if sample.encoded]
    room = policy.max_samples + policy.max_paused - encoded
    return _fill(samples, room, policy, min(policy.batch_tokens, memory_tokens))


def should_defer_joins(batch: Sequence[Sample], policy: Policy, deferred_s: float) -> bool:
    """Return whether the joining samples of a planned batch should wait until one of its other samples is done.

    A join delays every sample of the batch by `join_s`. Samples that wait can join together with the samples that take
    the finished one's place, and pay for one join. So joining samples wait while their total wait, including
    `deferred_s` so far, costs less than JOINS_WAITED joins. The remaining steps show when a sample will be done. The
    first sample in order never waits, and neither does any sample of an idle engine.
    """
    staying = [sample for sample in batch if sample.encoded]
    joining = len(batch) - len(staying)
    if not joining or not batch[0].encoded:
        return False
    step_s = sum(sample.flops for sample in staying) * policy.seconds_per_flop
    until_one_is_done_s = min(sample.steps_left for sample in staying) * step_s
    return deferred_s + joining * until_one_is_done_s < JOINS_WAITED * policy.join_s * len(batch)


def plan_joins(
    requests: Sequence[QueuedRequest],
    policy: Policy,
    now_s: float,
    deferred_s: float,
    memory_tokens: float = math.inf,
) -> tuple[list[Sample], int]:
    """Return the batch of `plan` without the samples that `should_defer_joins` defers, and the number of these."""
    batch = plan(requests, policy, now_s, memory_tokens)
    if not should_defer_joins(batch, policy, deferred_s):
        return batch, 0
    deferred = sum(not sample.encoded for sample in batch)
    return plan(requests, replace(policy, join="batch"), now_s, memory_tokens), deferred


def share_prefill(batch: Sequence[Sample]) -> dict[PrefixWork, int]:
    """Return how many pieces of which prefixes of a planned batch are computed before its step, in the batch's order.

    The samples that are ready wait for these pieces, so all of them together take no longer than the step of those
    samples or, if none is ready, of the batch; but the first prefix gets one piece in any case. A prefix without pieces
    waits for the next step, and its samples do not join before.
    """
    free_flops = sum(sample.flops for sample in [sample for sample in batch if sample.is_ready] or batch)
    shares: dict[PrefixWork, int] = {}
    for prefix in dict.fromkeys(sample.prefix for sample in batch if sample.prefix.pieces_left):
        fits = prefix.flops_left <= free_flops
        pieces = prefix.pieces_left if fits else max(int(free_flops // prefix.piece_flops), 0 if shares else 1)
        if pieces:
            shares[prefix] = pieces
        if not fits:
            break
        free_flops -= prefix.flops_left
    return shares


def plan_ready(
    requests: Sequence[QueuedRequest], policy: Policy, now_s: float, memory_tokens: float = math.inf
) -> list[Sample]:
    """Return the batch of `plan` of the samples that are ready: they get the places of those whose prefix is not."""
    samples = [sample for queued in in_order(requests, policy, now_s) for sample in queued.samples if sample.is_ready]
    return _fill(samples, 0, policy, min(policy.batch_tokens, memory_tokens))


def _exclusive(ordered: list[QueuedRequest]) -> list[QueuedRequest]:
    """Return the requests that may be in flight together.

    A request that must run alone joins once the requests before it are done and nothing is in flight. The requests
    behind it do not join until it is done.
    """
    in_flight = [queued for queued in ordered if queued.joined]
    if any(queued.alone for queued in in_flight):
        return in_flight
    turn = next((place for place, queued in enumerate(ordered) if queued.alone), len(ordered))
    together = [queued for place, queued in enumerate(ordered) if queued.joined or place < turn]
    return together or ordered[turn : turn + 1]


class _PrefixMemory:
    """The prefixes of the pictures of encoded samples, and whether there is memory for that of another one."""

    def __init__(self, samples: Collection[Sample], policy: Policy) -> None:
        self._kept = {sample.prefix for sample in samples if sample.encoded}
        self._free_bytes = policy.kept_bytes - sum(prefix.kept_bytes for prefix in self._kept)
        self._is_full = False

    def admit(self, sample: Sample) -> bool:
        """Return whether a sample that is not encoded may join now. Once one may not, none with a new prefix may.

        So a large one gets the memory that those before it leave, however many small ones are behind it.
        """
        prefix = sample.prefix
        if prefix in self._kept or not prefix.kept_bytes:
            return True
        self._is_full = self._is_full or (bool(self._kept) and prefix.kept_bytes > self._free_bytes)
        return not self._is_full

    def add(self, sample: Sample) -> None:
        """Count the prefix of a sample that joins."""
        if sample.prefix.kept_bytes and sample.prefix not in self._kept:
            self._kept.add(sample.prefix)
            self._free_bytes -= sample.prefix.kept_bytes


def _fill(samples: Sequence[Sample], room: int, policy: Policy, most_tokens: float) -> list[Sample]:
    batch: list[Sample] = []
    tokens = 0
    memory = _PrefixMemory(samples, policy)
    for sample in samples:
        if not sample.encoded and (room <= 0 or not memory.admit(sample)):
            continue
        if len(batch) >= policy.max_samples:
            break
        if batch and tokens + sample.tokens > most_tokens:
            continue
        batch.append(sample)
        tokens += sample.tokens
        if not sample.encoded:
            room -= 1
            memory.add(sample)
    return batch


# --- figures ------------------------------------------------------------------------------------------------------


def knee(seconds_by_samples: Mapping[int, float]) -> int:
    """Return the smallest batch within KNEE_TOLERANCE of the best throughput.

    `seconds_by_samples`: seconds of one step by batch size.
    """
    best = max(samples / seconds for samples, seconds in seconds_by_samples.items())
    return min(
        samples for samples, seconds in seconds_by_samples.items() if samples / seconds >= (1 - KNEE_TOLERANCE) * best
    )


def work_s(requests: Iterable[QueuedRequest], policy: Policy) -> float:
    """Return the time that the remaining steps take at the present rate, in seconds."""
    return sum(queued.work_flops for queued in requests) * policy.seconds_per_flop


def excess_s(requests: Collection[QueuedRequest], newcomer: QueuedRequest, policy: Policy, now_s: float) -> float:
    """Return how much of the present work has to be done before a newcomer can be accepted, in seconds.

    0 or less: now. At the rate of `policy`. A newcomer is accepted if the work that goes before it leaves it time to
    spare (`_WAIT_SHARE`), and if it makes no other request late.
    """
    spare_s = newcomer.deadline_s - now_s - work_s([newcomer], policy)
    if policy.order == "fifo":
        return work_s(requests, policy) - spare_s
    before = (queued for queued in requests if queued.work_flops <= newcomer.work_flops)
    return max(work_s(before, policy) - _WAIT_SHARE * spare_s, _late_s(requests, newcomer, policy, now_s))


def _late_s(requests: Iterable[QueuedRequest], newcomer: QueuedRequest, policy: Policy, now_s: float) -> float:
    """Return by how many seconds a newcomer would be late, or would make another request late that is in time so far.

    In the order of their deadlines, which makes the fewest requests late.
    """
    own_s = work_s([newcomer], policy)
    end_s, late, is_after = now_s, -math.inf, False
    for queued in sorted([*requests, newcomer], key=lambda queued: (queued.deadline_s, queued is newcomer)):
        is_after = is_after or queued is newcomer
        end_s += work_s([queued], policy)
        missing_s = end_s - queued.deadline_s
        if queued is newcomer or (is_after and missing_s <= own_s):
            late = max(late, missing_s)
    return late


def until_joined_s(requests: Collection[QueuedRequest], policy: Policy, now_s: float, samples: int) -> int:
    """Return the time until so many samples fewer wait, in whole seconds and at least 1, for `Retry-After`."""
    return _until_s(requests, policy, now_s, samples, before=lambda queued: queued.waiting)


def until_done_s(
    requests: Collection[QueuedRequest], policy: Policy, now_s: float, samples: int, own: Collection[QueuedRequest]
) -> int:
    """Return the time until so many samples of the requests `own` are done, in whole seconds and at least 1."""
    return _until_s(requests, policy, now_s, samples, after=lambda queued: len(queued.samples) if queued in own else 0)


def _until_s(
    requests: Collection[QueuedRequest],
    policy: Policy,
    now_s: float,
    samples: int,
    before: Callable[[QueuedRequest], int] = lambda queued: 0,
    after: Callable[[QueuedRequest], int] = lambda queued: 0,
) -> int:
    """Return the time until the requests, served in order, have freed so many samples.

    `before`, `after`: the samples that a request frees as it begins and as it ends.
    """
    seconds = 0.0
    for queued in in_order(requests, policy, now_s):
        samples -= before(queued)
        if samples <= 0:
            break
        seconds += queued.work_flops * policy.seconds_per_flop
        samples -= after(queued)
        if samples <= 0:
            break
    return max(1, math.ceil(seconds))
