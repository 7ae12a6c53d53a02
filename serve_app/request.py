"""The types that cross every layer: a validated request and its result. Both are frozen.

Only validated input can become an EditRequest or a GenerationRequest.
"""

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from serve_app.errors import InvalidInput, NotFound
from serve_app.images.geometry import (
    SIZE_PATTERN,
    Fit,
    Geometry,
    Size,
    WantedSize,
    check_picture_size,
    is_shrunk,
)
from serve_app.images.masks import MASK_THRESHOLD, as_changes
from serve_app.images.pixels import convert, lay_on_white, naming, without_idle_alpha
from serve_app.settings import MAX_GUIDANCE, MAX_SCALE, MAX_STEPS, AdapterUse, LimitSettings, parse_adapters

MAX_VARIANTS = 10
MAX_PROMPT_CHARS = 4000
MAX_PREVIEWS = 3
# The largest integer that JSON clients (JavaScript) carry exactly.
MAX_SEED = 2**53 - 1
MAX_ADAPTERS = 8

T = TypeVar("T")

Pixels = NDArray[np.uint8]
"""A picture: uint8, height × width × 3, RGB."""

Picture = NDArray[np.uint8]
"""A picture that may be transparent in places: uint8, height × width × 3 (RGB) or 4 (RGBA)."""

Mask = NDArray[np.bool_]
"""The part of a picture that an edit may change: bool, height × width."""

# Tokenizers read these as control tokens: `<|image_pad|>` in a prompt would assign the pictures of a batch to the wrong
# rows.
_CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")


# The rules of the validators below, as JSON Schema.
_TEXT_SCHEMA = {"type": "string", "maxLength": MAX_PROMPT_CHARS, "not": {"pattern": _CONTROL_TOKEN.pattern}}
_PROMPT_SCHEMA = {**_TEXT_SCHEMA, "minLength": 1, "pattern": r"\S"}
_PROMPTS_SCHEMA = {"anyOf": [_PROMPT_SCHEMA, {"type": "array", "items": _PROMPT_SCHEMA, "minItems": 1}]}
_SIZE_SCHEMA = {"type": "string", "pattern": f"^(auto|original|{SIZE_PATTERN.pattern})$"}


def _as_size(value: Any) -> Any:
    if not isinstance(value, str) or value == "original":
        return value
    return None if value == "auto" else Size.parse(value)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_adapters(value: Any) -> Any:
    return parse_adapters(value) if isinstance(value, str) else value


def _new_seed() -> int:
    return secrets.randbelow(2**32)


Background = Literal["auto", "opaque", "transparent"]
Guidance = Annotated[float | None, Field(ge=1, le=MAX_GUIDANCE, allow_inf_nan=False)]


