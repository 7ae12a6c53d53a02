"""The asyncio client."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import Any, Self, Unpack

import httpx
from httpx_sse import EventSource

from serve_app.client.connection import BODY_ERRORS, NO_END, BrokenOff, Connection, translate_stream_errors
from serve_app.client.messages import (
    EDITS,
    END,
    GENERATIONS,
    MODELS,
    READY,
    EditOptions,
    GenerationOptions,
    ImageSource,
    Output,
    Rows,
    StreamedEvent,
    build_form,
    build_json,
    idempotency_header,
    read_content,
    read_event,
    read_models,
    read_ready,
    read_rows,
)


class AsyncImageEdits(Connection):
    """The asyncio client, for one event loop. `async with AsyncImageEdits() as edits:` closes its connections."""

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self.http_options)

    async def edit(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[str],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[EditOptions],
    ) -> Rows:
        """Edit each picture on its own, as ImageEdits.edit. Cancelling the call cancels the edit ten seconds later."""
        form = build_form(images, prompt, options)
        with self.translate_errors():
            return read_rows(await self._post(EDITS, idempotency_header(idempotency_key), form))

    async def generate(
        self, prompt: str, *, idempotency_key: str | None = None, **options: Unpack[GenerationOptions]
    ) -> list[Output]:
        """Make pictures from the prompt alone, as ImageEdits.generate."""
        body = build_json(prompt, options)
        with self.translate_errors():
            return read_rows(await self._post(GENERATIONS, idempotency_header(idempotency_key), body))[0]

    async def _post(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> httpx.Response:
        """Send a request and return its answer, as ImageEdits._post."""
        for retries_left in reversed(range(self.retries + 1)):
            async with self._http.stream("POST", path, headers=headers, **body) as response:
                try:
                    await response.aread()
                except BODY_ERRORS:
                    if not retries_left:
                        raise
                else:
                    break
        return response

    async def edit_stream(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[str],
        *,
        partial_images: int = 0,
        **options: Unpack[EditOptions],
    ) -> AsyncGenerator[StreamedEvent, None]:
        """Edit as `edit`, and yield the events of the edit, as ImageEdits.edit_stream."""
        form = build_form(images, prompt, options, stream="true", partial_images=partial_images)
        async with aclosing(self._stream(EDITS, form)) as events:
            async for event in events:
                yield event

    async def generate_stream(
        self, prompt: str, *, partial_images: int = 0, **options: Unpack[GenerationOptions]
    ) -> AsyncGenerator[StreamedEvent, None]:
        """Make pictures as `generate`, and yield the events, as ImageEdits.generate_stream."""
        body = build_json(prompt, options, stream=True, partial_images=partial_images)
        async with aclosing(self._stream(GENERATIONS, body)) as events:
            async for event in events:
                yield event

    async def _stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[StreamedEvent, None]:
        with self.translate_errors():
            async with self._http.stream("POST", path, **body) as response:
                if not response.is_success:
                    await response.aread()
                    read_content(response)
                with translate_stream_errors():
                    async for message in EventSource(response).aiter_sse():
                        if message.data == END:
                            return
                        if (event := read_event(message)) is not None:
                            yield event
                    raise BrokenOff(NO_END)

    async def models(self) -> list[str]:
        """Return the names that `model` may have, as ImageEdits.models."""
        with self.translate_errors():
            return read_models(await self._http.get(MODELS))

    async def ready(self) -> bool:
        """Return whether an edit could begin now, as ImageEdits.ready."""
        with self.translate_errors():
            return read_ready(await self._http.get(READY))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
