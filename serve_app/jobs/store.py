"""Jobs over the store: any process of the application accepts, runs and shows them.

The process that accepts a job runs it, and renews its lease meanwhile. If that process dies, the lease runs out, and
another process goes on with the job, with the same form and the same seed.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
import pybase64

from serve_app.editor import Editor
from serve_app.errors import RETRY_AFTER_S, GenerationError, NotFound, StoreUnavailable
from serve_app.forms.form import EditForm, parse_kept
from serve_app.images.pixels import PICTURE_THREADS
from serve_app.jobs.job import GROUP, Job
from serve_app.jobs.runner import AcceptedEdit, JobRunner, patiently, restart_edit, start_edit
from serve_app.jobs.webhooks import Webhooks
from serve_app.links.pictures import LinkedPictures
from serve_app.responses import stream
from serve_app.responses.errors import to_public_error
from serve_app.responses.log import LogEntry
from serve_app.responses.schemas import DeletedJobBody, LinkedOutputBody, OutputBody
from serve_app.settings import AppSettings
from serve_app.store.leases import BEAT_S, Lease, LeaseLost, Leases
from serve_app.store.records import Bounds, Record
from serve_app.store.store import Store

logger = logging.getLogger("ray.serve")

_FORM = "form"

_MAX_STARTS = 6
"""Processes that may start one job: a job that is open whenever its process dies may be the cause of it."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as its caller sees it: `body` is JSON."""

    id: str
    body: bytes


@dataclass(slots=True, eq=False)
class _Run:
    """A job that runs in this process. `form` is None until it has been read; `kept`: the form as the store has it."""

    job: Job
    lease: Lease
    kept: bytes
    form: EditForm | None
    entry: LogEntry
    is_forgotten: bool = False


