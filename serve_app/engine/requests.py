"""Tickets: a caller's claim on its result, and what has been made for it so far."""

import math
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from serve_app.engine.scheduler import Entry, Sample
from serve_app.errors import EditError
from serve_app.events import Completed, Event, Listener, Progress
from serve_app.images import resize
from serve_app.request import BatchStats, EditRequest, EditResult, Pixels, Timings, arrange

Ticket = Future[EditResult]
"""The engine never marks it as running, so its caller may cancel it at any moment; the engine looks between steps."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request is to be run, beside what it asks for.

    `listener` is told how it goes until its ticket is done; previews are made for listeners only. `timeout_s`: what is
    left until its deadline, where that is less than the engine gives. `alone`: nothing else is in flight beside it.
    """

    listener: Listener | None = None
    timeout_s: float = math.inf
    alone: bool = False


@dataclass(slots=True, eq=False)
class Claim:
    """A ticket from the engine's side. Times are in seconds of the engine's clock."""

    request: EditRequest
    entry: Entry
    listener: Listener | None = None
    ticket: Ticket = field(default_factory=Future)
    prepared: list[Any] | None = None
    """By picture; opaque. None until all are prepared; before that no sample may join."""
    encodings: dict[int, Any] = field(default_factory=dict)
    """By picture; opaque, shared by its variants."""
    pixels: dict[tuple[int, int], Pixels] = field(default_factory=dict)
    """Finished, at exactly the size asked for."""
    progress: Progress | None = None
    """What the listener was told last."""
    steps: int = field(init=False)
    """In all, of all samples."""
    joined_s: float | None = None
    decoded_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    batch: BatchStats = field(default_factory=BatchStats)

    def __post_init__(self) -> None:
        self.steps = self.entry.steps_left

    def tell(self, event: Event) -> None:
        if self.listener is not None:
            self.listener(event)

    def report(self, place: int) -> None:
        """Tell the listener how far the request is, where that has changed."""
        progress = Progress(self.steps - self.entry.steps_left, self.steps, place)
        if progress != self.progress:
            self.progress = progress
            self.tell(progress)

    def took_part(self, samples: int, *, shared: bool) -> None:
        """One forward of so many samples is done; `shared`: some are of other requests."""
        batch = self.batch
        self.batch = BatchStats(batch.forwards + 1, batch.samples + samples, batch.shared_forwards + shared)

    def keep(self, sample: Sample, picture: Pixels) -> None:
        """Take a finished sample's picture, tell of it, and with the last one resolve. On any thread, many at once."""
        place, size = (sample.image_index, sample.variant_index), self.request.size
        pixels = resize(picture, size) if size else picture
        self.tell(Completed(*place, sample.seed, pixels))
        self.pixels[place] = pixels
        # Two threads may both find it complete; a ticket is resolved once.
        if len(self.pixels) == self.request.outputs:
            self._resolve()

    def _resolve(self) -> None:
        images, variants = len(self.request.images), self.request.n
        seeds = {(i, j): self.request.output_seed(i, j) for i in range(images) for j in range(variants)}
        result = EditResult(
            pixels=arrange(self.pixels, images, variants),
            seeds=arrange(seeds, images, variants),
            timings=self._timings(),
            batch=self.batch,
        )
        # The caller may have cancelled since the engine last looked.
        with suppress(InvalidStateError):
            self.ticket.set_result(result)

    def _timings(self) -> Timings:
        joined_s = self.decoded_s if self.joined_s is None else self.joined_s
        return Timings(
            queue_s=joined_s - self.entry.arrived_s,
            encode_s=self.encode_s,
            denoise_s=self.decoded_s - joined_s - self.encode_s - self.decode_s,
            decode_s=self.decode_s,
        )

    def reject(self, error: EditError) -> None:
        with suppress(InvalidStateError):
            self.ticket.set_exception(error)
