"""The events of a streamed edit: frozen, in the order in which a caller reads them."""

from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field

from serve_app.request import BatchStats, EditRequest, EditResult, Pixels, Timings, arrange


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is: denoising steps done and in all, over all its samples.

    `place` is its place in the queue, 1 for the next, and 0 from the moment its first sample joins. It may rise, since
    shorter work may go first. Where a replica dies, both begin again on another.
    """

    steps_done: int
    steps: int
    place: int


@dataclass(frozen=True, slots=True, eq=False)
class Preview:
    """Preview k of one output, 0-based: what the picture would be if the model were right at this step.

    `pixels` are of the size that the model makes, which is `size` rounded up to its multiple.
    """

    image_index: int
    variant_index: int
    preview_index: int
    pixels: Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Completed:
    """One output, as soon as it is done: variant j of picture i."""

    image_index: int
    variant_index: int
    seed: int
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Done:
    """The end: every output has been completed."""

    timings: Timings
    batch: BatchStats = field(default_factory=BatchStats)


Event = Progress | Preview | Completed | Done

Listener = Callable[[Event], None]
"""Told what happens to a request, on the engine's threads: it returns at once and does not raise."""


async def result_of(events: AsyncIterable[Event], request: EditRequest) -> EditResult:
    """What `edit` returns, from the events of a stream that ends with Done. Raises KeyError where an output lacks."""
    outputs: dict[tuple[int, int], Completed] = {}
    done = Done(Timings(0.0, 0.0, 0.0, 0.0))
    async for event in events:
        if isinstance(event, Completed):
            outputs[event.image_index, event.variant_index] = event
        elif isinstance(event, Done):
            done = event
    arranged = arrange(outputs, len(request.images), request.n)
    return EditResult(
        pixels=tuple(tuple(output.pixels for output in variants) for variants in arranged),
        seeds=tuple(tuple(output.seed for output in variants) for variants in arranged),
        timings=done.timings,
        batch=done.batch,
    )