class EditParams(BaseModel):
    """The parameters of an edit: every field of a request but its pictures. `docs/api/fields.md` lists them."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    prompt: Annotated[str | tuple[str, ...], BeforeValidator(_as_tuple), WithJsonSchema(_PROMPTS_SCHEMA)] = Field(
        description="the instruction: one for all pictures, or one for each picture, in order",
        examples=["make the sky blue"],
    )
    negative_prompt: Annotated[str, WithJsonSchema(_TEXT_SCHEMA)] = Field(
        " ", max_length=MAX_PROMPT_CHARS, description="text that guidance steers away from"
    )
    n: int = Field(1, ge=1, le=MAX_VARIANTS, description="variants of each picture")
    size: Annotated[WantedSize, BeforeValidator(_as_size), WithJsonSchema(_SIZE_SCHEMA)] = Field(
        None,
        description="`auto`: the picture's aspect ratio at the model's native area, but with a mask as `original`; "
        "`original`: the same, resized to the picture's own pixels; `WxH`: exactly these pixels",
        json_schema_extra={"default": "auto"},
    )
    fit: Fit = Field(
        "cover",
        description="if `size` is `WxH` with another aspect ratio: `cover` crops the picture around its centre; `free` "
        "lets the model recompose it",
    )
    num_inference_steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="denoising steps; if omitted: the model's default",
    )
    guidance_scale: Guidance = Field(
        None, description="classifier-free guidance; 1 turns it off; if omitted: the model's default"
    )
    adapters: Annotated[tuple[AdapterUse, ...], BeforeValidator(_as_adapters), WithJsonSchema({"type": "string"})] = (
        Field(
            (),
            description="adapters (LoRA) of this server, with commas between them, each with a strength if not the "
            "server's own",
            examples=["cinematic:0.8"],
            json_schema_extra={"default": ""},
        )
    )
    preset: str | None = Field(
        None,
        description="a preset of this server, for steps, guidance, adapters and noise schedule; a field of your own "
        "goes before the preset's",
        examples=["fast"],
    )
    seed: int = Field(
        default_factory=_new_seed,
        ge=0,
        le=MAX_SEED,
        description="output k, in the order of the answer, uses seed + k; if omitted: a random seed",
    )
    background: Background = Field(
        "auto",
        description="`auto`: results are as transparent as their picture, or as the model makes them if it makes "
        "transparency; `opaque`: on white; `transparent`: only from models that make transparency",
    )
    partial_images: int = Field(
        0, ge=0, le=MAX_PREVIEWS, description="previews of each output; only with `stream`, or in a job"
    )

    @field_validator("fit")
    @classmethod
    def _check_fit(cls, fit: Fit, info: ValidationInfo) -> Fit:
        if fit == "free" and info.data.get("size") in (None, "original"):
            raise ValueError("free needs a size of WIDTHxHEIGHT: any other size has the picture's own aspect ratio")
        return fit

    @field_validator("adapters")
    @classmethod
    def _check_adapters(cls, adapters: tuple[AdapterUse, ...]) -> tuple[AdapterUse, ...]:
        names = [adapter.name for adapter in adapters]
        if len(set(names)) < len(names):
            raise ValueError("names an adapter twice")
        if len(names) > MAX_ADAPTERS:
            raise ValueError(f"must be at most {MAX_ADAPTERS}, not {len(names)}")
        for adapter in adapters:
            if adapter.scale is not None and not abs(adapter.scale) <= MAX_SCALE:
                raise ValueError(
                    f"the strength of {adapter.name[:64]} must be from -{MAX_SCALE:g} to {MAX_SCALE:g}, not "
                    f"{adapter.scale:g}"
                )
        return adapters

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _check_text(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for text in (value,) if isinstance(value, str) else value:
            if len(text) > MAX_PROMPT_CHARS:
                raise ValueError(f"must have at most {MAX_PROMPT_CHARS} characters, not {len(text)}")
            if token := _CONTROL_TOKEN.search(text):
                raise ValueError(f"must not contain the model's control token {token[0]}")
        return value

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not all(text.strip() for text in ((value,) if isinstance(value, str) else value)):
            raise ValueError("must not be empty")
        return value


class EditRequest(EditParams):
    """A caller's edit. `images` may be PIL pictures or uint8 arrays (RGB or RGBA), and are stored as arrays.

    `references`: pictures that the edits look at beside their own: a list for every image, or a list of lists, one for
    each image. They are stored for each image.

    `mask`: the parts that may change: one mask for every image, or a list, one for each image; each a PIL picture or an
    array of height × width, bool or uint8, of its image's size. They are stored for each image.

    Raises InvalidInput, whose `param` names the first invalid field.
    """

    images: tuple[Picture, ...]
    references: tuple[tuple[Pixels, ...], ...] = ()
    mask: tuple[Mask, ...] = ()
    original_sizes: tuple[Annotated[Size, BeforeValidator(_as_size)], ...] | None = None
    """The size of each picture before it was shrunk, from which `size` counts. None: the images are as they were."""
    caller: str | None = Field(None, min_length=1, max_length=256)
    """The caller whose samples `engine.max_caller_samples` counts; over HTTP, the name of the key. None: no limit."""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise invalid_input(error) from None

    @field_validator("images", mode="before")
    @classmethod
    def _check_images(cls, value: Any, info: ValidationInfo) -> tuple[Picture, ...]:
        if value is None or (isinstance(value, Sequence) and not value):
            raise ValueError("At least one image is required")
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"images must be a list of pictures, not {type(value).__name__}")
        pictures = tuple(as_picture(image, index) for index, image in enumerate(value))
        return tuple(map(lay_on_white, pictures)) if info.data.get("background") == "opaque" else pictures

    @field_validator("references", mode="before")
    @classmethod
    def _check_references(cls, value: Any, info: ValidationInfo) -> tuple[tuple[Pixels, ...], ...]:
        images = len(info.data.get("images", ()))
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must be a list of pictures, or of such lists, not {type(value).__name__}")
        nested = [isinstance(item, (list, tuple)) for item in value]
        if not any(nested):
            shared = _as_references(value)
            return (shared,) * images if shared else ()
        if not all(nested):
            raise ValueError("must be a list of pictures, or of such lists, not both")
        if len(value) != images:
            raise ValueError(f"{len(value)} lists for {images} images; send one for each image, or pictures for all")
        return tuple(map(_as_references, value)) if any(value) else ()

    @field_validator("mask", mode="before")
    @classmethod
    def _check_mask(cls, value: Any, info: ValidationInfo) -> tuple[Mask, ...]:
        images = info.data.get("images", ())
        if not images or value is None or (isinstance(value, (list, tuple)) and not value):
            return ()
        masks = [
            as_mask(mask, index) for index, mask in enumerate(value if isinstance(value, (list, tuple)) else [value])
        ]
        check_masks(len(masks), len(images), info.data.get("fit", "cover"))
        if len(masks) == 1:
            masks *= len(images)
        for index, (mask, image) in enumerate(zip(masks, images, strict=True)):
            check_mask_size(size_of(mask), size_of(image), index)
        return tuple(masks)

    @field_validator("original_sizes")
    @classmethod
    def _check_original_sizes(cls, sizes: tuple[Size, ...] | None, info: ValidationInfo) -> tuple[Size, ...] | None:
        images = info.data.get("images", ())
        if sizes is None or not images:
            return sizes
        if len(sizes) != len(images):
            raise ValueError(f"{len(sizes)} sizes for {len(images)} images")
        for index, (original, image) in enumerate(zip(sizes, images, strict=True)):
            if not is_shrunk(size_of(image), original):
                raise ValueError(f"the image at index {index} has {size_of(image)}, which is not {original} shrunk")
        return sizes

    @model_validator(mode="after")
    def _check_prompts(self) -> "EditRequest":
        if isinstance(self.prompt, tuple) and len(self.prompt) != self.places:
            if not self.images:
                raise ValueError(f"prompt: a generation takes one text, not {len(self.prompt)}")
            raise ValueError(
                f"prompt: {len(self.prompt)} texts for {self.places} images; "
                "send one text for all images, or one for each image"
            )
        return self

    @property
    def places(self) -> int:
        """The number of pictures of which there are `n` variants each: of an edit, that of its images."""
        return len(self.images)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each picture, in order."""
        return (self.prompt,) * self.places if isinstance(self.prompt, str) else self.prompt

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The size of each picture before it was shrunk."""
        return self.original_sizes or tuple(map(size_of, self.images))

    @property
    def references_by_image(self) -> tuple[tuple[Pixels, ...], ...]:
        """The references of each picture, in order."""
        return self.references or ((),) * len(self.images)

    @property
    def masks(self) -> tuple[Mask | None, ...]:
        """The mask of each picture, in order; None: all of it may change."""
        return self.mask or (None,) * len(self.images)

    @property
    def outputs(self) -> int:
        return self.places * self.n

    @property
    def picture_bytes(self) -> int:
        """Bytes of the decoded pictures in memory, and of the outputs that are as large as the pictures were."""
        arrays = {id(array): array.nbytes for of_one in (self.images, self.mask, *self.references) for array in of_one}
        channels: int = max((image.shape[2] for image in self.images), default=0)
        results = channels * original_pixels(self, self.sizes, masked=bool(self.mask))
        return sum(arrays.values()) + results

    def output_seed(self, image_index: int, variant_index: int) -> int:
        """Return the seed of one output: the request's seed plus the output's place in output order."""
        return self.seed + image_index * self.n + variant_index


class GenerationRequest(EditRequest):
    """A request for new pictures, made from the prompt alone: `n` variants, as those of an edit of one image.

    `size`: `auto` is a square of the model's native area. Only some models take it: `check_generation`.

    Raises InvalidInput for a picture, and for what only a picture can have.
    """

    images: tuple[Picture, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _check_no_pictures(cls, fields: dict[str, Any]) -> dict[str, Any]:
        for name in ("images", "references", "mask", "original_sizes"):
            value = fields.get(name)
            if value is not None and not (isinstance(value, (list, tuple)) and not value):
                raise needs_picture(name)
        # Empty lists are as if left out, and the rules of an edit's pictures do not apply.
        return {name: value for name, value in fields.items() if name not in ("images", "original_sizes")}

    @model_validator(mode="after")
    def _check_shape(self) -> "GenerationRequest":
        if self.fit != "cover":
            raise needs_picture("fit")
        if self.size == "original":
            raise InvalidInput(
                "size: original is the size of an image, and a generation has none; send WIDTHxHEIGHT or auto",
                param="size",
            )
        return self

    @property
    def places(self) -> int:
        """1: there is no image, and the variants are those of one picture."""
        return 1


def needs_picture(field: str) -> InvalidInput:
    """Return the error for a field of a generation that only an edit can have."""
    return InvalidInput(
        f"{field}: a picture that is generated has no image before it; to edit images, send them to "
        "/v1/images/edits, or as an EditRequest",
        param=field,
    )


def check_generation(generates: bool) -> None:
    """Raise NotFound unless the model makes pictures from a text alone."""
    if not generates:
        raise NotFound(
            "This server's model edits images and generates none from text alone: send an image to /v1/images/edits, "
            "or serve a model that generates, such as Qwen/Qwen-Image-2.1"
        )


def size_of(pixels: Picture | Mask) -> Size:
    return Size(pixels.shape[1], pixels.shape[0])


def as_picture(image: Any, index: int) -> Picture:
    """Convert a PIL picture or an array to a picture, RGBA only where a pixel is not opaque.

    Raises ValueError for other types, InvalidInput if it is damaged.
    """
    if isinstance(image, PIL.Image.Image):
        return convert(image, index, keep_alpha=True)
    is_picture = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
    if is_picture and image.size and image.shape[2] in (3, 4):
        # OpenCV users turn BGR into RGB with [..., ::-1], and PyTorch rejects arrays with a negative stride.
        return without_idle_alpha(np.ascontiguousarray(image))
    raise ValueError(
        f"Invalid image format at index {index}: expected a PIL image or a uint8 array of height × width × 3 or 4"
    )


def as_mask(mask: Any, index: int) -> Mask:
    """Convert a PIL picture or an array to a mask.

    Raises ValueError for other types, and if nothing may change; InvalidInput if the picture is damaged.
    """
    if isinstance(mask, PIL.Image.Image):
        with naming("mask"):
            changes = as_changes(convert(mask, index, keep_alpha=True))
    elif isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype in (np.bool_, np.uint8):
        changes = mask if mask.dtype == np.bool_ else mask >= MASK_THRESHOLD
    else:
        raise ValueError(
            f"Invalid mask at index {index}: expected a PIL image, or an array of height × width, bool or uint8"
        )
    if not changes.any():
        raise ValueError(
            f"the mask at index {index} has nothing to edit: its alpha is nowhere transparent, and no grey is white"
        )
    return np.ascontiguousarray(changes)


def _as_references(pictures: Sequence[Any]) -> tuple[Pixels, ...]:
    with naming("references"):
        return tuple(lay_on_white(as_picture(picture, index)) for index, picture in enumerate(pictures))


def invalid_input(error: ValidationError) -> InvalidInput:
    """Return pydantic's first complaint as an InvalidInput."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    # The number of prompts is checked against the images by a validator of the whole model, which has no location.
    param = str(first["loc"][0]) if first["loc"] else "prompt"
    if first["type"] == "missing":
        return InvalidInput(
            "At least one image is required" if param == "images" else f"{param} is required", param=param
        )
    if param == "images" or message.startswith(param):
        return InvalidInput(message, param=param)
    return InvalidInput(f"{param}: {message}", param=param)


