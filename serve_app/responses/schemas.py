"""JSON schemas of everything that is sent: mypy checks the code against them, /openapi.json is generated from them."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config

# Before Python 3.12, pydantic makes no schema from typing's TypedDict.
from typing_extensions import TypedDict

from serve_app.images.encoding import OutputFormat
from serve_app.settings import License

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
InputIndex = Annotated[int, _field("index of the image that was edited, 0-based; 0 of a generation", 0, ge=0)]
VariantIndex = Annotated[int, _field("index of the variant of that image, 0-based", 0, ge=0)]
EpochSeconds = Annotated[int, _field("seconds since the epoch", 1702814400, ge=0)]
Seconds = Annotated[float, _field("seconds", 22.5, ge=0)]
StepsDone = Annotated[int, _field("denoising steps done, over all outputs", 12, ge=0)]
Steps = Annotated[int, _field("denoising steps in total, over all outputs; 0 until the total is known", 20, ge=0)]
Place = Annotated[int, _field("place in the queue: 1 is next, 0 is running", 0, ge=0)]


# --- responses ----------------------------------------------------------------------------------------------------


@_closed
class InputTokens(TypedDict):
    text_tokens: Annotated[int, _field("tokens of the prompts", 5, ge=0)]
    image_tokens: Annotated[int, _field("latent tokens of the images that are edited", 64, ge=0)]


@_closed
class Usage(TypedDict):
    """The work of an edit. In a request, the prompt and the picture of an image count once, however many variants."""

    processing_time_seconds: Seconds
    input_images: Annotated[int, _field("images that were edited; 0 of a generation", 1, ge=0)]
    generated_images: Annotated[int, _field("outputs that were generated", 1, ge=1)]
    input_tokens: Annotated[int, _field("sum of input_tokens_details", 69, ge=0)]
    output_tokens: Annotated[int, _field("latent tokens of the outputs", 64, ge=0)]
    total_tokens: Annotated[int, _field("input_tokens + output_tokens", 133, ge=0)]
    input_tokens_details: InputTokens


@_closed
class OutputBody(TypedDict):
    """One output picture."""

    b64_json: Base64
    size: SizeText
    seed: Seed
    input_index: InputIndex
    variant_index: VariantIndex


@_closed
class LinkedOutputBody(TypedDict):
    """One output picture with `response_format=url`: a link to its file, which opens without a key."""

    url: Annotated[str, _field("the address of the picture file", "https://edits.example/v1/images/4f0f/0-0.png")]
    expires_at: Annotated[EpochSeconds, _field("when the link ends")]
    size: SizeText
    seed: Seed
    input_index: InputIndex
    variant_index: VariantIndex


@_closed
class EditResponse(TypedDict):
    """A finished edit. `data[i * n + j]` is variant j of image i."""

    created: EpochSeconds
    data: Annotated[list[OutputBody] | list[LinkedOutputBody], Field(min_length=1)]
    output_format: OutputFormat
    usage: Usage


@_closed
class ModelBody(TypedDict):
    id: Annotated[str, _field("a name that the field `model` accepts", "builtin:tiny")]
    object: Literal["model"]
    created: EpochSeconds
    owned_by: Literal["self-hosted"]
    max_references: Annotated[
        int | None,
        _field("references that an edit may have beside its image; null until a replica has loaded the model", 0, ge=0),
    ]
    native_area: Annotated[
        int | None,
        _field(
            "about how many pixels an output of `size=auto` has; null until a replica has loaded the model",
            1_048_576,
            gt=0,
        ),
    ]
    demonstration: Annotated[bool, _field("the model is a miniature that knows a few instructions only")]
    license: Annotated[
        License | None,
        _field("the model's licence, if it allows no commerce; null until a replica has loaded the model", None),
    ]
    masks: Annotated[Literal[True], _field("edits may have a mask")]
    generates: Annotated[
        bool | None,
        _field("`POST /v1/images/generations` is served; null until a replica has loaded the model", False),
    ]
    transparency: Annotated[
        bool | None,
        _field("`background` may be `transparent`; null until a replica has loaded the model", False),
    ]
    adapters: Annotated[list[str], _field("names that the field `adapters` accepts", ["cinematic"])]
    presets: Annotated[list[str], _field("names that the field `preset` accepts", ["fast"])]


@_closed
class ModelListBody(TypedDict):
    object: Literal["list"]
    data: list[ModelBody]


@_closed
class HealthBody(TypedDict):
    status: Literal["live", "ready"]
    store: Annotated[
        NotRequired[Literal["unreachable"]],
        _field("jobs and edits with an `Idempotency-Key` get 503 for now; other edits go on", "unreachable"),
    ]


# --- errors -------------------------------------------------------------------------------------------------------


@_closed
class ErrorDetail(TypedDict):
    error: Annotated[str, _field("the error code", "INVALID_INPUT")]
    message: Annotated[str, _field("a description of the error", "At least one image is required")]


@_closed
class ErrorObject(TypedDict):
    """The error as OpenAI's clients read it."""

    message: Annotated[str, _field("a description of the error", "At least one image is required")]
    type: Annotated[str, _field("the type of error, as OpenAI names it", "invalid_request_error")]
    param: Annotated[str | None, _field("the field that is wrong", "images")]
    code: Annotated[str, _field("the error code", "INVALID_INPUT")]


