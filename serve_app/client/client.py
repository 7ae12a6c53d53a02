"""Python clients of the server, blocking and asyncio. They load neither torch nor Ray.

    ImageEdits, AsyncImageEdits
    └── EditError            what the server answered: the tree of serve_app.errors
        └── Unreachable      no answer came
            └── BrokenOff    a stream ended before its time

Edits are tried again after status 429 or 503 and after connections that fail, when `Retry-After` says where it does.
All tries of an edit carry one Idempotency-Key, so that the server does not begin again what it does already. A stream
has none; once it has begun, it is not tried again. Questions are asked once.
"""

import io
import os
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import httpx
import numpy as np
import PIL.Image
import pybase64
from httpx_retries import Retry, RetryTransport
from httpx_sse import EventSource, ServerSentEvent, SSEError
from pydantic import BaseModel, TypeAdapter, ValidationError

from serve_app.errors import EditError, from_body
from serve_app.events import Progress
from serve_app.images import OutputFormat, encode
from serve_app.request import Pixels, as_pixels

SERVER_ENV = "IMAGE_EDITS_SERVER"
KEY_ENV = "IMAGE_EDITS_API_KEY"
DEFAULT_SERVER = "http://127.0.0.1:8000"

# Beyond limits.request_timeout_s, so that the server's own words are heard.
DEFAULT_TIMEOUT_S = 660.0
_CONNECT_TIMEOUT_S = 10.0
_MAX_WAIT_S = 60.0
_TOO_MANY_REQUESTS, _UNAVAILABLE = 429, 503
# Not httpx.ReadTimeout: an edit that took too long would take too long again.
_BREAKS = (httpx.ReadError, httpx.RemoteProtocolError)
_CONNECTION_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.WriteError, *_BREAKS)

Picture = str | os.PathLike[str] | bytes | PIL.Image.Image | Pixels
"""A path, the bytes of a picture file, a PIL picture, or a uint8 RGB array of height × width × 3."""

_ONE_PICTURE = (str, os.PathLike, bytes, PIL.Image.Image, np.ndarray)


class EditOptions(TypedDict, total=False):
    """What an edit may ask for beside pictures and prompt; the server's defaults hold for what is left out.

    `steps`, `guidance`: `num_inference_steps` and `guidance_scale` of the API; the others have its names and ranges.
    """

    n: int
    size: str
    steps: int
    guidance: float
    seed: int
    negative_prompt: str
    output_format: OutputFormat
    output_compression: int
    model: str
    user: str


_END = "[DONE]"
_NO_END = "The stream ended before its last event"
_KEY_HEADER = "Idempotency-Key"
_EDITS, _MODELS, _READY = "/v1/images/edits", "/v1/models", "/health/ready"
_API_NAMES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}


class Unreachable(EditError):
    """No answer came: nothing listens there, the connection broke, or time ran out. `status` is 0."""

    status, code, type = 0, "UNREACHABLE", "connection_error"


class BrokenOff(Unreachable):
    """A stream ended before its last event."""


@dataclass(frozen=True, slots=True)
class Output:
    """One edited picture: the file as the server made it, and the seed that makes it again."""

    file: bytes
    seed: int
    output_format: OutputFormat

    @property
    def image(self) -> PIL.Image.Image:
        return PIL.Image.open(io.BytesIO(self.file))

    def save(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_bytes(self.file)


Rows = list[list[Output]]
"""`rows[i][j]` is variant j of picture i."""


@dataclass(frozen=True, slots=True)
class Preview:
    """Preview k of variant j of picture i, all 0-based: what the output would be if it were done now."""

    image_index: int
    variant_index: int
    preview_index: int
    output: Output


@dataclass(frozen=True, slots=True)
class Completed:
    """Variant j of picture i, as soon as it is done."""

    image_index: int
    variant_index: int
    output: Output


StreamEvent = Progress | Preview | Completed


class _Client:
    """What both clients share: the server's address, the headers, retries, and how answers are read."""

    def __init__(
        self,
        server: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = 8,
    ) -> None:
        """`server` and `key`: unset, the environment's IMAGE_EDITS_SERVER and IMAGE_EDITS_API_KEY; "" is no key.

        `timeout_s`: the longest silence of the server that is taken. Raises ValueError for an address that is none.
        """
        self.server = (server or os.environ.get(SERVER_ENV) or DEFAULT_SERVER).rstrip("/")
        key = os.environ.get(KEY_ENV) if key is None else key
        # Bytes, since httpx would refuse a key beyond ASCII.
        headers = {b"Authorization": f"Bearer {key}".encode()} if key else {}
        self._retries = retries
        retry = Retry(
            total=retries,
            allowed_methods=("POST",),
            status_forcelist=(_TOO_MANY_REQUESTS, _UNAVAILABLE),
            retry_on_exceptions=_CONNECTION_ERRORS,
            backoff_factor=0.5,
            max_backoff_wait=_MAX_WAIT_S,
        )
        self._options: dict[str, Any] = {
            "base_url": _address(self.server),
            "headers": headers,
            "timeout": httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S),
            "transport": RetryTransport(retry=retry),
        }

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        try:
            yield
        except (ValidationError, SSEError):
            raise EditError(f"{self.server} answered, but not as this API does") from None
        except httpx.RequestError as error:
            raise Unreachable(f"No answer from {self.server}: {str(error) or type(error).__name__}") from error


