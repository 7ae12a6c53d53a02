"""The messages of both clients: requests to the server, and its answers and events."""

import io
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import httpx
import numpy as np
import PIL.Image
import pybase64
from httpx_sse import ServerSentEvent
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter, ValidationError

from serve_app.errors import EditError, from_body
from serve_app.events import Progress
from serve_app.images.encoding import OutputFormat, encode
from serve_app.images.geometry import Fit
from serve_app.request import Background, Mask, Picture, as_mask, as_picture

ImageSource = str | os.PathLike[str] | bytes | PIL.Image.Image | Picture
"""A path, the bytes of a picture file, a PIL picture, or a uint8 array of height × width × 3 (RGB) or 4 (RGBA)."""

MaskSource = str | os.PathLike[str] | bytes | PIL.Image.Image | Mask | NDArray[np.uint8]
"""As ImageSource, but an array is height × width, bool or uint8: True or white where the picture may change."""

_WHITE = 255
_ONE_PICTURE = (str, os.PathLike, bytes, PIL.Image.Image, np.ndarray)


class GenerationOptions(TypedDict, total=False):
    """The optional parameters of a generation. The server's defaults apply to those that are omitted.

    `steps`, `guidance`: the API's `num_inference_steps` and `guidance_scale`. All others have the API's names and
    ranges.
    """

    background: Background
    n: int
    size: str
    steps: int
    guidance: float
    preset: str
    adapters: str
    seed: int
    negative_prompt: str
    output_format: OutputFormat
    output_compression: int
    model: str
    user: str


class EditOptions(GenerationOptions, total=False):
    """The optional parameters of an edit: those of a generation, and those of its pictures.

    `references`: pictures that every edit looks at beside its own. `mask`: the part that may change, one for all
    pictures or one for each.
    """

    references: "Sequence[ImageSource]"
    mask: "MaskSource | Sequence[MaskSource]"
    fit: Fit


EDITS, GENERATIONS = "/v1/images/edits", "/v1/images/generations"
MODELS, READY = "/v1/models", "/health/ready"
END = "[DONE]"
"""The data of a stream's last event."""

_KEY_HEADER = "Idempotency-Key"
_API_NAMES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}


@dataclass(frozen=True, slots=True)
class Output:
    """One picture that was made: the file from the server, and the seed that reproduces it."""

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
class StreamedPreview:
    """Preview k of variant j of picture i, all 0-based: the output that the model predicts at this step."""

    image_index: int
    variant_index: int
    preview_index: int
    output: Output


@dataclass(frozen=True, slots=True)
class StreamedOutput:
    """Variant j of picture i, sent as soon as it is done."""

    image_index: int
    variant_index: int
    output: Output


StreamedEvent = Progress | StreamedPreview | StreamedOutput


# --- requests -----------------------------------------------------------------------------------------------------


def build_form(
    images: ImageSource | Sequence[ImageSource], prompt: str | Sequence[str], options: EditOptions, **others: str | int
) -> dict[str, Any]:
    """Return the arguments with which httpx sends the multipart body.

    Unknown options are sent too, so that the server names them in its error. Raises the errors of `_file`.
    """
    files = [("images", _file(picture, index)) for index, picture in enumerate(_as_list(images))]
    files += [("references", _file(picture, index)) for index, picture in enumerate(options.get("references", ()))]
    files += [("mask", _mask_file(mask, index)) for index, mask in enumerate(_as_list(options.get("mask", ())))]
    texts = {name: value for name, value in options.items() if name not in ("references", "mask")}
    return {"files": files, "data": {"prompt": prompt, **_by_api_name(texts), **others}}


def build_json(prompt: str, options: GenerationOptions, **others: bool | int) -> dict[str, Any]:
    """Return the arguments with which httpx sends the body of a generation. Unknown options are sent too."""
    return {"json": {"prompt": prompt, **_by_api_name(options), **others}}


def _by_api_name(options: Mapping[str, object]) -> dict[str, Any]:
    return {_API_NAMES.get(name, name): value for name, value in options.items()}


