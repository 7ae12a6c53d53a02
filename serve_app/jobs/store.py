"""Jobs: edits whose callers do not wait but ask again. Kept in bounds, for a while after their end.

What a job is to do, and then its result, is written down in a vault; the next process goes on from there.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from serve_app.editor import Editor
from serve_app.errors import RETRY_AFTER_S, GenerationError, NotFound, Overloaded, ReplicaStopping
from serve_app.forms import kept_form
from serve_app.forms.form import EditForm
from serve_app.images import PICTURE_THREADS
from serve_app.jobs import runner
from serve_app.jobs.job import Job, new_id
from serve_app.jobs.vault import MemoryVault, Superseded, Vault
from serve_app.responses.log import LogEntry
from serve_app.responses.schemas import DeletedJobBody
from serve_app.settings import JobSettings, LogSettings

logger = logging.getLogger("ray.serve")

_MOST_STARTS = 6
"""A job that is open whenever its process ends may be why it does. This bounds what it may cost."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as its caller sees it: `body` is JSON."""

    id: str
    body: bytes


class Jobs(Protocol):
    """Where jobs are kept. Raises EditError."""

    async def create(self, form: EditForm, id: str | None = None) -> JobView:
        """Begin one. What refuses the edit itself is raised here, as without a job.

        `id`: unset, a new one. Who has had no answer asks again with the same, and it is the same job.
        """

    async def get(self, id: str) -> JobView:
        """Raises NotFound."""

    async def delete(self, id: str) -> JobView:
        """End it where it runs, and forget it. Raises NotFound."""


