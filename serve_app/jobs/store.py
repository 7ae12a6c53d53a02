"""The store of jobs, bounded in number and in bytes; ended jobs are kept for a while.

A vault holds the form of an open job and the result of an ended one, so that a later process can go on with the jobs.
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
from serve_app.images.pixels import PICTURE_THREADS
from serve_app.jobs import runner
from serve_app.jobs.feed import News
from serve_app.jobs.job import Job, new_id
from serve_app.jobs.vault import MemoryVault, Superseded, Vault
from serve_app.responses.log import LogEntry
from serve_app.responses.schemas import DeletedJobBody
from serve_app.settings import JobSettings, LogSettings

logger = logging.getLogger("ray.serve")

_LINGER_S = 30.0
"""How long the events of an ended job are kept, for readers who have not come to their end yet."""

_MAX_STARTS = 6
"""Processes that may start one job: a job that is open whenever its process dies may be the cause of it."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as its caller sees it: `body` is JSON."""

    id: str
    body: bytes


class Jobs(Protocol):
    """A store of jobs, in this process or in another one. Raises EditError.

    A job belongs to the caller that has created it; for every other caller there is no such job.
    """

    async def create(self, form: EditForm, id: str | None = None) -> JobView:
        """Start a job. Raises the error that rejects the edit, as without a job.

        `id`: a new one by default. A caller that got no response repeats the call with the same id and gets the same
        job.
        """

    async def get(self, id: str, caller: str | None) -> JobView:
        """Return a job of that caller. Raises NotFound."""

    async def news(self, id: str, caller: str | None, seen: int) -> News:
        """Return the events of a job of that caller after those with numbers up to `seen`. Raises NotFound."""

    async def delete(self, id: str, caller: str | None) -> JobView:
        """Cancel a job's edit if it is open, and forget the job. Raises NotFound."""