def check_limits(request: EditRequest, limits: LimitSettings) -> None:
    """Raise InvalidInput if a request exceeds the server's limits. HTTP and handles share this check."""
    if len(request.images) > limits.max_images:
        raise InvalidInput(f"At most {limits.max_images} images are allowed, not {len(request.images)}", param="images")
    if request.outputs > limits.max_outputs:
        raise InvalidInput(
            f"images × n must be at most {limits.max_outputs}, not {request.places} × {request.n}", param="n"
        )
    for index, size in enumerate(request.sizes):
        check_picture_size(size, index, limits)
    with naming("references"):
        for pictures in request.references:
            check_references(len(pictures), limits)
            for index, picture in enumerate(pictures):
                check_picture_size(size_of(picture), index, limits)
    if isinstance(request.size, Size) and request.size.aspect_ratio > limits.max_aspect_ratio:
        raise InvalidInput(
            f"size: {request.size} has an aspect ratio above {limits.max_aspect_ratio:g}:1", param="size"
        )
    check_original_size(request, request.sizes, limits, masked=bool(request.mask))


def check_adapters(adapters: Sequence[AdapterUse], served: Collection[str]) -> None:
    """Raise InvalidInput for an adapter that the server does not have; `served`: those that it has."""
    for adapter in adapters:
        _check_served("adapters", "adapter", adapter.name, served)


