"""What goes out as JSON. The code that makes it is checked against these types, and /openapi.json is made of them."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config

# Not typing's: pydantic makes no schema of that before Python 3.12.
from typing_extensions import TypedDict

from serve_app.images import OutputFormat

_closed = with_config(ConfigDict(extra="forbid"))


def _field(description: str, example: Any = None, **rules: Any) -> Any:
    return Field(description=description, examples=None if example is None else [example], **rules)


Base64 = Annotated[
    str,
    _field("the picture file", "iVBORw0KGgoAAAANSUhEUgAA"),
    Field(json_schema_extra={"contentEncoding": "base64"}),
]
SizeText = Annotated[str, _field("width x height in pixels", "1024x768", pattern="^[0-9]+x[0-9]+$")]
Seed = Annotated[int, _field("the seed of this output", 7, ge=0)]
InputIndex = Annotated[int, _field("which picture it was made of, 0-based", 0, ge=0)]
VariantIndex = Annotated[int, _field("which variant of that picture, 0-based", 0, ge=0)]
EpochSeconds = Annotated[int, _field("seconds since the epoch", 1702814400, ge=0)]
Seconds = Annotated[float, _field("seconds", 22.5, ge=0)]
StepsDone = Annotated[int, _field("denoising steps done, over all outputs", 12, ge=0)]
Steps = Annotated[int, _field("denoising steps in all, over all outputs; 0 until it is known", 20, ge=0)]
Place = Annotated[int, _field("place in the queue: 1 is next, 0 is in work", 0, ge=0)]


# --- answers ------------------------------------------------------------------------------------------------------


@_closed
class Usage(TypedDict):
    processing_time_seconds: Seconds
    input_images: Annotated[int, _field("pictures that came in", 1, ge=1)]
    generated_images: Annotated[int, _field("outputs that were made", 1, ge=1)]


@_closed
class OutputBody(TypedDict):
    """One output picture."""

    b64_json: Base64
    size: SizeText
    seed: Seed
    input_index: InputIndex
    variant_index: VariantIndex


@_closed
class EditResponse(TypedDict):
    """A finished edit. `data[i * n + j]` is variant j of picture i."""

    created: EpochSeconds
    data: Annotated[list[OutputBody], Field(min_length=1)]
    output_format: OutputFormat
    usage: Usage


@_closed
class ModelBody(TypedDict):
    id: Annotated[str, _field("a name that `model` may have", "builtin:tiny")]
    object: Literal["model"]
    created: EpochSeconds
    owned_by: Literal["self-hosted"]


@_closed
class ModelListBody(TypedDict):
    object: Literal["list"]
    data: list[ModelBody]


@_closed
class HealthBody(TypedDict):
    status: Literal["live", "ready"]


# --- errors -------------------------------------------------------------------------------------------------------


@_closed
class ErrorDetail(TypedDict):
    error: Annotated[str, _field("the code", "INVALID_INPUT")]
    message: Annotated[str, _field("what is wrong, in words", "At least one image is required")]


@_closed
class ErrorObject(TypedDict):
    """What OpenAI's clients read."""

    message: Annotated[str, _field("what is wrong, in words", "At least one image is required")]
    type: Annotated[str, _field("the kind of error in OpenAI's words", "invalid_request_error")]
    param: Annotated[str | None, _field("the field that is wrong", "images")]
    code: Annotated[str, _field("the code", "INVALID_INPUT")]


@_closed
class ErrorBody(TypedDict):
    """The body of every error."""

    detail: ErrorDetail
    error: ErrorObject


# --- jobs ---------------------------------------------------------------------------------------------------------


@_closed
class JobBody(TypedDict):
    """An edit that was asked for with `async=true`."""

    id: Annotated[str, _field("what to ask for it with", "4f0f2f6e7c8f4d0f9f0a6a3b1c2d3e4f")]
    object: Literal["image_edit.job"]
    status: Literal["queued", "running", "succeeded", "failed"]
    created_at: EpochSeconds
    expires_at: Annotated[EpochSeconds | None, _field("when it is forgotten; null while it runs")]
    place: Place
    steps_done: StepsDone
    steps: Steps
    result: Annotated[EditResponse | None, _field("once it succeeded")]
    error: Annotated[ErrorObject | None, _field("once it failed")]


@_closed
class DeletedJobBody(TypedDict):
    id: str
    object: Literal["image_edit.job"]
    deleted: Literal[True]


# --- events of a stream -------------------------------------------------------------------------------------------


@_closed
class ProgressEvent(TypedDict):
    """After every step, and while the edit waits."""

    type: Literal["image_edit.progress"]
    steps_done: StepsDone
    steps: Steps
    place: Place


@_closed
class PictureEvent(OutputBody):
    """What previews and outputs have in common."""

    created_at: EpochSeconds
    output_format: OutputFormat
    background: Literal["opaque"]
    quality: Literal["auto"]


@_closed
class PartialImageEvent(PictureEvent):
    """A preview of one output."""

    type: Literal["image_edit.partial_image"]
    partial_image_index: Annotated[int, _field("which preview of this output, 0-based", 0, ge=0)]


@_closed
class CompletedEvent(PictureEvent):
    """One output, as soon as it is done."""

    type: Literal["image_edit.completed"]
    usage: Usage


@_closed
class StageSeconds(TypedDict):
    queue_s: Seconds
    encode_s: Seconds
    denoise_s: Seconds
    decode_s: Seconds
    serialize_s: Seconds


@_closed
class DoneEvent(TypedDict):
    """Every output is done."""

    type: Literal["image_edit.done"]
    usage: Usage
    timings: StageSeconds


@_closed
class ErrorEvent(ErrorBody):
    """The edit failed; nothing follows."""

    type: Literal["error"]


StreamEvent = Annotated[
    ProgressEvent | PartialImageEvent | CompletedEvent | DoneEvent | ErrorEvent, Field(discriminator="type")
]