@_closed
class ErrorBody(TypedDict):
    """The body of every error."""

    detail: ErrorDetail
    error: ErrorObject


# --- jobs ---------------------------------------------------------------------------------------------------------


@_closed
class JobBody(TypedDict):
    """The state of an edit that was sent with `async=true`."""

    id: Annotated[str, _field("the id, as in `/v1/jobs/{id}`", "4f0f2f6e7c8f4d0f9f0a6a3b1c2d3e4f")]
    object: Literal["image_edit.job"]
    status: Literal["queued", "running", "succeeded", "failed"]
    created_at: EpochSeconds
    expires_at: Annotated[EpochSeconds | None, _field("when the job is deleted; null until it has ended")]
    place: Place
    steps_done: StepsDone
    steps: Steps
    result: Annotated[EditResponse | None, _field("the response to the edit; null unless the job has succeeded")]
    error: Annotated[ErrorObject | None, _field("the error; null unless the job has failed")]


@_closed
class DeletedJobBody(TypedDict):
    id: str
    object: Literal["image_edit.job"]
    deleted: Literal[True]


# --- events of a stream -------------------------------------------------------------------------------------------


@_closed
class ProgressEvent(TypedDict):
    """The progress of the edit, sent whenever it changes."""

    type: Literal["image_edit.progress", "image_generation.progress"]
    steps_done: StepsDone
    steps: Steps
    place: Place


@_closed
class PictureEvent(OutputBody):
    """The fields that previews and outputs share."""

    created_at: EpochSeconds
    output_format: OutputFormat
    background: Annotated[
        Literal["opaque", "transparent"], _field("`transparent` if the file has an alpha channel", "opaque")
    ]
    quality: Literal["auto"]


@_closed
class PartialImageEvent(PictureEvent):
    """A preview of one output."""

    type: Literal["image_edit.partial_image", "image_generation.partial_image"]
    partial_image_index: Annotated[int, _field("index of the preview of this output, 0-based", 0, ge=0)]


@_closed
class CompletedEvent(PictureEvent):
    """One output, sent as soon as it is done."""

    type: Literal["image_edit.completed", "image_generation.completed"]
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
    """The end of the stream: every output is done."""

    type: Literal["image_edit.done", "image_generation.done"]
    usage: Usage
    timings: StageSeconds


@_closed
class ErrorEvent(ErrorBody):
    """The error with which the edit failed, and the end of the stream."""

    type: Literal["error"]


StreamEvent = Annotated[
    ProgressEvent | PartialImageEvent | CompletedEvent | DoneEvent | ErrorEvent, Field(discriminator="type")
]