def check_preset(name: str | None, served: Collection[str]) -> None:
    """Raise InvalidInput for a preset that the server does not have; `served`: those that it has."""
    if name is not None:
        _check_served("preset", "preset", name, served)


def _check_served(field: str, kind: str, name: str, served: Collection[str]) -> None:
    if name not in served:
        there = f"there are {', '.join(served)}" if served else "it has none"
        raise InvalidInput(f"{field}: this server has no {kind} {name[:64]!r}; {there}", param=field)


def check_references(count: int, limits: LimitSettings) -> None:
    """Raise InvalidInput for more references than one edit may have."""
    if count > limits.max_references:
        message = f"references: at most {limits.max_references} are allowed for each image, not {count}"
        raise InvalidInput(message, param="references")


def wanted_size(params: EditParams, *, masked: bool) -> WantedSize:
    """Return the `size` that results have.

    With a mask, `auto` is the picture's own size: in any other one, its bytes could not stay as they are.
    """
    return "original" if masked and params.size is None else params.size


def original_pixels(params: EditParams, pictures: Sequence[Size], *, masked: bool = False) -> int:
    """Return the pixels of all outputs and previews if they are as large as `pictures`, else 0."""
    if wanted_size(params, masked=masked) != "original":
        return 0
    return sum(size.pixels for size in pictures) * params.n * (1 + params.partial_images)