class JobStore:
    """The jobs of an application, as one of its processes sees and runs them, on its event loop. Raises EditError.

    A job belongs to the caller that has created it; for every other caller there is no such job.
    """

    def __init__(
        self,
        editor: Editor,
        store: Store,
        settings: AppSettings,
        webhooks: Webhooks,
        linked: LinkedPictures,
        *,
        beat_s: float = BEAT_S,
    ) -> None:
        self._webhooks = webhooks
        self._linked = linked
        self._editor = editor
        self._store = store
        self._settings = settings
        self._limits = settings.jobs
        bounds = Bounds(self._limits.max_jobs, self._limits.max_open_bytes, self._limits.max_result_bytes)
        self._leases = Leases(store, GROUP, "jobs", bounds, beat_s=beat_s)
        # Jobs that run in this process by their ids.
        self._running: dict[str, tuple[_Run, asyncio.Task[None]]] = {}
        self._pool = ThreadPoolExecutor(PICTURE_THREADS, thread_name_prefix="job-pictures")

    def stop(self) -> None:
        """Leave every job as it is, as if this process had died."""
        self._leases.stop()
        for _, task in self._running.values():
            task.cancel()

    async def hand_over(self) -> None:
        """Stop, and let other processes go on with the jobs at once, since this one ends."""
        self.stop()
        with suppress(StoreUnavailable):
            for run, _ in list(self._running.values()):
                await self._leases.hand_over(run.lease)

    async def create(self, form: EditForm, request_id: str = "") -> JobView:
        """Start a job. Cancelling the call cancels the edit.

        Raises the error that rejects the edit, as without a job; Overloaded if too many jobs are open, or their images
        are too large; StoreUnavailable.
        """
        assert form.kept is not None
        caller, open_bytes = form.request.caller, form.request.picture_bytes + len(form.kept)
        generates = stream.is_generation(form)
        job = Job(
            caller=caller,
            open_bytes=open_bytes,
            generates=generates,
            as_links=form.as_links,
            webhook_url=form.webhook_url,
        )
        lease = await self._leases.open(job.id, job.dump(), open_bytes)
        assert isinstance(lease, Lease)
        entry = LogEntry(self._settings.log, request_id, key_name=caller, form=form, is_job=True)
        run = _Run(job, lease, form.kept, form, entry)
        accepted: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._start(run, self._accept_and_run(run, form, accepted))
        try:
            return JobView(job.id, await accepted)
        except asyncio.CancelledError:
            self._cancel(job.id)
            await self._leases.release(lease)
            raise

    async def get(self, id: str, caller: str | None, base_url: str) -> JobView:
        """Return a job of that caller. Raises NotFound and StoreUnavailable. `base_url`: as in LinkedPictures."""
        job = await self.find(id, caller)
        if job.as_links and job.ended_s is not None:
            left_s = job.ended_s + self._limits.ttl_s - time.time()
            return self._view(job, await self._linked.link(base_url, id, job.outputs, at_most_s=left_s))
        return self._view(job, await asyncio.gather(*(self._filled(*output) for output in job.outputs)))

    async def _filled(self, output: OutputBody, blob: str) -> OutputBody:
        return output | {"b64_json": await self.read_picture(blob)}

    async def find(self, id: str, caller: str | None) -> Job:
        """Return the state of a job of that caller. Raises NotFound and StoreUnavailable."""
        record = await self._store.records.get(GROUP, id)
        job = None if record is None else _load(record)
        if job is None or job.caller != caller:
            raise self._not_found()
        return job

    async def read_picture(self, blob: str) -> str:
        """Return a picture file as Base64. Raises NotFound if the job has gone meanwhile, and StoreUnavailable."""
        try:
            data = await self._store.blobs.get(blob)
        except KeyError:
            raise self._not_found() from None
        return await asyncio.get_running_loop().run_in_executor(self._pool, pybase64.b64encode_as_string, data)

    async def delete(self, id: str, caller: str | None) -> JobView:
        """Cancel a job's edit if it is open, and forget the job. Raises NotFound and StoreUnavailable."""
        job = await self.find(id, caller)
        if not await self._store.records.drop(GROUP, id):
            raise self._not_found()
        self._cancel(id)
        deleted: DeletedJobBody = {"id": job.id, "object": "image_edit.job", "deleted": True}
        return JobView(job.id, orjson.dumps(deleted))

    def _not_found(self) -> NotFound:
        return NotFound(f"There is no such job; a job is kept for {self._limits.ttl_s:g} s after its end")

    def _view(self, job: Job, outputs: list[OutputBody] | list[LinkedOutputBody]) -> JobView:
        return JobView(job.id, job.body(self._limits.ttl_s, outputs))

    # ---- while a job is open ----

    def _start(self, run: _Run, work: Coroutine[Any, Any, None]) -> None:
        # In the context of no request: Ray (2.60) cancels, at the end of a request, every call made in its context.
        task = asyncio.create_task(work, context=contextvars.Context())
        self._running[run.job.id] = run, task
        task.add_done_callback(lambda _: self._running.pop(run.job.id, None))
        run.lease.on_lost = lambda: self._cancel(run.job.id)
        run.lease.on_restored = lambda: self._begin_again(run, task)

    def _cancel(self, id: str) -> None:
        if id in self._running:
            run, task = self._running[id]
            run.lease.is_lost = True
            task.cancel()

    def _begin_again(self, run: _Run, task: asyncio.Task[None]) -> None:
        run.is_forgotten = True
        task.cancel()

    async def _accept_and_run(self, run: _Run, form: EditForm, accepted: "asyncio.Future[bytes]") -> None:
        try:
            edit = await start_edit(self._editor, form)
            try:
                run.job.progress = edit.progress
                await self._keep(run)
            except BaseException:
                await edit.aclose()
                raise
        except (asyncio.CancelledError, LeaseLost) as error:
            # Nobody has deleted a job that nobody knows of: the store did not answer for too long.
            if not accepted.done():
                message = "The store of jobs did not keep this job; send it again"
                accepted.set_exception(StoreUnavailable(message, retry_after_s=RETRY_AFTER_S))
            if isinstance(error, LeaseLost):
                return
            raise
        except Exception as error:
            with suppress(StoreUnavailable):
                await self._leases.release(run.lease)
            if not accepted.done():
                accepted.set_exception(error)
            return
        if not accepted.done():
            accepted.set_result(self._view(run.job, []).body)
        await self._run(run, edit)

    async def _keep(self, run: _Run) -> None:
        """Store the form, and then that the job is accepted."""
        await self._store.blobs.put(f"{run.lease.folder}/{_FORM}", run.kept)
        run.job.is_accepted = True
        run.lease.value = run.job.dump()
        await self._leases.renew(run.lease)

    async def _run(self, run: _Run, edit: AcceptedEdit | None = None) -> None:
        """Run a job to its end, and write its log line. `edit`: the edit, if it has been started."""
        try:
            while True:
                try:
                    await self._attempt(run, edit)
                    return
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if not run.is_forgotten or task is None:
                        raise
                    task.uncancel()
                    run.is_forgotten, edit = False, None
        except asyncio.CancelledError:
            run.entry.record_disconnect()
            await self._clean(run.lease)
            raise
        except LeaseLost:
            run.entry.record_disconnect()
            await self._clean(run.lease)
        except StoreUnavailable as error:
            run.entry.record_error(error)
        finally:
            run.entry.write("job")
            # The log entry would keep the images of the form in memory.
            run.entry.form = None

    async def _attempt(self, run: _Run, edit: AcceptedEdit | None) -> None:
        job = run.job
        try:
            if edit is None:
                edit = await self._restart(run)
            assert run.form is not None
            runner = JobRunner(job, run.lease, run.form, run.entry, self._store.blobs, self._pool, self._limits.ttl_s)
            size = await runner.finish(edit)
            run.entry.status = 200
            job.end()
        except LeaseLost:
            raise
        except Exception as error:
            public = to_public_error(error, job.short_id)
            run.entry.record_error(public)
            job.fail(public)
            size = 0
        await self._settle(run, size)

    async def _settle(self, run: _Run, size: int) -> None:
        """Store how the job has ended: from then on its caller sees the end. Then delete what it needs no longer."""
        run.lease.value, run.lease.size = run.job.dump(), size
        # Before the end, so that no process can die between the two: it is told only once the job has ended.
        await patiently(lambda: self._webhooks.announce(run.job), self._limits.ttl_s)
        await patiently(lambda: self._leases.settle(run.lease, self._limits.ttl_s), self._limits.ttl_s)
        with suppress(StoreUnavailable):
            if run.job.error is None:
                await self._store.blobs.delete(f"{run.lease.folder}/{_FORM}")
            else:
                await self._store.blobs.delete_folder(run.lease.folder)

    async def _clean(self, lease: Lease) -> None:
        """Delete the blobs of a job that was deleted: one may have been written after the others were."""
        with suppress(StoreUnavailable):
            record = await self._store.records.get(GROUP, lease.id)
            if record is None:
                await self._store.blobs.delete_folder(lease.folder)

    # ---- jobs whose process has died ----

    async def sweep(self) -> None:
        """Delete jobs that are over, and go on with those whose process has died. Raises StoreUnavailable."""
        for record in await self._leases.sweep():
            await self._take_over(record)

    async def _take_over(self, record: Record) -> None:
        job = _load(record)
        if job is None or not job.is_accepted:
            # Nobody can go on with it, or its caller has got no answer.
            await self._store.records.drop(GROUP, record.id, record.version)
            return
        job.starts += 1
        job.restart()
        lease = await self._leases.take(record, job.dump(), job.open_bytes)
        if lease is None:
            return
        entry = LogEntry(self._settings.log, key_name=job.caller, is_job=True)
        logger.warning("Job %s goes on in this process", job.short_id)
        run = _Run(job, lease, b"", None, entry)
        self._start(run, self._run(run))

    async def _restart(self, run: _Run) -> AcceptedEdit:
        """Start the edit of a job that was accepted before, here or in another process."""
        run.job.restart()
        if run.form is None:
            run.form = run.entry.form = await self._load_form(run)
        else:
            await patiently(lambda: self._keep(run), self._limits.ttl_s)
        return await restart_edit(self._editor, run.form, self._limits.ttl_s)

    async def _load_form(self, run: _Run) -> EditForm:
        if run.job.starts > _MAX_STARTS:
            raise GenerationError(f"the process that kept its job ended, {run.job.starts - 1} times")
        try:
            run.kept = await patiently(lambda: self._store.blobs.get(f"{run.lease.folder}/{_FORM}"), self._limits.ttl_s)
            return await parse_kept(run.kept, self._settings, self._pool, run.job.caller)
        except StoreUnavailable:
            raise
        except Exception as error:
            logger.warning("The form of job %s cannot be read: %r", run.job.short_id, error)
            raise GenerationError("the server was updated, and its new version cannot read this job") from None


def _load(record: Record) -> Job | None:
    """Return the job of a record, or None for one of another version of this code."""
    try:
        return Job.load(record.value)
    except (ValueError, TypeError):
        return None
