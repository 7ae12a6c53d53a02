"""The edit of a job, from its admission to its last picture, which lie in the job's folder as they are made."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from serve_app.editor import Editor
from serve_app.errors import RETRY_AFTER_S, NotReady, Overloaded, StoreUnavailable, TooManySamples
from serve_app.events import Completed, Done, Event, Preview, Progress
from serve_app.forms.form import EditForm
from serve_app.jobs.job import Job
from serve_app.links.pictures import place_of
from serve_app.request import TokenCounts
from serve_app.responses import edits, stream
from serve_app.responses.log import LogEntry
from serve_app.responses.schemas import OutputBody
from serve_app.store.blobs import Blobs
from serve_app.store.leases import Lease

T = TypeVar("T")

_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class AcceptedEdit:
    """The events of an accepted edit, the first of which has been read. Close it if it is not read to its end."""

    first: Event
    rest: AsyncGenerator[Event, None]

    @property
    def progress(self) -> Progress:
        """The progress with which every edit begins."""
        assert isinstance(self.first, Progress)
        return self.first

    async def __aiter__(self) -> AsyncIterator[Event]:
        yield self.first
        async for event in self.rest:
            yield event

    async def aclose(self) -> None:
        await self.rest.aclose()


async def start_edit(editor: Editor, form: EditForm) -> AcceptedEdit:
    """Start the edit, and return its events once it is accepted. Raises the error that rejects it."""
    events = editor.edit_stream(form.request)
    try:
        return AcceptedEdit(await anext(events), events)
    except BaseException:
        await events.aclose()
        raise


async def restart_edit(editor: Editor, form: EditForm, patience_s: float) -> AcceptedEdit:
    """Start an edit that was accepted before; if there is no room, try again for up to `patience_s`."""
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            return await start_edit(editor, form)
        except (Overloaded, NotReady, TooManySamples) as error:
            if time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(error.retry_after_s or RETRY_AFTER_S)


async def patiently(call: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Return what the call returns; while the store does not answer, try again for up to `patience_s`."""
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            return await call()
        except StoreUnavailable:
            if time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(_PAUSE_S)


class JobRunner:
    """Runs the edit of one job, and writes what becomes of it into the job and its folder.

    `pool`: threads that encode pictures. `patience_s`: how long to wait for a store that does not answer.
    """

    def __init__(
        self, job: Job, lease: Lease, form: EditForm, entry: LogEntry, blobs: Blobs, pool: Executor, patience_s: float
    ) -> None:
        self._job = job
        self._lease = lease
        self._form = form
        self._entry = entry
        self._blobs = blobs
        self._pool = pool
        self._patience_s = patience_s
        self._start = time.perf_counter()
        self._serialize_s = 0.0
        self._outputs: dict[tuple[int, int], OutputBody] = {}
        self._tokens = TokenCounts()
        self._sizes: dict[tuple[int, int], int] = {}

    async def finish(self, edit: AcceptedEdit) -> int:
        """Read the edit to its end, and return the bytes of its pictures. Raises the error with which it fails."""
        async with aclosing(edit):
            async for event in edit:
                await self._record(event)
                # Others see it from the next renewal on.
                self._lease.value = self._job.dump()
        ordered = [self._outputs[index] for index in sorted(self._outputs)]
        self._job.result = edits.build_body(self._form, ordered, time.perf_counter() - self._start, self._tokens)
        return sum(self._sizes.values())

    async def _record(self, event: Event) -> None:
        match event:
            case Progress():
                self._job.progress = event
            case Preview() | Completed():
                await self._store(event)
            case Done():
                self._tokens = event.tokens
                self._job.done = stream.done_event(event, self._form, self._start, self._serialize_s)
                self._entry.record_result(event.timings, event.batch, self._serialize_s)

    async def _store(self, event: Preview | Completed) -> None:
        start, index = time.perf_counter(), (event.image_index, event.variant_index)
        data = await asyncio.get_running_loop().run_in_executor(self._pool, edits.encode_file, event.pixels, self._form)
        self._serialize_s += time.perf_counter() - start
        # Another name for each, so that no reader takes a later picture for an earlier one.
        preview = f".{event.preview_index}" if isinstance(event, Preview) else ""
        output = edits.describe_output(*index, self._form.request.output_seed(*index), event.pixels)
        place = place_of(output)
        blob = f"{self._lease.folder}/{place}{preview}.{self._form.output_format}"
        media_type = f"image/{self._form.output_format}"
        await patiently(lambda: self._blobs.put(blob, data, media_type), self._patience_s)
        if isinstance(event, Completed):
            self._outputs[index], self._sizes[index] = output, len(data)
        former = self._job.pictures.get(place)
        self._job.put_picture(
            place, {"blob": blob, "event": stream.picture_event(event, output, self._form, self._start)}
        )
        if former is not None and former["blob"] != blob:
            await patiently(lambda: self._blobs.delete(former["blob"]), self._patience_s)