def check_original_size(
    params: EditParams, pictures: Sequence[Size], limits: LimitSettings, *, masked: bool = False
) -> None:
    """Raise InvalidInput if outputs as large as `pictures` have more than `max_original_pixels` together."""
    pixels = original_pixels(params, pictures, masked=masked)
    if pixels > limits.max_original_pixels:
        cause = "at `original`" if params.size else "with a mask"
        raise InvalidInput(
            f"size: {cause} the outputs and previews of this request have {pixels} pixels together, more than "
            f"{limits.max_original_pixels}; send fewer pictures at a time, or another size",
            param="size",
        )


def check_output_size(request: EditRequest, geometry: Geometry, limits: LimitSettings) -> None:
    """Raise InvalidInput if `size` has more than `max_area_factor` times the model's native pixels."""
    most = round(limits.max_area_factor * geometry.native_area)
    if isinstance(request.size, Size) and request.size.pixels > most:
        raise InvalidInput(f"size: {request.size} has more than {most} pixels, this model's maximum", param="size")


def check_masks(masks: int, images: int, fit: Fit) -> None:
    """Raise InvalidInput if an edit of so many images cannot have so many masks, or none for its `fit`."""
    if masks not in (0, 1, images):
        raise _unfit_mask(f"{masks} masks for {images} images; send one for all images, or one for each")
    if masks and fit == "free":
        raise _unfit_mask("fit=free recomposes the picture, so no part of it can stay as it is; leave fit out")