class ImageEdits(_Client):
    """The blocking client; any thread may use it. `with ImageEdits() as edits:` closes its connections at the end."""

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(**self._options)

    def edit(
        self,
        images: Picture | Sequence[Picture],
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
        form = _form(images, prompt, options)
        with self._our_errors():
            return _rows(self._post(_key_header(idempotency_key), form))

    def _post(self, headers: dict[str, str], form: dict[str, Any]) -> httpx.Response:
        """The answer to an edit, asked for again where it breaks off: the transport has done its part by its head."""
        for retries_left in reversed(range(self._retries + 1)):
            with self._http.stream("POST", _EDITS, headers=headers, **form) as response:
                try:
                    response.read()
                except _BREAKS:
                    if not retries_left:
                        raise
                else:
                    break
        return response

    def edit_stream(
        self,
        images: Picture | Sequence[Picture],
        prompt: str | Sequence[str],
        *,
        partial_images: int = 0,
        **options: Unpack[EditOptions],
    ) -> Iterator[StreamEvent]:
        """As `edit`, told while it happens: progress, up to 3 previews of each output, each output when it is done.

        Raises EditError between any two events, BrokenOff where the end is missing. Closing the iterator frees the
        server of the work.
        """
        form = _form(images, prompt, options, stream="true", partial_images=partial_images)
        with self._our_errors(), self._http.stream("POST", _EDITS, **form) as response:
            if not response.is_success:
                response.read()
                _content(response)
            with _begun():
                for message in EventSource(response).iter_sse():
                    if message.data == _END:
                        return
                    if (event := _event(message)) is not None:
                        yield event
                raise BrokenOff(_NO_END)

    def models(self) -> list[str]:
        """The names that `model` may have. Raises EditError, Unauthorized where the key is refused."""
        with self._our_errors():
            return _models(self._http.get(_MODELS))

    def ready(self) -> bool:
        """Whether an edit could begin now. Raises Unreachable where nobody answers."""
        with self._our_errors():
            return _ready(self._http.get(_READY))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncImageEdits(_Client):
    """The same for asyncio. `async with AsyncImageEdits() as edits:`"""

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self._options)

    async def edit(
        self,
        images: Picture | Sequence[Picture],
        prompt: str | Sequence[str],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[EditOptions],
    ) -> Rows:
        """As ImageEdits.edit. Cancelling it frees the server of the work, ten seconds later."""
        form = _form(images, prompt, options)
        with self._our_errors():
            return _rows(await self._post(_key_header(idempotency_key), form))

    async def _post(self, headers: dict[str, str], form: dict[str, Any]) -> httpx.Response:
        """As of ImageEdits."""
        for retries_left in reversed(range(self._retries + 1)):
            async with self._http.stream("POST", _EDITS, headers=headers, **form) as response:
                try:
                    await response.aread()
                except _BREAKS:
                    if not retries_left:
                        raise
                else:
                    break
        return response

    async def edit_stream(
        self,
        images: Picture | Sequence[Picture],
        prompt: str | Sequence[str],
        *,
        partial_images: int = 0,
        **options: Unpack[EditOptions],
    ) -> AsyncGenerator[StreamEvent, None]:
        """As ImageEdits.edit_stream."""
        form = _form(images, prompt, options, stream="true", partial_images=partial_images)
        with self._our_errors():
            async with self._http.stream("POST", _EDITS, **form) as response:
                if not response.is_success:
                    await response.aread()
                    _content(response)
                with _begun():
                    async for message in EventSource(response).aiter_sse():
                        if message.data == _END:
                            return
                        if (event := _event(message)) is not None:
                            yield event
                    raise BrokenOff(_NO_END)

    async def models(self) -> list[str]:
        """As ImageEdits.models."""
        with self._our_errors():
            return _models(await self._http.get(_MODELS))

    async def ready(self) -> bool:
        """As ImageEdits.ready."""
        with self._our_errors():
            return _ready(await self._http.get(_READY))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _address(server: str) -> httpx.URL:
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL as error:
        raise ValueError(f"{server!r} is no address of a server: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{server!r} is no address of a server, such as {DEFAULT_SERVER}")
    return url


