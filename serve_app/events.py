"""The events of a streamed edit, as frozen values in the order in which a caller reads them."""

from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field

from serve_app.request import BatchStats, EditRequest, EditResult, Picture, Timings, TokenCounts, arrange


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a request: denoising steps done, and steps in total, over all its samples.

    `place` is the request's place in the queue: 1 is next, and 0 means that its first sample has joined. `place` may
    rise, since shorter work may go first. If a replica dies, steps and place start again on another replica.
    """

    steps_done: int
    steps: int
    place: int


@dataclass(frozen=True, slots=True, eq=False)
class Preview:
    """Preview k of one output, 0-based: the picture that the model predicts at this step, at the size of the output."""

    image_index: int
    variant_index: int
    preview_index: int
    pixels: Picture


@dataclass(frozen=True, slots=True, eq=False)
class Completed:
    """One output, variant j of picture i, sent as soon as it is done. `tokens`: of this output alone."""

    image_index: int
    variant_index: int
    seed: int
    pixels: Picture
    tokens: TokenCounts = field(default_factory=TokenCounts)


@dataclass(frozen=True, slots=True)
class Done:
    """The last event: every output has been completed. `tokens`: of the whole request."""

    timings: Timings
    batch: BatchStats = field(default_factory=BatchStats)
    tokens: TokenCounts = field(default_factory=TokenCounts)


Event = Progress | Preview | Completed | Done

Listener = Callable[[Event], None]
"""Callback for the events of a request. The engine's threads call it, so it must return at once and must not raise."""


async def result_of(events: AsyncIterable[Event], request: EditRequest) -> EditResult:
    """Return the result of `edit` from the events of a stream that ends with Done.

    Raises KeyError if an output is missing.
    """
    outputs: dict[tuple[int, int], Completed] = {}
    done = Done(Timings(0.0, 0.0, 0.0, 0.0))
    async for event in events:
        if isinstance(event, Completed):
            outputs[event.image_index, event.variant_index] = event
        elif isinstance(event, Done):
            done = event
    arranged = arrange(outputs, request.places, request.n)
    return EditResult(
        pixels=tuple(tuple(output.pixels for output in variants) for variants in arranged),
        seeds=tuple(tuple(output.seed for output in variants) for variants in arranged),
        timings=done.timings,
        batch=done.batch,
        tokens=done.tokens,
    )
