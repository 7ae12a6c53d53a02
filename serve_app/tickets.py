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
    prepared: list[Any] | None = None
    """By picture; opaque. None until all are prepared; before that no sample may join."""
    encodings: dict[int, Any] = field(default_factory=dict)
    """By picture; opaque, shared by its variants."""
    pixels: dict[tuple[int, int], Pixels] = field(default_factory=dict)
    """As the model made them."""
    joined_s: float | None = None
    encode_s: float = 0.0
    decode_s: float = 0.0

    def keep(self, sample: Sample, picture: Pixels) -> None:
        """Take a finished sample's picture."""
        self.pixels[sample.image_index, sample.variant_index] = picture

    def resolve(self, now_s: float) -> None:
        """Hand the result, at exactly the size asked for, to the caller. All samples must have been kept."""
        images, variants, size = len(self.request.images), self.request.n, self.request.size
        pixels = {place: resize(picture, size) if size else picture for place, picture in self.pixels.items()}
        seeds = {(i, j): self.request.output_seed(i, j) for i in range(images) for j in range(variants)}
        result = EditResult(
            pixels=arrange(pixels, images, variants),
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
