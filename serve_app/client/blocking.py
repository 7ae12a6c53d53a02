"""The blocking client."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Self, Unpack

import httpx
from httpx_sse import EventSource

from serve_app.client.connection import BREAKS, NO_END, BrokenOff, Connection, begun
from serve_app.client.messages import (
    EDITS,
    END,
    MODELS,
    READY,
    EditOptions,
    ImageSource,
    Rows,
    StreamedEvent,
    build_form,
    idempotency_header,
    read_content,
    read_event,
    read_models,
    read_ready,
    read_rows,
)


class ImageEdits(Connection):
    """The blocking client; any thread may use it. `with ImageEdits() as edits:` closes its connections at the end."""

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
        """Edit each picture on its own; the variants of picture i are row i. Raises EditError.

        `prompt`: one for all pictures, or as many as there are pictures, in their order. `idempotency_key`: a name of
        your own for this edit; for a while, the same call with the same name gets the same answer, after a restart of
        yours too. Unset: a new one for each call.
        """
        form = build_form(images, prompt, options)
        with self.our_errors():
            return read_rows(self._post(idempotency_header(idempotency_key), form))

    def _post(self, headers: dict[str, str], form: dict[str, Any]) -> httpx.Response:
        """The answer to an edit, asked for again where it breaks off: the transport has done its part by its head."""
        for retries_left in reversed(range(self.retries + 1)):
            with self._http.stream("POST", EDITS, headers=headers, **form) as response:
                try:
                    response.read()
                except BREAKS:
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
        """As `edit`, told while it happens: progress, up to 3 previews of each output, each output when it is done.

        Raises EditError between any two events, BrokenOff where the end is missing. Closing the iterator frees the
        server of the work.
        """
        form = build_form(images, prompt, options, stream="true", partial_images=partial_images)
        with self.our_errors(), self._http.stream("POST", EDITS, **form) as response:
            if not response.is_success:
                response.read()
                read_content(response)
            with begun():
                for message in EventSource(response).iter_sse():
                    if message.data == END:
                        return
                    if (event := read_event(message)) is not None:
                        yield event
                raise BrokenOff(NO_END)

    def models(self) -> list[str]:
        """The names that `model` may have. Raises EditError, Unauthorized where the key is refused."""
        with self.our_errors():
            return read_models(self._http.get(MODELS))

    def ready(self) -> bool:
        """Whether an edit could begin now. Raises Unreachable where nobody answers."""
        with self.our_errors():
            return read_ready(self._http.get(READY))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
