"""Jobs: edits whose callers do not wait but ask again. Kept in memory, in bounds, for a while after their end."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import orjson

from serve_app import answer
from serve_app.edit_log import LogEntry
from serve_app.editor import Editor
from serve_app.error_bodies import error_body, for_the_caller
from serve_app.errors import NotFound, Overloaded
from serve_app.events import Completed, Done, Event, Progress
from serve_app.form import EditForm
from serve_app.settings import JobSettings, LogSettings
from serve_app.wire import DeletedJob, ErrorObject, Output
from serve_app.wire import Job as JobBody

_PICTURE_THREADS = 4
_RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as its caller sees it: `body` is JSON."""

    id: str
    body: bytes


class Jobs(Protocol):
    """Where jobs are kept. Raises EditError."""

    async def create(self, form: EditForm) -> JobView:
        """Begin one. What refuses the edit itself is raised here, as without a job."""

    async def get(self, id: str) -> JobView:
        """Raises NotFound."""

    async def delete(self, id: str) -> JobView:
        """End it where it runs, and forget it. Raises NotFound."""


@dataclass(slots=True, eq=False)
class _Job:
    """`ended_s`: seconds since the epoch, None while it runs. One of `result` (JSON) and `error` is set in the end."""

    entry: LogEntry
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created_s: float = field(default_factory=time.time)
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 1))
    serialize_s: float = 0.0
    task: asyncio.Task[None] | None = None
    ended_s: float | None = None
    result: bytes | None = None
    error: ErrorObject | None = None

    @property
    def status(self) -> Literal["queued", "running", "succeeded", "failed"]:
        if self.ended_s is None:
            return "queued" if self.progress.place else "running"
        return "succeeded" if self.error is None else "failed"


class JobStore:
    """The jobs of one process, on its event loop; implements Jobs."""

    def __init__(self, editor: Editor, settings: JobSettings, log: LogSettings) -> None:
        self._editor = editor
        self._settings = settings
        self._log = log
        self._open: dict[str, _Job] = {}
        # In the order of their ends.
        self._ended: dict[str, _Job] = {}
        self._pool = ThreadPoolExecutor(_PICTURE_THREADS, thread_name_prefix="job-pictures")

    async def create(self, form: EditForm) -> JobView:
        """As Jobs.create. Raises Overloaded where as many jobs run as may be kept."""
        self._make_room()
        job = _Job(LogEntry(self._log, key_name=form.request.caller, form=form, is_job=True))
        self._open[job.id] = job
        events = self._editor.edit_stream(form.request)
        try:
            first = await anext(events)
        except BaseException:
            del self._open[job.id]
            await events.aclose()
            raise
        job.task = asyncio.create_task(self._run(job, form, first, events))
        self._hear_progress(job, first)
        return self._view(job)

    async def get(self, id: str) -> JobView:
        """As Jobs.get."""
        return self._view(self._find(id))

    async def delete(self, id: str) -> JobView:
        """As Jobs.delete."""
        job = self._find(id)
        self._ended.pop(job.id, None)
        if self._open.pop(job.id, None) and job.task is not None:
            job.task.cancel()
        deleted: DeletedJob = {"id": job.id, "object": "image_edit.job", "deleted": True}
        return JobView(job.id, orjson.dumps(deleted))

    def _find(self, id: str) -> _Job:
        job = self._open.get(id) or self._ended.get(id)
        if job is None:
            raise NotFound(f"There is no such job; one is kept for {self._settings.ttl_s:g} s after its end")
        return job

    def _view(self, job: _Job) -> JobView:
        progress, ended_s = job.progress, job.ended_s
        # An Answer, as JSON already.
        result: Any = None if job.result is None else orjson.Fragment(job.result)
        value: JobBody = {
            "id": job.id,
            "object": "image_edit.job",
            "status": job.status,
            "created_at": int(job.created_s),
            "expires_at": None if ended_s is None else int(ended_s + self._settings.ttl_s),
            "place": progress.place,
            "steps_done": progress.steps_done,
            "steps": progress.steps,
            "result": result,
            "error": job.error,
        }
        return JobView(job.id, orjson.dumps(value))

    # ---- while it runs ----

    async def _run(self, job: _Job, form: EditForm, first: Event, events: AsyncGenerator[Event, None]) -> None:
        start = time.perf_counter()
        items: dict[tuple[int, int], Output] = {}
        try:
            async with aclosing(events):
                await self._hear(job, form, first, items)
                async for event in events:
                    await self._hear(job, form, event, items)
            ordered = [items[place] for place in sorted(items)]
            job.result = orjson.dumps(answer.body(form, ordered, time.perf_counter() - start))
            job.entry.status = 200
        except asyncio.CancelledError:
            job.entry.left()
            raise
        except Exception as error:
            seen = for_the_caller(error, job.id)
            job.entry.failed(seen)
            job.error = error_body(seen)["error"]
        finally:
            job.entry.write("job")
        self._end(job)

    async def _hear(self, job: _Job, form: EditForm, event: Event, items: dict[tuple[int, int], Output]) -> None:
        self._hear_progress(job, event)
        if isinstance(event, Completed):
            place = (event.image_index, event.variant_index)
            start, loop = time.perf_counter(), asyncio.get_running_loop()
            items[place] = await loop.run_in_executor(self._pool, answer.item, *place, event.seed, event.pixels, form)
            job.serialize_s += time.perf_counter() - start
        if isinstance(event, Done):
            job.entry.answered(event.timings, event.batch, job.serialize_s)

    def _hear_progress(self, job: _Job, event: Event) -> None:
        if isinstance(event, Progress):
            job.progress = event

    # ---- how long it is kept ----

    def _end(self, job: _Job) -> None:
        job.ended_s = time.time()
        del self._open[job.id]
        # The newest result is kept whatever its size.
        while self._ended and self._kept_bytes() + len(job.result or b"") > self._settings.max_result_bytes:
            self._forget_oldest()
        self._ended[job.id] = job
        asyncio.get_running_loop().call_later(self._settings.ttl_s, self._ended.pop, job.id, None)

    def _kept_bytes(self) -> int:
        return sum(len(job.result or b"") for job in self._ended.values())

    def _make_room(self) -> None:
        if len(self._open) >= self._settings.max_jobs:
            message = f"{len(self._open)} jobs are open, and no more are kept"
            raise Overloaded(message, retry_after_s=_RETRY_AFTER_S)
        if len(self._open) + len(self._ended) >= self._settings.max_jobs:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        del self._ended[next(iter(self._ended))]