class JobStore:
    """The jobs of one process, on its event loop; implements Jobs. Without a `vault` they end with the process.

    Raises ReplicaStopping where another process has taken the jobs over.
    """

    def __init__(self, editor: Editor, settings: JobSettings, log: LogSettings, vault: Vault | None = None) -> None:
        self._editor = editor
        self._settings = settings
        self._log = log
        self._vault = vault or MemoryVault()
        self._owner = uuid.uuid4().hex
        self._restoring: asyncio.Task[None] | None = None
        self._superseded = False
        self._open: dict[str, Job] = {}
        # In the order of their ends.
        self._ended: dict[str, Job] = {}
        # Of the open jobs by their ids, and of what nobody waits for.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pool = ThreadPoolExecutor(PICTURE_THREADS, thread_name_prefix="job-pictures")

    async def create(self, form: EditForm, id: str | None = None) -> JobView:
        """As Jobs.create. Raises Overloaded where as many jobs are open as may be, or with too large pictures."""
        await self.restored()
        if id is not None and (known := self._open.get(id) or self._ended.get(id)):
            return await self.get(known.id)
        open_bytes = form.request.picture_bytes
        self._make_room(open_bytes)
        entry = LogEntry(self._log, key_name=form.request.caller, form=form, is_job=True)
        job = Job(entry, id or new_id(), open_bytes=open_bytes)
        self._open[job.id] = job
        try:
            events = await self._accepted(job, form)
        except BaseException:
            # It may have been written down already.
            self._forget(job.id)
            raise
        view = self._view(job)
        self._begin(job.id, self._run(job, runner.finish(job, form, events, self._pool)))
        # A task that is cancelled before its first step would never close the events.
        await asyncio.sleep(0)
        return view

    async def _accepted(self, job: Job, form: EditForm) -> runner.Events:
        events = await runner.begin(self._editor, job, form)
        try:
            await self._write_form(job, form)
        except BaseException:
            await events.aclose()
            raise
        return events

    async def get(self, id: str) -> JobView:
        """As Jobs.get."""
        job = await self._find(id)
        if job.status != "succeeded":
            return self._view(job)
        try:
            with self._owning():
                return self._view(job, await self._vault.body(self._owner, id))
        except KeyError:
            # The vault was lost, or its time is over since.
            self._forget(id)
            raise self._not_found() from None

    async def delete(self, id: str) -> JobView:
        """As Jobs.delete."""
        job = await self._find(id)
        if task := self._tasks.get(job.id):
            task.cancel()
        self._forget(job.id)
        deleted: DeletedJobBody = {"id": job.id, "object": "image_edit.job", "deleted": True}
        return JobView(job.id, orjson.dumps(deleted))

    async def _find(self, id: str) -> Job:
        await self.restored()
        job = self._open.get(id) or self._ended.get(id)
        if job is None:
            raise self._stopping() if self._superseded else self._not_found()
        return job

    def _not_found(self) -> NotFound:
        return NotFound(f"There is no such job; one is kept for {self._settings.ttl_s:g} s after its end")

    def _view(self, job: Job, result: bytes | None = None) -> JobView:
        return JobView(job.id, job.body(self._settings.ttl_s, result))

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[name] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    # ---- the vault ----

    async def restored(self) -> None:
        """Take over what the process before has kept, the first time; its open jobs go on."""
        self._restoring = self._restoring or asyncio.create_task(self._restore())
        await asyncio.shield(self._restoring)

    def check_health(self) -> None:
        """Raise where this process can keep no jobs, so that another is started in its place."""
        if self._superseded:
            raise Superseded("another process keeps the jobs now")
        if self._restoring is not None and self._restoring.done():
            self._restoring.result()

    @contextmanager
    def _owning(self) -> Iterator[None]:
        try:
            yield
        except Superseded:
            self._superseded = True
            raise self._stopping() from None

    def _stopping(self) -> ReplicaStopping:
        return ReplicaStopping("Another process keeps the jobs now", retry_after_s=RETRY_AFTER_S)

    async def _restore(self) -> None:
        notes = await self._vault.take_over(self._owner)
        for job in (Job.noted(id, note, self._log) for id, note in notes.items()):
            if job.ended_s is None:
                self._open[job.id] = job
                self._begin(job.id, self._run(job, self._resumed(job)))
            else:
                self._ended[job.id] = job
                self._forget_later(job)
        self._keep_bounds()

    async def _resumed(self, job: Job) -> bytes:
        """The answer to a job of the process before."""
        job.starts += 1
        form = await self._read_form(job)
        job.entry.key_name, job.entry.form = form.request.caller, form
        job.open_bytes = form.request.picture_bytes
        await self._write_form(job, form)
        events = await runner.begin_again(self._editor, job, form, self._settings.ttl_s)
        return await runner.finish(job, form, events, self._pool)

    async def _read_form(self, job: Job) -> EditForm:
        if job.starts > _MOST_STARTS:
            raise GenerationError(f"the process that kept it ended, {job.starts - 1} times")
        with self._owning():
            data = await self._vault.body(self._owner, job.id)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, kept_form.load, data)
        except Exception as error:
            logger.warning("The kept job %s cannot be read: %r", job.id, error)
            raise GenerationError("the server was updated, and cannot go on with it") from None

    async def _write_form(self, job: Job, form: EditForm) -> None:
        data = await asyncio.get_running_loop().run_in_executor(self._pool, kept_form.dump, form)
        with self._owning():
            await self._vault.put(self._owner, job.id, job.note(), data)

    # ---- while it runs ----

    async def _run(self, job: Job, result: Awaitable[bytes]) -> None:
        """Until its end."""
        try:
            try:
                data = await result
                job.entry.status = 200
            except Exception as error:
                job.fail(error)
                data = b""
            await self._end(job, data)
        except asyncio.CancelledError:
            job.entry.record_disconnect()
            raise
        finally:
            job.entry.write("job")
            # So that its pictures are not kept with it.
            job.entry.form = None

    async def _end(self, job: Job, result: bytes) -> None:
        """Write down how it ended; then its caller may see it."""
        ended_s = time.time()
        note = job.note(ended_s=ended_s, result_bytes=len(result))
        try:
            with self._owning():
                await self._vault.put(self._owner, job.id, note, result)
        except ReplicaStopping as error:
            # It goes on elsewhere, and the end there is the one that counts.
            job.entry.record_error(error)
            del self._open[job.id]
            return
        except Exception as error:
            job.fail(error)
            result = b""
        job.ended_s, job.result_bytes = ended_s, len(result)
        self._ended[job.id] = self._open.pop(job.id)
        self._forget_later(job)
        self._keep_bounds()

    # ---- how long it is kept ----

    def _forget_later(self, job: Job) -> None:
        left_s = (job.ended_s or 0.0) + self._settings.ttl_s - time.time()
        asyncio.get_running_loop().call_later(max(0.0, left_s), self._forget, job.id)

    def _forget(self, id: str) -> None:
        if self._open.pop(id, None) or self._ended.pop(id, None):
            self._begin(f"drop {id}", self._drop(id))

    async def _drop(self, id: str) -> None:
        # Whoever has taken over forgets it by itself.
        with suppress(Superseded):
            await self._vault.drop(self._owner, id)

    def _keep_bounds(self) -> None:
        """The newest result is kept whatever its size."""
        kept_bytes = sum(job.result_bytes for job in self._ended.values())
        for id, job in list(self._ended.items())[:-1]:
            if kept_bytes <= self._settings.max_result_bytes:
                return
            kept_bytes -= job.result_bytes
            self._forget(id)

    def _make_room(self, open_bytes: int) -> None:
        """Of a job with pictures of so many bytes. Raises Overloaded."""
        held = sum(job.open_bytes for job in self._open.values())
        if self._open and held + open_bytes > self._settings.max_open_bytes:
            message = f"The pictures of open jobs have {held} bytes, and {open_bytes} more are too many"
            raise Overloaded(message, retry_after_s=RETRY_AFTER_S)
        if len(self._open) >= self._settings.max_jobs:
            message = f"{len(self._open)} jobs are open, and no more are kept"
            raise Overloaded(message, retry_after_s=RETRY_AFTER_S)
        if len(self._open) + len(self._ended) >= self._settings.max_jobs:
            self._forget(next(iter(self._ended)))
