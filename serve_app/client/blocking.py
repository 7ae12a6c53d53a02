"""The blocking client."""

from collections.abc import Iterator, Sequence
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


class ImageEdits(Connection):
    """The blocking client, for any number of threads. `with ImageEdits() as edits:` closes its connections."""

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(**self.http_options)

    def edit(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[str],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[EditOptions],
    ) -> Rows:
        """Edit each picture on its own, and return the outputs: row i has the variants of picture i. Raises EditError.

        `prompt`: one for all pictures, or one for each picture, in order. `idempotency_key`: a name of your own for
        this edit. For a limited time, the same call with the same key returns the same answer, even after your program
        restarts. Unset: a new key for each call.
        """
        form = build_form(images, prompt, options)
        with self.translate_errors():
            return read_rows(self._post(EDITS, idempotency_header(idempotency_key), form))

    def generate(
        self, prompt: str, *, idempotency_key: str | None = None, **options: Unpack[GenerationOptions]
    ) -> list[Output]:
        """Make pictures from the prompt alone, and return the variants. `idempotency_key`: as of `edit`.

        Raises EditError; NotFound if the server's model only edits.
        """
        body = build_json(prompt, options)
        with self.translate_errors():
            return read_rows(self._post(GENERATIONS, idempotency_header(idempotency_key), body))[0]

    def _post(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> httpx.Response:
        """Send a request and return its answer. If the answer's body breaks off, send the request again.

        The transport retries only until the head of an answer has arrived.
        """
        for retries_left in reversed(range(self.retries + 1)):
            with self._http.stream("POST", path, headers=headers, **body) as response:
                try:
                    response.read()
                except BODY_ERRORS:
                    if not retries_left:
                        raise
                else:
                    break
        return response

    def edit_stream(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[str],
        *,
        partial_images: int = 0,
        **options: Unpack[EditOptions],
    ) -> Iterator[StreamedEvent]:
        """Edit as `edit`, and yield its events: progress, previews, and each output as soon as it is done.

        `partial_images`: previews of each output, at most 3. Raises EditError between any two events, and BrokenOff if
        the stream ends before its last event. Closing the iterator cancels the edit.
        """
        yield from self._stream(
            EDITS, build_form(images, prompt, options, stream="true", partial_images=partial_images)
        )

    def generate_stream(
        self, prompt: str, *, partial_images: int = 0, **options: Unpack[GenerationOptions]
    ) -> Iterator[StreamedEvent]:
        """Make pictures as `generate`, and yield the events, as `edit_stream`."""
        yield from self._stream(GENERATIONS, build_json(prompt, options, stream=True, partial_images=partial_images))

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[StreamedEvent]:
        with self.translate_errors(), self._http.stream("POST", path, **body) as response:
            if not response.is_success:
                response.read()
                read_content(response)
            with translate_stream_errors():
                for message in EventSource(response).iter_sse():
                    if message.data == END:
                        return
                    if (event := read_event(message)) is not None:
                        yield event
                raise BrokenOff(NO_END)

    def models(self) -> list[str]:
        """Return the names that `model` may have. Raises EditError; Unauthorized if the key is refused."""
        with self.translate_errors():
            return read_models(self._http.get(MODELS))

    def ready(self) -> bool:
        """Return whether an edit could begin now. Raises Unreachable if the server does not answer."""
        with self.translate_errors():
            return read_ready(self._http.get(READY))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
