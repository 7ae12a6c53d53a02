"""A request inside the engine: its future, its run options, and its intermediate results."""

import math
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from serve_app.engine.scheduler import QueuedRequest, Sample
from serve_app.errors import EditError
from serve_app.events import Completed, Event, Listener, Preview, Progress
from serve_app.images.masks import finish, resize_mask
from serve_app.images.pixels import finish_alpha, lay_on_white, resize
from serve_app.request import BatchStats, EditRequest, EditResult, Picture, Timings, TokenCounts, arrange

_RGBA = 4

EditFuture = Future[EditResult]
"""Future of a request. The engine never marks a future as running, so that its caller can cancel it at any time.

The engine drops cancelled requests between steps.
"""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options for running a request that are not part of the request.

    `listener`: called with each event until the future is done; without it, no previews are made. `timeout_s`: seconds
    until the deadline, if less than the engine's timeout. `alone`: run only while no other request is in flight.
    """

    listener: Listener | None = None
    timeout_s: float = math.inf
    alone: bool = False


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """A request from its admission until it leaves. Times are in seconds of the engine's clock."""

    request: EditRequest
    queued: QueuedRequest
    listener: Listener | None = None
    future: EditFuture = field(default_factory=Future)
    is_preparing: bool = False
    """Whether a picture thread prepares the pictures, or will once it is free."""
    prepared: dict[int, Any] | None = None
    """The backend's prepared inputs of the pictures that are not encoded yet, by picture.

    None until all are prepared; no sample may join before.
    """
    tokens: list[TokenCounts] = field(default_factory=list)
    """The tokens of one output of each picture, known once all pictures are prepared."""
    encodings: dict[int, Any] = field(default_factory=dict)
    """The backend's encodings by picture, shared by the picture's variants, until all of them are done."""
    pixels: dict[tuple[int, int], Picture] = field(default_factory=dict)
    """Finished outputs by (image, variant), at the size of the result."""
    deliveries: dict[tuple[int, int], Future[None]] = field(default_factory=dict)
    """The newest delivery of each output, by (image, variant)."""
    progress: Progress | None = None
    """The last progress that the listener received."""
    steps: int = field(init=False)
    """Steps in total, of all samples."""
    joined_s: float | None = None
    """Time when the first sample joined."""
    decoded_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    batch: BatchStats = field(default_factory=BatchStats)

    def __post_init__(self) -> None:
        self.steps = self.queued.steps_left

    def notify(self, event: Event) -> None:
        """Call the listener, if the request has one."""
        if self.listener is not None:
            self.listener(event)

    def report(self, place: int) -> None:
        """Send the listener the request's progress, if it has changed."""
        progress = Progress(self.steps - self.queued.steps_left, self.steps, place)
        if progress != self.progress:
            self.progress = progress
            self.notify(progress)

    def count_forward(self, samples: int, *, is_shared: bool) -> None:
        """Count one forward of `samples` samples; `is_shared`: some of them belong to other requests."""
        batch = self.batch
        self.batch = BatchStats(batch.forwards + 1, batch.samples + samples, batch.shared_forwards + is_shared)

    def deliver(self, executor: Executor, sample: Sample, call: Callable[..., None], *args: Any) -> None:
        """Run `call` on a thread of `executor`, once the sample's earlier deliveries have ended."""
        place = (sample.image_index, sample.variant_index)
        self.deliveries[place] = executor.submit(_run_after, self.deliveries.get(place), call, *args)

    def send_preview(self, sample: Sample, preview_index: int, picture: Picture) -> None:
        """Send the listener a preview at the size of the result."""
        pixels = self._result_of(sample, picture)
        self.notify(Preview(sample.image_index, sample.variant_index, preview_index, pixels))

    def keep_encoding(self, image_index: int, encoding: Any) -> None:
        """Store the encoding of a picture, in place of its prepared inputs."""
        self.encodings[image_index] = encoding
        if self.prepared is not None:
            del self.prepared[image_index]

    def release(self, sample: Sample) -> None:
        """Let go of what the model keeps for a sample that is done, and for its picture once all variants are done."""
        sample.state = None
        if all(other.image_index != sample.image_index for other in self.queued.samples):
            del self.encodings[sample.image_index]

    def keep(self, sample: Sample, picture: Picture) -> EditResult | None:
        """Store a finished sample's picture and notify the listener. Return the result, once all pictures are stored.

        Several threads may call this at once, and more than one may get the result.
        """
        place, pixels = (sample.image_index, sample.variant_index), self._result_of(sample, picture)
        self.notify(Completed(*place, sample.seed, pixels, self.tokens[sample.image_index]))
        self.pixels[place] = pixels
        return self._result() if len(self.pixels) == self.request.outputs else None

    def _result_of(self, sample: Sample, made: Picture) -> Picture:
        """Return what the caller gets of a picture that the model made: at its size, with what a mask keeps."""
        resized, condition = resize(made, sample.result), self.queued.conditions[sample.image_index]
        mask = condition.mask
        if mask is None and made.shape[2] == _RGBA:
            return finish_alpha(resized, self.request.background)
        resized = lay_on_white(resized)
        if not condition.references:
            return resized
        edited = condition.references[0]
        is_opaque = edited.picture.shape[2] == 3
        # A picture that is recomposed has its transparent parts elsewhere.
        if mask is None and (is_opaque or self.request.fit == "free"):
            return resized
        crop = edited.view.crop
        kept = resize(edited.picture, sample.result, crop)
        return finish(resized, kept, None if mask is None else resize_mask(mask, sample.result, crop))

    def _result(self) -> EditResult:
        images, variants = self.request.places, self.request.n
        seeds = {(i, j): self.request.output_seed(i, j) for i in range(images) for j in range(variants)}
        return EditResult(
            pixels=arrange(self.pixels, images, variants),
            seeds=arrange(seeds, images, variants),
            timings=self._timings(),
            batch=self.batch,
            tokens=TokenCounts.total(self.tokens, variants),
        )

    def _timings(self) -> Timings:
        joined_s = self.decoded_s if self.joined_s is None else self.joined_s
        return Timings(
            queue_s=joined_s - self.queued.arrived_s,
            encode_s=self.encode_s,
            denoise_s=self.decoded_s - joined_s - self.encode_s - self.decode_s,
            decode_s=self.decode_s,
        )

    def resolve(self, result: EditResult) -> None:
        """Resolve the future with the result, unless it is done already."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def reject(self, error: EditError) -> None:
        """Resolve the future with an error, unless it is done already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


def _run_after(earlier: Future[None] | None, call: Callable[..., None], *args: Any) -> None:
    # Executors start calls in order, so the earlier one has begun on another thread, and waits for none that has not.
    if earlier is not None:
        wait([earlier])
    call(*args)