class JobStore:
    """The Jobs of one process, on its event loop. Without a `vault` the jobs end with the process.

    Raises ReplicaStopping once another process has taken the jobs over.
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
        # In the order in which they ended.
        self._ended: dict[str, Job] = {}
        # Open jobs by their ids, and background work by other names.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pool = ThreadPoolExecutor(PICTURE_THREADS, thread_name_prefix="job-pictures")

    async def create(self, form: EditForm, id: str | None = None) -> JobView:
        """As Jobs.create. Raises Overloaded if too many jobs are open, or their images are too large."""
        await self.restore()
        if id is not None and (known := self._open.get(id) or self._ended.get(id)):
            return await self.get(known.id, known.caller)
        open_bytes = form.request.picture_bytes
        self._make_room(open_bytes)
        caller = form.request.caller
        entry = LogEntry(self._log, key_name=caller, form=form, is_job=True)
        job = Job(entry, id or new_id(), caller, open_bytes=open_bytes)
        self._open[job.id] = job
        try:
            edit = await self._start_and_store(job, form)
        except BaseException:
            # The vault may hold the form already.
            self._forget(job.id)
            raise
        view = self._view(job)
        self._start_task(job.id, self._run(job, runner.finish_edit(job, form, edit, self._pool)))
        # A task that is cancelled before its first step would never close the events.
        await asyncio.sleep(0)
        return view

    async def _start_and_store(self, job: Job, form: EditForm) -> runner.AcceptedEdit:
        edit = await runner.start_edit(self._editor, job, form)
        try:
            await self._store_form(job, form)
        except BaseException:
            await edit.aclose()
            raise
        return edit

    async def get(self, id: str, caller: str | None) -> JobView:
        """As Jobs.get."""
        job = await self._find(id, caller)
        if job.status != "succeeded":
            return self._view(job)
        try:
            with self._owning():
                return self._view(job, await self._vault.body(self._owner, id))
        except KeyError:
            # The vault was lost, or the job expired meanwhile.
            self._forget(id)
            raise self._not_found() from None

    async def news(self, id: str, caller: str | None, seen: int) -> News:
        """As Jobs.news."""
        return (await self._find(id, caller)).news(seen)

    async def delete(self, id: str, caller: str | None) -> JobView:
        """As Jobs.delete."""
        job = await self._find(id, caller)
        if task := self._tasks.get(job.id):
            task.cancel()
        self._forget(job.id)
        deleted: DeletedJobBody = {"id": job.id, "object": "image_edit.job", "deleted": True}
        return JobView(job.id, orjson.dumps(deleted))

    async def _find(self, id: str, caller: str | None) -> Job:
        await self.restore()
        job = self._open.get(id) or self._ended.get(id)
        if job is None or job.caller != caller:
            raise self._stopping() if self._superseded else self._not_found()
        return job

    def _not_found(self) -> NotFound:
        return NotFound(f"There is no such job; a job is kept for {self._settings.ttl_s:g} s after its end")

    def _view(self, job: Job, result: bytes | None = None) -> JobView:
        return JobView(job.id, job.body(self._settings.ttl_s, result))

    def _start_task(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[name] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    # ---- ownership of the vault ----

    async def restore(self) -> None:
        """Take over the jobs of the previous process, once; open ones are started again."""
        self._restoring = self._restoring or asyncio.create_task(self._take_over())
        await asyncio.shield(self._restoring)

    def check_health(self) -> None:
        """Raise if this process cannot keep jobs, so that Serve starts another one in its place."""
        if self._superseded:
            raise Superseded("another process keeps the jobs now")
        if self._restoring is not None and self._restoring.done():
            self._restoring.result()

    @contextmanager
    def _owning(self) -> Iterator[None]:
        """Raise ReplicaStopping for Superseded, and remember that this process is no longer the owner."""
        try:
            yield
        except Superseded:
            self._superseded = True
            raise self._stopping() from None

    def _stopping(self) -> ReplicaStopping:
        return ReplicaStopping("Another process keeps the jobs now", retry_after_s=RETRY_AFTER_S)

    async def _take_over(self) -> None:
        states = await self._vault.take_over(self._owner)
        for job in (Job.from_state(id, state, self._log) for id, state in states.items()):
            if job.ended_s is None:
                self._open[job.id] = job
                self._start_task(job.id, self._run(job, self._resume(job)))
            else:
                self._ended[job.id] = job
                self._schedule_forget(job)
        self._drop_oldest_results()

    async def _resume(self, job: Job) -> bytes:
        """Return the result of a job that the previous process has accepted."""
        job.starts += 1
        form = await self._load_form(job)
        job.entry.form = form
        job.open_bytes = form.request.picture_bytes
        await self._store_form(job, form)
        edit = await runner.restart_edit(self._editor, job, form, self._settings.ttl_s)
        return await runner.finish_edit(job, form, edit, self._pool)

    async def _load_form(self, job: Job) -> EditForm:
        if job.starts > _MAX_STARTS:
            raise GenerationError(f"the process that kept its job ended, {job.starts - 1} times")
        with self._owning():
            data = await self._vault.body(self._owner, job.id)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, kept_form.load, data)
        except Exception as error:
            logger.warning("The form of job %s cannot be read: %r", job.short_id, error)
            raise GenerationError("the server was updated, and its new version cannot read this job") from None

    async def _store_form(self, job: Job, form: EditForm) -> None:
        data = await asyncio.get_running_loop().run_in_executor(self._pool, kept_form.dump, form)
        with self._owning():
            await self._vault.put(self._owner, job.id, job.dump_state(), data)

    # ---- while a job is open ----

    async def _run(self, job: Job, result: Awaitable[bytes]) -> None:
        """Run a job to its end, and write its log line."""
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
            # The log entry would keep the images of the form in memory.
            job.entry.form = None

    async def _end(self, job: Job, result: bytes) -> None:
        """Store how the job has ended, and only then show it to its caller."""
        ended_s = time.time()
        state = job.dump_state(ended_s=ended_s, result_bytes=len(result))
        try:
            with self._owning():
                await self._vault.put(self._owner, job.id, state, result)
        except ReplicaStopping as error:
            # The new owner runs the job too, and its end is the one that counts.
            job.entry.record_error(error)
            del self._open[job.id]
            return
        except Exception as error:
            job.fail(error)
            result = b""
        job.ended_s, job.result_bytes = ended_s, len(result)
        asyncio.get_running_loop().call_later(_LINGER_S, job.feed.clear)
        self._ended[job.id] = self._open.pop(job.id)
        self._schedule_forget(job)
        self._drop_oldest_results()

    # ---- bounds ----

    def _schedule_forget(self, job: Job) -> None:
        left_s = (job.ended_s or 0.0) + self._settings.ttl_s - time.time()
        asyncio.get_running_loop().call_later(max(0.0, left_s), self._forget, job.id)

    def _forget(self, id: str) -> None:
        if self._open.pop(id, None) or self._ended.pop(id, None):
            self._start_task(f"drop {id}", self._drop(id))

    async def _drop(self, id: str) -> None:
        # A new owner of the vault drops the job itself.
        with suppress(Superseded):
            await self._vault.drop(self._owner, id)

    def _drop_oldest_results(self) -> None:
        """Forget the oldest results beyond `max_result_bytes`, but never the newest one, whatever its size."""
        kept_bytes = sum(job.result_bytes for job in self._ended.values())
        for id, job in list(self._ended.items())[:-1]:
            if kept_bytes <= self._settings.max_result_bytes:
                return
            kept_bytes -= job.result_bytes
            self._forget(id)

    def _make_room(self, open_bytes: int) -> None:
        """Make room for a job with images of that many bytes, if need be in place of the oldest ended job.

        Raises Overloaded.
        """
        held = sum(job.open_bytes for job in self._open.values())
        if self._open and held + open_bytes > self._settings.max_open_bytes:
            message = f"Open jobs hold {held} bytes of images; {open_bytes} more are over the limit"
            raise Overloaded(message, retry_after_s=RETRY_AFTER_S)
        if len(self._open) >= self._settings.max_jobs:
            message = f"{len(self._open)} jobs are open, as many as are allowed"
            raise Overloaded(message, retry_after_s=RETRY_AFTER_S)
        if len(self._open) + len(self._ended) >= self._settings.max_jobs:
            self._forget(next(iter(self._ended)))
