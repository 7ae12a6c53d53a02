"""The Serve deployment ImageEditor: one process, one GPU, one engine."""

import asyncio
import logging
import math
import os
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from ray import serve

from serve_app.deployments.autoscaling import OPEN_REQUESTS, WORK_S
from serve_app.deployments.event_queue import EventQueue
from serve_app.deployments.logging import log_in_one_line
from serve_app.deployments.metrics import SAMPLE_PERIOD_S, EditorMetrics
from serve_app.engine.requests import EditFuture, RunOptions
from serve_app.engine.stats import EngineStats
from serve_app.errors import DeviceLost, EditError, InvalidInput
from serve_app.events import Done, Event
from serve_app.request import EditRequest, EditResult, check_limits, check_output_size
from serve_app.settings import AppSettings

if TYPE_CHECKING:
    from serve_app.models.runtime import LocalEditor

logger = logging.getLogger("ray.serve")

# Requests that @serve.batch hands over at once; more than ever arrive within `engine.gather_s`.
_MAX_SUBMISSION = 256


@serve.deployment(name="ImageEditor")
class ImageEditor:
    """Edits pictures for callers in the cluster: `handle.edit.remote(EditRequest(...))`."""

    def __init__(self, settings: AppSettings) -> None:
        log_in_one_line()
        editor = self._start(settings)
        self._model, self._engine = editor.model, editor.engine
        self._limits = settings.limits
        self._geometry = editor.model.pipeline.geometry
        # Made before the first request, and so before the first forward.
        self._metrics = EditorMetrics(settings.model.served_name, self._geometry.native_area)
        self._submit.set_batch_wait_timeout_s(settings.engine.gather_s)
        # Serve runs constructors on the loop that serves the requests (Ray 2.60).
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    def _start(self, settings: AppSettings) -> "LocalEditor":
        # Here, so that building the application and running the ingress need no torch.
        from serve_app.models import runtime

        return runtime.start(settings, on_forward=lambda samples, seconds: self._metrics.forward(samples, seconds))

    async def edit(self, request: EditRequest, *, timeout_s: float = math.inf) -> EditResult:
        """The request's pictures. Raises the errors of `serve_app.errors`; cancelling the call frees its samples.

        `timeout_s`: a deadline nearer than that of the settings.
        """
        with self._metrics.request():
            if request.partial_images:
                message = "partial_images: only a stream has previews; call edit_stream"
                raise InvalidInput(message, param="partial_images")
            result: EditResult = await asyncio.wrap_future(await self._admit(request, RunOptions(timeout_s=timeout_s)))
            self._metrics.finished(result)
            return result

    async def edit_stream(
        self, request: EditRequest, *, timeout_s: float = math.inf, alone: bool = False
    ) -> AsyncGenerator[Event, None]:
        """The same, told while it happens: progress, previews, each output as soon as it is done, and last Done.

        Raises as `edit`, between any two events. Closing or cancelling the stream frees the request's samples. With
        `alone`, no other request is in flight on this replica while it is.
        """
        queue = EventQueue()
        with self._metrics.request():
            future = await self._admit(request, RunOptions(queue.put, timeout_s, alone))
            # The engine tells of every output before it resolves the future.
            future.add_done_callback(lambda _: queue.close())
            try:
                while (event := await queue.get()) is not None:
                    yield event
                result = future.result()
                self._metrics.finished(result)
                yield Done(result.timings, result.batch)
            finally:
                future.cancel()

    async def _admit(self, request: EditRequest, options: RunOptions) -> EditFuture:
        """The request's future. Where the caller leaves before it has one, the future is cancelled when it is made."""
        check_limits(request, self._limits)
        check_output_size(request, self._geometry, self._limits)
        submission = asyncio.ensure_future(self._submit(request, options))
        try:
            future: EditFuture | EditError = await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(_cancel_future)
            raise
        if isinstance(future, EditError):
            raise future
        return future

    # Only merges and returns at once: @serve.batch itself closes batches while the GPU is busy, one request each
    # (Ray 2.60). The engine owns the queue.
    @serve.batch(max_batch_size=_MAX_SUBMISSION, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _submit(self, requests: list[EditRequest], options: list[RunOptions]) -> list[EditFuture | EditError]:
        return self._engine.submit(requests, options)

    async def _watch(self) -> None:
        while True:
            self._metrics.look(self._engine.stats(), self._engine.knee_tokens, self._model.memory())
            await asyncio.sleep(SAMPLE_PERIOD_S)
            try:
                self._engine.check_health()
            except DeviceLost as error:
                await self._end(error)

    async def _end(self, error: DeviceLost) -> None:
        """End this process, once those who waited have been told.

        Serve asks for health every ten seconds and acts on the third bad answer; until then an idle replica that can do
        nothing would be sent more requests than any other.
        """
        logger.critical("This replica ends itself: %s", error)
        await asyncio.sleep(SAMPLE_PERIOD_S)
        os._exit(1)

    async def stats(self) -> EngineStats:
        return self._engine.stats()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `OpenWorkPolicy` decides by; Serve asks for it."""
        stats = self._engine.stats()
        return {WORK_S: stats.work_s, OPEN_REQUESTS: stats.open_requests}

    async def ready(self) -> bool:
        """True: a replica that answers has loaded and warmed its model."""
        return True

    async def check_health(self) -> None:
        self._engine.check_health()

    def __del__(self) -> None:
        """Serve calls this once the replica's last request is answered."""
        if hasattr(self, "_engine"):
            self._engine.stop()


def _cancel_future(submission: "asyncio.Future[EditFuture | EditError]") -> None:
    if submission.cancelled() or submission.exception() is not None:
        return
    answer = submission.result()
    if not isinstance(answer, EditError):
        answer.cancel()
