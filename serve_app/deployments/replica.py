"""The Serve deployment ImageEditor: each replica is one process with one GPU and one engine."""

import asyncio
import logging
import math
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING

from ray import serve

from serve_app.deployments.autoscaling import OPEN_REQUESTS, WORK_S
from serve_app.deployments.event_queue import EventQueue
from serve_app.deployments.logging import log_refusals_in_one_line
from serve_app.deployments.metrics import SAMPLE_PERIOD_S, EditorMetrics
from serve_app.editor import Capabilities
from serve_app.engine.requests import EditFuture, RunOptions
from serve_app.engine.stats import EngineStats
from serve_app.errors import DeviceLost, EditError, InvalidInput
from serve_app.events import Done, Event
from serve_app.request import EditRequest, EditResult, check_limits, check_output_size
from serve_app.settings import AppSettings

if TYPE_CHECKING:
    from serve_app.models.runtime import LocalEditor

logger = logging.getLogger("ray.serve")

# Requests that @serve.batch merges into one submission; more than ever arrive within `engine.gather_s`.
_MAX_SUBMISSION = 256


@serve.deployment(name="ImageEditor")
class ImageEditor:
    """Edits pictures for callers in the cluster: `handle.edit.remote(EditRequest(...))`."""

    def __init__(self, settings: AppSettings) -> None:
        log_refusals_in_one_line()
        editor = self._start(settings)
        self._model, self._engine = editor.model, editor.engine
        self._limits = settings.limits
        self._geometry = editor.model.pipeline.geometry
        # Set before the first request, and so before the first forward uses it.
        self._metrics = EditorMetrics(settings.model.served_name, self._geometry.native_area)
        self._submit.set_batch_wait_timeout_s(settings.engine.gather_s)
        # Serve runs constructors on the loop that serves the requests (Ray 2.60).
        self._monitoring = asyncio.get_running_loop().create_task(self._monitor())

    def _start(self, settings: AppSettings) -> "LocalEditor":
        # Imported here, so that building the application and running the ingress need no torch.
        from serve_app.models import runtime

        # A lambda, since the metrics are created after the engine.
        return runtime.start(settings, on_forward=lambda *forward: self._metrics.record_forward(*forward))

    async def edit(self, request: EditRequest, *, timeout_s: float = math.inf) -> EditResult:
        """Return the request's outputs. Raises the errors of `serve_app.errors`; cancelling the call frees its samples.

        `timeout_s`: a time limit shorter than that of the settings.
        """
        with self._metrics.count_request():
            if request.partial_images:
                message = "partial_images: only a stream has previews; call edit_stream"
                raise InvalidInput(message, param="partial_images")
            result: EditResult = await asyncio.wrap_future(await self._admit(request, RunOptions(timeout_s=timeout_s)))
            self._metrics.record_result(result)
            return result

    async def edit_stream(
        self, request: EditRequest, *, timeout_s: float = math.inf, alone: bool = False
    ) -> AsyncGenerator[Event, None]:
        """Yield progress, previews, each output as soon as it is done, and at the end Done.

        Raises as `edit`, between any two events. Closing or cancelling the stream frees the request's samples. With
        `alone`, no other request is in flight on this replica together with this one.
        """
        queue = EventQueue()
        with self._metrics.count_request():
            future = await self._admit(request, RunOptions(queue.put, timeout_s, alone))
            # The engine puts every output into the queue before it resolves the future.
            future.add_done_callback(lambda _: queue.close())
            try:
                while (event := await queue.get()) is not None:
                    yield event
                result = future.result()
                self._metrics.record_result(result)
                yield Done(result.timings, result.batch, result.tokens)
            finally:
                future.cancel()

    async def _admit(self, request: EditRequest, options: RunOptions) -> EditFuture:
        """Submit the request to the engine, and return its future, which is cancelled if this call is."""
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

    # Merges requests and returns at once, since the engine owns the queue. If it waited for the results, @serve.batch
    # would go on closing batches while the GPU is busy, of one request each (Ray 2.60).
    @serve.batch(max_batch_size=_MAX_SUBMISSION, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _submit(self, requests: list[EditRequest], options: list[RunOptions]) -> list[EditFuture | EditError]:
        return self._engine.submit(requests, options)

    async def _monitor(self) -> None:
        while True:
            self._metrics.set_gauges(self._engine.stats(), self._engine.knee_tokens, self._model.memory())
            if (prefixes := self._model.prefix_stats) is not None:
                # A copy, since the engine counts on.
                self._metrics.record_prefixes(replace(prefixes))
            await asyncio.sleep(SAMPLE_PERIOD_S)
            try:
                self._engine.check_health()
            except DeviceLost as error:
                await self._exit(error)

    async def _exit(self, error: DeviceLost) -> None:
        """Exit the process, after a pause in which the errors of its requests are sent.

        Serve checks health every ten seconds and acts on the third failure. Until then a replica that can run nothing
        is idle, and would get more requests than any other.
        """
        logger.critical("This replica exits: %s", error)
        await asyncio.sleep(SAMPLE_PERIOD_S)
        os._exit(1)

    async def stats(self) -> EngineStats:
        return self._engine.stats()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the figures that OpenWorkPolicy needs; called by Serve."""
        stats = self._engine.stats()
        return {WORK_S: stats.work_s, OPEN_REQUESTS: stats.open_requests}

    async def ready(self) -> bool:
        """Return True: a replica that answers has loaded and warmed its model."""
        return True

    async def capabilities(self) -> Capabilities:
        """Return what the model can do within this server's limits."""
        references = min(self._limits.max_references, self._model.pipeline.max_references - 1)
        model, pipeline = self._model, self._model.pipeline
        return Capabilities(
            references, self._geometry.native_area, pipeline.makes_alpha, model.license, pipeline.generates
        )

    async def check_health(self) -> None:
        self._engine.check_health()

    def __del__(self) -> None:
        """Stop the engine. Serve calls this after the replica's last request."""
        if hasattr(self, "_engine"):
            self._engine.stop()


def _cancel_future(submission: "asyncio.Future[EditFuture | EditError]") -> None:
    if submission.cancelled() or submission.exception() is not None:
        return
    future = submission.result()
    if not isinstance(future, EditError):
        future.cancel()