def idempotency_header(key: str | None) -> dict[str, str]:
    return {_KEY_HEADER: uuid.uuid4().hex if key is None else key}


def _as_list(pictures: Any) -> Sequence[Any]:
    """Return a list of pictures, of which a caller may give a single one as it is."""
    return [pictures] if isinstance(pictures, _ONE_PICTURE) else pictures


def _file(picture: ImageSource, index: int) -> tuple[str, bytes]:
    """Return a picture's file name and content.

    Raises OSError for a path that cannot be read, ValueError for a value that is not a picture.
    """
    if isinstance(picture, bytes):
        return str(index), picture
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        return path.name, path.read_bytes()
    return f"{index}.png", encode(as_picture(picture, index), "png", 100)


def _mask_file(mask: MaskSource, index: int) -> tuple[str, bytes]:
    """Return a mask's file name and content. Raises as `_file`, and ValueError for a mask that lets nothing change."""
    if isinstance(mask, (PIL.Image.Image, np.ndarray)):
        return f"{index}.png", encode(as_mask(mask, index).astype(np.uint8) * _WHITE, "png", 100)
    return _file(mask, index)


# --- answers ------------------------------------------------------------------------------------------------------


class _OutputBody(BaseModel):
    b64_json: str
    seed: int
    input_index: int
    variant_index: int

    def output(self, output_format: OutputFormat) -> Output:
        return Output(pybase64.b64decode(self.b64_json), self.seed, output_format)


class _EditResponse(BaseModel):
    data: list[_OutputBody]
    output_format: OutputFormat


class _StreamedBody(_OutputBody):
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


def read_rows(response: httpx.Response) -> Rows:
    content = read_content(response)
    try:
        answer = _EditResponse.model_validate_json(content)
    except ValidationError:
        # With `http.keepalive_s`, an error may come after the status.
        _raise_failure(content)
    rows: Rows = []
    for picture in sorted(answer.data, key=lambda picture: (picture.input_index, picture.variant_index)):
        if picture.variant_index == 0:
            rows.append([])
        rows[-1].append(picture.output(answer.output_format))
    return rows


def read_event(message: ServerSentEvent) -> StreamedEvent | None:
    """Return the event in a message, or None for an unused type. Raises the error that an `error` event describes."""
    if message.event == "error":
        _raise_failure(message.data)
    kind, _, moment = message.event.partition(".")
    if kind not in ("image_edit", "image_generation") or moment not in ("progress", "partial_image", "completed"):
        return None
    if moment == "progress":
        return _PROGRESS.validate_json(message.data)
    picture = _StreamedBody.model_validate_json(message.data)
    output = picture.output(picture.output_format)
    if moment == "completed":
        return StreamedOutput(picture.input_index, picture.variant_index, output)
    return StreamedPreview(picture.input_index, picture.variant_index, picture.partial_image_index, output)


def _raise_failure(body: str | bytes) -> NoReturn:
    """Raise the error in a body whose status does not say it. Raises pydantic's ValidationError if there is none."""
    failure = _FailureBody.model_validate_json(body).error
    raise from_body(failure.code, failure.message, status=EditError.status, param=failure.param)


def read_models(response: httpx.Response) -> list[str]:
    return [model.id for model in _Models.model_validate_json(read_content(response)).data]


def read_ready(response: httpx.Response) -> bool:
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return False
    read_content(response)
    return True


def read_content(response: httpx.Response) -> bytes:
    """Return the body of a successful answer. Raises the error that any other answer describes."""
    if response.is_success:
        return response.content
    retry_after = response.headers.get("Retry-After", "")
    try:
        failure = _FailureBody.model_validate_json(response.content).error
    except ValidationError:
        # The answer comes from a proxy in front of the server.
        failure = _Failure(message=f"{response.status_code} {response.reason_phrase}", code="")
    raise from_body(
        failure.code,
        failure.message,
        status=response.status_code,
        param=failure.param,
        retry_after_s=int(retry_after) if retry_after.isdecimal() else None,
    )