def check_mask_size(mask: Size, image: Size, index: int) -> None:
    """Raise InvalidInput if the mask of the image at this index has another size than the image."""
    if mask != image:
        raise _unfit_mask(
            f"the mask of the image at index {index} is {mask}, and the image {image}; they must have one size"
        )


def _unfit_mask(reason: str) -> InvalidInput:
    return InvalidInput(f"mask: {reason}", param="mask")


def arrange(outputs: Mapping[tuple[int, int], T], images: int, variants: int) -> tuple[tuple[T, ...], ...]:
    """Return outputs by (image, variant) as nested tuples: variant j of picture i at `[i][j]`.

    Raises KeyError if an output is missing.
    """
    return tuple(tuple(outputs[index, variant] for variant in range(variants)) for index in range(images))


@dataclass(frozen=True, slots=True)
class Timings:
    """The time that each stage of a request took, in seconds.

    `queue_s`: until its first sample joined. `encode_s`, `decode_s`: the passes that it took part in. `denoise_s`: the
    rest, including pauses.
    """

    queue_s: float
    encode_s: float
    denoise_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class BatchStats:
    """The forwards that a request took part in, as counts only: they reveal nothing else of other requests.

    `samples`: of all requests, summed over these forwards. `shared_forwards`: those with samples of other requests.
    """

    forwards: int = 0
    samples: int = 0
    shared_forwards: int = 0

    @property
    def mean_samples(self) -> float:
        return self.samples / self.forwards if self.forwards else 0.0


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of a request, or of one of its outputs alone.

    `text`: of the prompts as the caller wrote them, without the model's template around them. `reference`: of the input
    pictures, as the latent tokens that the transformer reads. `output`: of the output pictures, likewise.
    """

    text: int = 0
    reference: int = 0
    output: int = 0

    @classmethod
    def total(cls, pictures: Sequence["TokenCounts"], variants: int) -> "TokenCounts":
        """Return the tokens of a request, from those of one output of each picture.

        Every prompt and every reference counts once, since it is encoded once, and every output counts.
        """
        return cls(
            text=sum(each.text for each in pictures),
            reference=sum(each.reference for each in pictures),
            output=variants * sum(each.output for each in pictures),
        )


@dataclass(frozen=True, slots=True)
class EditResult:
    """The outputs of a request: `pixels[i][j]` and `seeds[i][j]` belong to variant j of picture i."""

    pixels: tuple[tuple[Picture, ...], ...]
    seeds: tuple[tuple[int, ...], ...]
    timings: Timings
    batch: BatchStats = field(default_factory=BatchStats)
    tokens: TokenCounts = field(default_factory=TokenCounts)

    @property
    def images(self) -> list[list[PIL.Image.Image]]:
        """The pictures as PIL images, in the same order."""
        return [[PIL.Image.fromarray(pixels) for pixels in variants] for variants in self.pixels]
