"""Tickets: a caller's claim on its result, and what has been made for it so far."""

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from serve_app.batching import Entry, Sample, arrange
from serve_app.errors import EditError
from serve_app.images import resize
from serve_app.request import EditRequest, EditResult, Pixels, Timings

Ticket = Future[EditResult]
"""The engine never marks it as running, so its caller may cancel it at any moment; the engine looks between steps."""


@dataclass(slots=True, eq=False)
class Claim:
    """A ticket from the engine's side. Times are in seconds of the engine's clock."""

    request: EditRequest
    entry: Entry
    ticket: Ticket = field(default_factory=Future)
    encodings: dict[int, Any] = field(default_factory=dict)
    """By picture; opaque, shared by its variants."""
    pixels: dict[tuple[int, int], Pixels] = field(default_factory=dict)
    joined_s: float | None = None
    encode_s: float = 0.0
    decode_s: float = 0.0

    def keep(self, sample: Sample, picture: Pixels) -> None:
        """Take a finished sample's picture, at exactly the size asked for."""
        size = self.request.size or sample.shape.output
        self.pixels[sample.image_index, sample.variant_index] = resize(picture, size)

    def resolve(self, now_s: float) -> None:
        """Hand the result to the caller. All samples must have been kept."""
        images, variants = len(self.request.images), self.request.n
        seeds = {(i, j): self.request.output_seed(i, j) for i in range(images) for j in range(variants)}
        result = EditResult(
            pixels=arrange(self.pixels, images, variants),
            seeds=arrange(seeds, images, variants),
            timings=self._timings(now_s),
        )
        # The caller may have cancelled since the engine last looked.
        with suppress(InvalidStateError):
            self.ticket.set_result(result)

    def _timings(self, now_s: float) -> Timings:
        joined_s = now_s if self.joined_s is None else self.joined_s
        return Timings(
            queue_s=joined_s - self.entry.arrived_s,
            encode_s=self.encode_s,
            denoise_s=now_s - joined_s - self.encode_s - self.decode_s,
            decode_s=self.decode_s,
        )

    def reject(self, error: EditError) -> None:
        with suppress(InvalidStateError):
            self.ticket.set_exception(error)