# --- requests -----------------------------------------------------------------------------------------------------


def _form(
    images: Picture | Sequence[Picture], prompt: str | Sequence[str], options: EditOptions, **others: str | int
) -> dict[str, Any]:
    """The multipart body, in httpx's words. A name that the API does not know is sent too: the server refuses it."""
    pictures = [images] if isinstance(images, _ONE_PICTURE) else images
    files = [("images", _file(picture, index)) for index, picture in enumerate(pictures)]
    fields = {_API_NAMES.get(name, name): value for name, value in options.items()}
    return {"files": files, "data": {"prompt": prompt, **fields, **others}}


def _key_header(key: str | None) -> dict[str, str]:
    return {_KEY_HEADER: uuid.uuid4().hex if key is None else key}


def _file(picture: Picture, index: int) -> tuple[str, bytes]:
    """Name and content. Raises OSError for a path that cannot be read, ValueError for what is no picture."""
    if isinstance(picture, bytes):
        return str(index), picture
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        return path.name, path.read_bytes()
    return f"{index}.png", encode(as_pixels(picture, index), "png", 100)


# --- answers ------------------------------------------------------------------------------------------------------


class _Picture(BaseModel):
    b64_json: str
    seed: int
    input_index: int
    variant_index: int

    def output(self, output_format: OutputFormat) -> Output:
        return Output(pybase64.b64decode(self.b64_json), self.seed, output_format)


class _Answer(BaseModel):
    data: list[_Picture]
    output_format: OutputFormat


class _StreamedPicture(_Picture):
    output_format: OutputFormat
    partial_image_index: int = 0


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _Failure(BaseModel):
    message: str
    code: str
    param: str | None = None


class _FailureBody(BaseModel):
    error: _Failure


_PROGRESS = TypeAdapter(Progress)


def _rows(response: httpx.Response) -> Rows:
    answer = _Answer.model_validate_json(_content(response))
    rows: Rows = []
    for picture in sorted(answer.data, key=lambda picture: (picture.input_index, picture.variant_index)):
        if picture.variant_index == 0:
            rows.append([])
        rows[-1].append(picture.output(answer.output_format))
    return rows


@contextmanager
def _begun() -> Iterator[None]:
    """For the reading of a stream that has begun."""
    try:
        yield
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise BrokenOff(f"The stream broke off: {error}") from error


def _event(message: ServerSentEvent) -> StreamEvent | None:
    """None for what a caller has no use for. Raises the error that an event tells of."""
    if message.event == "error":
        failure = _FailureBody.model_validate_json(message.data).error
        raise from_body(failure.code, failure.message, status=EditError.status, param=failure.param)
    if message.event == "image_edit.progress":
        return _PROGRESS.validate_json(message.data)
    if message.event not in ("image_edit.partial_image", "image_edit.completed"):
        return None
    picture = _StreamedPicture.model_validate_json(message.data)
    output = picture.output(picture.output_format)
    if message.event == "image_edit.completed":
        return Completed(picture.input_index, picture.variant_index, output)
    return Preview(picture.input_index, picture.variant_index, picture.partial_image_index, output)


def _models(response: httpx.Response) -> list[str]:
    return [model.id for model in _Models.model_validate_json(_content(response)).data]


def _ready(response: httpx.Response) -> bool:
    if response.status_code == _UNAVAILABLE:
        return False
    _content(response)
    return True


def _content(response: httpx.Response) -> bytes:
    """The body of a good answer. Raises the error that another one tells of."""
    if response.is_success:
        return response.content
    retry_after = response.headers.get("Retry-After", "")
    try:
        failure = _FailureBody.model_validate_json(response.content).error
    except ValidationError:
        # A proxy in between.
        failure = _Failure(message=f"{response.status_code} {response.reason_phrase}", code="")
    raise from_body(
        failure.code,
        failure.message,
        status=response.status_code,
        param=failure.param,
        retry_after_s=int(retry_after) if retry_after.isdecimal() else None,
    )
