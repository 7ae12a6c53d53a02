"""The edit of a job: from its admission to its answer as JSON."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass

import orjson

from serve_app.editor import Editor
from serve_app.errors import RETRY_AFTER_S, NotReady, Overloaded, TooManySamples
from serve_app.events import Completed, Done, Event, Progress
from serve_app.forms.form import EditForm
from serve_app.jobs.job import Job
from serve_app.responses import edits
from serve_app.responses.schemas import OutputBody


@dataclass(frozen=True, slots=True)
class Events:
    """Of an edit that was accepted; the first has been read. Close them where they are not read to their end."""

    first: Event
    rest: AsyncGenerator[Event, None]

    async def __aiter__(self) -> AsyncIterator[Event]:
        yield self.first
        async for event in self.rest:
            yield event

    async def aclose(self) -> None:
        await self.rest.aclose()


async def begin(editor: Editor, job: Job, form: EditForm) -> Events:
    """As Editor.edit_stream, once the edit is accepted; raises what refuses it."""
    events = editor.edit_stream(form.request)
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    _hear_progress(job, first)
    return Events(first, events)


async def begin_again(editor: Editor, job: Job, form: EditForm, patience_s: float) -> Events:
    """The same for an edit that was accepted before: where there is no room, it waits, up to `patience_s`."""
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            return await begin(editor, job, form)
        except (Overloaded, NotReady, TooManySamples) as error:
            if time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(error.retry_after_s or RETRY_AFTER_S)


async def finish(job: Job, form: EditForm, events: Events, pool: Executor) -> bytes:
    """The answer as JSON, its pictures encoded in `pool`; `job` is told how far it is. Raises what fails it."""
    start, serialize_s = time.perf_counter(), 0.0
    outputs: dict[tuple[int, int], OutputBody] = {}
    async with aclosing(events):
        async for event in events:
            _hear_progress(job, event)
            if isinstance(event, Completed):
                serialize_s += await _encode(event, form, outputs, pool)
            if isinstance(event, Done):
                job.entry.record_result(event.timings, event.batch, serialize_s)
    ordered = [outputs[place] for place in sorted(outputs)]
    return orjson.dumps(edits.build_body(form, ordered, time.perf_counter() - start))


async def _encode(
    event: Completed, form: EditForm, outputs: dict[tuple[int, int], OutputBody], pool: Executor
) -> float:
    """The seconds it took."""
    place, start = (event.image_index, event.variant_index), time.perf_counter()
    item = (*place, event.seed, event.pixels, form)
    outputs[place] = await asyncio.get_running_loop().run_in_executor(pool, edits.build_output, *item)
    return time.perf_counter() - start


def _hear_progress(job: Job, event: Event) -> None:
    if isinstance(event, Progress):
        job.progress = event
