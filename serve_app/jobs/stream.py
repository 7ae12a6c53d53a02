"""The events of a job as server-sent events, for readers that come at any time.

A reader gets the progress as it is, and the last picture of each output; those of outputs that are done in the order in
which they were.
"""

import asyncio
from collections.abc import AsyncGenerator

from sse_starlette import EventSourceResponse

from serve_app.errors import EditError, NotFound
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobStore
from serve_app.responses.errors import error_body
from serve_app.responses.schemas import ErrorDetail, ErrorEvent
from serve_app.responses.stream import END, LINE_END, encode_event, progress_event

_POLL_S = 0.25


async def build_response(jobs: JobStore, id: str, caller: str | None) -> EventSourceResponse:
    """Return the response that streams the events of a job of that caller. Raises NotFound and StoreUnavailable."""
    reader = _Reader(jobs, await jobs.find(id, caller))
    return EventSourceResponse(reader.frames(), sep=LINE_END)


class _Reader:
    def __init__(self, jobs: JobStore, job: Job) -> None:
        self._jobs = jobs
        self._job = job
        # The blob that was sent of each output, and the last progress.
        self._sent: dict[str, str] = {}
        self._progress = b""

    async def frames(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                async for frame in self._news():
                    yield frame
                if self._job.ended_s is not None:
                    break
                await asyncio.sleep(_POLL_S)
                self._job = await self._jobs.find(self._job.id, self._job.caller)
        except EditError as error:
            yield encode_event({"type": "error", **error_body(error)})
            return
        yield self._last()

    async def _news(self) -> AsyncGenerator[bytes, None]:
        """Yield what has changed in the job since it was looked at before."""
        progress = encode_event(progress_event(self._job.progress, generates=self._job.generates))
        if progress != self._progress and self._job.error is None:
            self._progress = progress
            yield progress
        for place, picture in self._job.pictures.items():
            if self._sent.get(place) == picture["blob"]:
                continue
            try:
                text = await self._jobs.read_picture(picture["blob"])
            except NotFound:
                # A later picture is there, unless the whole job has gone: the next look shows it.
                if self._job.ended_s is not None:
                    raise
                continue
            self._sent[place] = picture["blob"]
            yield encode_event(picture["event"] | {"b64_json": text})
        if self._job.done is not None and self._job.ended_s is not None:
            yield encode_event(self._job.done)

    def _last(self) -> bytes:
        """Return the frame that ends the stream: a job that failed ends with its error."""
        if self._job.error is None:
            return END
        detail: ErrorDetail = {"error": self._job.error["code"], "message": self._job.error["message"]}
        event: ErrorEvent = {"type": "error", "detail": detail, "error": self._job.error}
        return encode_event(event)
