"""Editors without a model, which stand in for the engine behind the HTTP application."""

import asyncio
from collections.abc import AsyncGenerator

import numpy as np

from serve_app.editor import Capabilities
from serve_app.events import Completed, Done, Event, Preview, Progress
from serve_app.images.geometry import Size
from serve_app.request import BatchStats, EditRequest, EditResult, Pixels, Timings, TokenCounts

TIMINGS = Timings(0.001, 0.002, 0.003, 0.004)
BATCH = BatchStats(forwards=4, samples=10, shared_forwards=3)


class Inverter:
    """An editor without a model: it inverts each picture and writes the seed into the first pixel."""

    def __init__(self) -> None:
        self.is_ready: bool = True
        self.generates: bool = True
        self.error: Exception | None = None
        self.requests: list[EditRequest] = []

    async def ready(self) -> bool:
        return self.is_ready

    async def capabilities(self) -> Capabilities | None:
        return Capabilities(2, 1024 * 1024, generates=self.generates) if self.is_ready else None

    async def edit(self, request: EditRequest) -> EditResult:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        seeds = [[request.seed + i * request.n + j for j in range(request.n)] for i in range(request.places)]
        images = request.images or [self._blank(request)]
        pixels = tuple(tuple(self._edit(image, seed) for seed in row) for image, row in zip(images, seeds, strict=True))
        tokens = TokenCounts.total([self._tokens(request, i) for i in range(request.places)], request.n)
        return EditResult(pixels, tuple(map(tuple, seeds)), TIMINGS, BATCH, tokens)

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        """Yield the last output first, so that no caller can rely on the order."""
        result = await self.edit(request)
        places = [(i, j) for i in range(request.places) for j in range(request.n)]
        yield Progress(0, len(places), place=1)
        for i, j in reversed(places):
            for k in range(request.partial_images):
                yield Preview(i, j, k, result.pixels[i][j] // (request.partial_images + 1 - k))
            yield Completed(i, j, result.seeds[i][j], result.pixels[i][j], self._tokens(request, i))
        yield Progress(len(places), len(places), place=0)
        yield Done(result.timings, result.batch, result.tokens)

    def _tokens(self, request: EditRequest, image_index: int) -> TokenCounts:
        """Return a token for each word of the prompt, for each row of the picture, and for each column of an output."""
        if not request.images:
            return TokenCounts(len(request.prompts[0].split()), 0, self._blank(request).shape[1])
        height, width, _ = request.images[image_index].shape
        return TokenCounts(len(request.prompts[image_index].split()), height, width)

    def _blank(self, request: EditRequest) -> Pixels:
        """Return the grey picture that a generation inverts, of its size or of 8 × 6 pixels."""
        size = request.size if isinstance(request.size, Size) else Size(8, 6)
        return np.full((size.height, size.width, 3), 55, np.uint8)

    def _edit(self, image: Pixels, seed: int) -> Pixels:
        result = 255 - image
        result[0, 0] = seed % 256
        return result


class Stumbler(Inverter):
    """An editor whose streams fail after their first event."""

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        yield Progress(0, 5, place=0)
        assert self.error is not None
        raise self.error


class Sleeper(Inverter):
    """An editor whose streams begin and never end."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = asyncio.Event()
        self.closed = asyncio.Event()

    def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        # Kept, so that closing it ends it, and not the garbage collector.
        self.stream = self._sleep()
        return self.stream

    async def _sleep(self) -> AsyncGenerator[Event, None]:
        try:
            yield Progress(0, 5, place=0)
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            self.closed.set()


class Gated(Inverter):
    """An editor whose streams wait after their first step until `gate` is set.

    `begun`: the requests whose streams have begun. `closed`: the seeds of those that were closed before their end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun: list[EditRequest] = []
        self.closed: list[int] = []
        self.middle_error: Exception | None = None

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        if self.error is not None:
            raise self.error
        self.begun.append(request)
        try:
            yield Progress(0, 4, place=2)
            yield Progress(1, 4, place=0)
            await self.gate.wait()
            if self.middle_error is not None:
                raise self.middle_error
            async for event in super().edit_stream(request):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.closed.append(request.seed)
            raise
