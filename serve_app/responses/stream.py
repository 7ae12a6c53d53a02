"""Server-sent events of a streamed edit or generation: those of OpenAI's Images API, with further fields and events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect

from serve_app.events import Completed, Done, Event, Preview, Progress
from serve_app.forms.form import EditForm
from serve_app.request import GenerationRequest, TokenCounts
from serve_app.responses.edits import background, build_output, build_usage
from serve_app.responses.errors import error_body, to_public_error
from serve_app.responses.log import LogEntry
from serve_app.responses.schemas import (
    CompletedEvent,
    DoneEvent,
    OutputBody,
    PartialImageEvent,
    PictureEvent,
    ProgressEvent,
    StreamEvent,
    Usage,
)

LINE_END = "\n"
END = ServerSentEvent("[DONE]", sep=LINE_END).encode()


async def build_response(
    events: AsyncGenerator[Event, None],
    form: EditForm,
    executor: Executor,
    entry: LogEntry,
    on_serialized: Callable[[float], None],
) -> EventSourceResponse:
    """Return the response that streams `events`, as soon as the first of them has been read.

    Raises what the edit raises before its first event, so that the error is answered with its own HTTP status.
    """
    first = await anext(events)
    stream = _Stream(form, executor, entry, on_serialized)
    return EventSourceResponse(stream.frames(first, events), sep=LINE_END)


class _Stream:
    """The events of one edit as frames of server-sent events."""

    def __init__(
        self, form: EditForm, executor: Executor, entry: LogEntry, on_serialized: Callable[[float], None]
    ) -> None:
        self._form = form
        self._executor = executor
        self._entry = entry
        self._on_serialized = on_serialized
        self._start = time.perf_counter()
        self._serialize_s = 0.0

    async def frames(self, first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
        # Stands unless the stream comes to its end: a caller that disconnects closes this generator.
        self._entry.record_disconnect()
        try:
            async with aclosing(events):
                yield await self._render(first)
                async for event in events:
                    yield await self._render(event)
            yield END
            self._entry.status = 200
        except ClientDisconnect:
            return
        except Exception as error:
            public = to_public_error(error, self._entry.request_id)
            self._entry.record_error(public)
            yield encode_event({"type": "error", **error_body(public)})

    async def _render(self, event: Event) -> bytes:
        if isinstance(event, Progress):
            return encode_event(progress_event(event, generates=is_generation(self._form)))
        if isinstance(event, Done):
            return self._done_frame(event)
        start = time.perf_counter()
        frame = await asyncio.get_running_loop().run_in_executor(self._executor, self._picture_frame, event)
        self._serialize_s += time.perf_counter() - start
        return frame

    def _picture_frame(self, event: Preview | Completed) -> bytes:
        """Return a picture's frame. Encodes the picture, so it runs on the pool and not on the event loop."""
        return encode_event(picture_event(event, encode_output(event, self._form), self._form, self._start))

    def _done_frame(self, event: Done) -> bytes:
        self._on_serialized(self._serialize_s)
        self._entry.record_result(event.timings, event.batch, self._serialize_s)
        return encode_event(done_event(event, self._form, self._start, self._serialize_s))


# --- shared with the streams of jobs ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Types:
    """The types of the events of an edit, or of a generation."""

    progress: Literal["image_edit.progress", "image_generation.progress"]
    partial_image: Literal["image_edit.partial_image", "image_generation.partial_image"]
    completed: Literal["image_edit.completed", "image_generation.completed"]
    done: Literal["image_edit.done", "image_generation.done"]


_EDIT = _Types("image_edit.progress", "image_edit.partial_image", "image_edit.completed", "image_edit.done")
_GENERATION = _Types(
    "image_generation.progress",
    "image_generation.partial_image",
    "image_generation.completed",
    "image_generation.done",
)


def _types(form: EditForm) -> _Types:
    return _GENERATION if is_generation(form) else _EDIT


def is_generation(form: EditForm) -> bool:
    """Return whether a form asks for a generation, whose events have names of their own."""
    return isinstance(form.request, GenerationRequest)


def progress_event(event: Progress, *, generates: bool) -> ProgressEvent:
    return {
        "type": (_GENERATION if generates else _EDIT).progress,
        "steps_done": event.steps_done,
        "steps": event.steps,
        "place": event.place,
    }


def encode_output(event: Preview | Completed, form: EditForm) -> OutputBody:
    """Return the picture of an event. Encodes it, which is too slow for an event loop."""
    place = (event.image_index, event.variant_index)
    return build_output(*place, form.request.output_seed(*place), event.pixels, form)


def picture_event(
    event: Preview | Completed, output: OutputBody, form: EditForm, started: float
) -> PartialImageEvent | CompletedEvent:
    """Return an event with its encoded picture. `started`: the start of the edit, by `time.perf_counter`."""
    picture: PictureEvent = {
        **output,
        "created_at": int(time.time()),
        "output_format": form.output_format,
        "background": background(event.pixels, form),
        "quality": "auto",
    }
    if isinstance(event, Preview):
        return {"type": _types(form).partial_image, "partial_image_index": event.preview_index, **picture}
    inputs = 1 if form.request.images else 0
    return {"type": _types(form).completed, "usage": _usage(started, inputs, 1, event.tokens), **picture}


def done_event(event: Done, form: EditForm, started: float, serialize_s: float) -> DoneEvent:
    """Return the last event of an edit. `started`: as in picture_event."""
    return {
        "type": _types(form).done,
        "usage": _usage(started, len(form.request.images), form.request.outputs, event.tokens),
        "timings": {
            "queue_s": event.timings.queue_s,
            "encode_s": event.timings.encode_s,
            "denoise_s": event.timings.denoise_s,
            "decode_s": event.timings.decode_s,
            "serialize_s": serialize_s,
        },
    }


def encode_event(event: StreamEvent) -> bytes:
    return ServerSentEvent(orjson.dumps(event).decode(), event=event["type"], sep=LINE_END).encode()


def _usage(started: float, inputs: int, outputs: int, tokens: TokenCounts) -> Usage:
    return build_usage(time.perf_counter() - started, inputs, outputs, tokens)
