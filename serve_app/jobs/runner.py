"""The edit of a job, from its admission to its response as JSON."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass

import orjson

from serve_app.editor import Editor
from serve_app.errors import RETRY_AFTER_S, NotReady, Overloaded, TooManySamples
from serve_app.events import Completed, Done, Event, Preview, Progress
from serve_app.forms.form import EditForm
from serve_app.jobs.job import Job
from serve_app.request import TokenCounts
from serve_app.responses import edits, stream
from serve_app.responses.schemas import OutputBody


@dataclass(frozen=True, slots=True)
class AcceptedEdit:
    """The events of an accepted edit, the first of which has been read. Close it if it is not read to its end."""

    first: Event
    rest: AsyncGenerator[Event, None]

    async def __aiter__(self) -> AsyncIterator[Event]:
        yield self.first
        async for event in self.rest:
            yield event

    async def aclose(self) -> None:
        await self.rest.aclose()


async def start_edit(editor: Editor, job: Job, form: EditForm) -> AcceptedEdit:
    """Start the edit, and return its events once it is accepted. Raises the error that rejects it."""
    events = editor.edit_stream(form.request)
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    _record_progress(job, first)
    return AcceptedEdit(first, events)


async def restart_edit(editor: Editor, job: Job, form: EditForm, patience_s: float) -> AcceptedEdit:
    """Start an edit that an earlier process has accepted; if there is no room, try again for up to `patience_s`."""
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            return await start_edit(editor, job, form)
        except (Overloaded, NotReady, TooManySamples) as error:
            if time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(error.retry_after_s or RETRY_AFTER_S)


async def finish_edit(job: Job, form: EditForm, edit: AcceptedEdit, pool: Executor) -> bytes:
    """Return the edit's response as JSON, with pictures encoded on `pool`; keep progress and feed of `job` up to date.

    Raises the error with which the edit fails.
    """
    start, serialize_s = time.perf_counter(), 0.0
    outputs: dict[tuple[int, int], OutputBody] = {}
    tokens = TokenCounts()
    async with aclosing(edit):
        async for event in edit:
            _record_progress(job, event)
            if isinstance(event, Preview | Completed):
                encode_start = time.perf_counter()
                output = await asyncio.get_running_loop().run_in_executor(pool, stream.encode_output, event, form)
                serialize_s += time.perf_counter() - encode_start
                index = (event.image_index, event.variant_index)
                if isinstance(event, Completed):
                    outputs[index] = output
                job.feed.put(index, stream.picture_event(event, output, form, start))
            if isinstance(event, Done):
                tokens = event.tokens
                job.feed.put("done", stream.done_event(event, form, start, serialize_s))
                job.entry.record_result(event.timings, event.batch, serialize_s)
    ordered = [outputs[index] for index in sorted(outputs)]
    return orjson.dumps(edits.build_body(form, ordered, time.perf_counter() - start, tokens))


def _record_progress(job: Job, event: Event) -> None:
    if isinstance(event, Progress):
        job.progress = event
        job.feed.put("progress", stream.progress_event(event))
