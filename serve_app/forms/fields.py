"""Text fields of edits and generations: models that validate every body and describe the fields in /openapi.json."""

import reprlib
from functools import cache
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from serve_app.errors import InvalidInput, ModelNotFound
from serve_app.forms.upload import Values
from serve_app.images.encoding import OutputFormat
from serve_app.request import (
    EditParams,
    EditRequest,
    GenerationRequest,
    Guidance,
    check_adapters,
    check_preset,
    invalid_input,
)
from serve_app.settings import AdapterUse, ModelSettings

MAX_COMPRESSION = 100


class EditFields(EditParams):
    """Text fields of one edit, validated strictly: `values` makes values of the right types before.

    The context of the validation is the ModelSettings. Validators raise ModelNotFound, and InvalidInput for fields that
    exclude each other.
    """

    model_config = ConfigDict(strict=True)

    request_type: ClassVar[type[EditRequest]] = EditRequest
    """What a body becomes."""
    hints: ClassVar[tuple[str, ...]] = ("input_fidelity", "moderation", "quality")
    """Fields that tell OpenAI's models how to work. They cannot make a result wrong, so they are accepted."""

    true_cfg_scale: Guidance = Field(None, description="diffusers' name of guidance_scale; both, different: 400")
    output_format: OutputFormat = Field("png", description="how the results are encoded")
    output_compression: int = Field(
        MAX_COMPRESSION,
        ge=0,
        le=MAX_COMPRESSION,
        description="quality of jpeg and webp; webp at 100 is lossless",
    )
    stream: bool = Field(False, description="server-sent events")
    webhook_url: str | None = Field(
        None, max_length=2048, description="is told of the end of a job; only of hosts that this server allows"
    )
    model: str | None = None
    user: str | None = Field(None, max_length=256, description="goes into the log")

    # OpenAI's fields. Where one has no effect, the description is the reason.
    input_fidelity: Literal["low", "high"] | None = Field(
        None, description="has no effect: the model has no such setting"
    )
    moderation: Literal["auto", "low"] | None = Field(None, description="has no effect: this server does not moderate")
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="a preset, where this server names one for it; else it has no effect: set num_inference_steps"
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="`url`: links that open for a while instead of the pictures; not with `stream`"
    )

    @field_validator("model")
    @classmethod
    def _check_model(cls, name: str, info: ValidationInfo) -> str | None:
        if not name:
            # Open WebUI sends this if no model is configured.
            return None
        served = info.context
        assert isinstance(served, ModelSettings)
        if name not in served.all_names:
            raise ModelNotFound(f"The model {name[:80]!r} is not served here; {served.served_name!r} is", param="model")
        return name

    @field_validator("user")
    @classmethod
    def _printable(cls, user: str) -> str | None:
        # The log holds this text, and a line break in it would forge a line of the log.
        return "".join(filter(str.isprintable, user)) or None

    @field_validator("adapters")
    @classmethod
    def _check_served(cls, adapters: tuple[AdapterUse, ...], info: ValidationInfo) -> tuple[AdapterUse, ...]:
        assert isinstance(info.context, ModelSettings)
        check_adapters(adapters, info.context.adapters)
        return adapters

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, name: str, info: ValidationInfo) -> str:
        assert isinstance(info.context, ModelSettings)
        check_preset(name, info.context.presets)
        return name

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        name = "output_compression"
        if self.output_format == "png" and self.output_compression != MAX_COMPRESSION:
            raise InvalidInput(f"{name} is the quality of jpeg and webp; png is lossless, leave it out", param=name)
        if self.response_format == "url" and self.stream:
            message = "response_format: a stream sends the pictures themselves; leave url out, or send stream=false"
            raise InvalidInput(message, param="response_format")
        if self.background == "transparent" and self.output_format == "jpeg":
            message = "background: JPEG has no transparency; send output_format=png or webp"
            raise InvalidInput(message, param="background")
        if len({self.guidance_scale, self.true_cfg_scale} - {None}) > 1:
            message = "guidance_scale and true_cfg_scale are one setting: send only one"
            raise InvalidInput(message, param="true_cfg_scale")
        return self

    @property
    def ignored(self) -> tuple[str, ...]:
        """The hints that asked for something and have no effect. `auto` leaves the choice to the server."""
        return tuple(name for name in self.hints if getattr(self, name) not in (None, "auto"))

    def params(self) -> dict[str, Any]:
        """Return the given values for the fields of EditParams; the request has its own defaults for the others."""
        params = {name: getattr(self, name) for name in EditParams.model_fields if name in self.model_fields_set}
        if self.true_cfg_scale is not None:
            params["guidance_scale"] = self.true_cfg_scale
        # A list of one prompt means that prompt for every picture: in a form, each prompt is in a list.
        params["prompt"] = self.prompt[0] if len(self.prompt) == 1 else self.prompt
        return params


class GenerationFields(EditFields):
    """Text fields of one generation: those of an edit but for those about its pictures, which `names` refuses."""

    request_type: ClassVar[type[EditRequest]] = GenerationRequest
    hints: ClassVar[tuple[str, ...]] = ("moderation", "quality", "style")

    style: Literal["vivid", "natural"] | None = Field(
        None, description="has no effect: say in the prompt which style you want"
    )


@cache
def properties(fields: type[EditFields] = EditFields) -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of every field, without titles, null for a field left out, and constants."""
    return {name: _plain(schema) for name, schema in fields.model_json_schema()["properties"].items()}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    schema = {name: value for name, value in schema.items() if name != "title" and (name, value) != ("default", None)}
    if {"type": "null"} in schema.get("anyOf", ()):
        (value,) = (option for option in schema.pop("anyOf") if option != {"type": "null"})
        schema = {**value, **schema}
    if "const" in schema:
        # Swagger UI offers a choice only for an enum.
        schema["enum"] = [schema.pop("const")]
    return schema


def validate(values: Values, model: ModelSettings, fields: type[EditFields] = EditFields) -> EditFields:
    """Return the validated fields of a body. Raise ModelNotFound, or InvalidInput for the first bad field."""
    given = {name: value if name == "prompt" else value[0] for name, value in values.items()}
    presets: dict[Any, str] = dict(model.quality.items())
    if "preset" not in given and given.get("quality") in presets:
        given["preset"] = presets[given.pop("quality")]
    try:
        return fields.model_validate(given, context=model)
    except ValidationError as error:
        raise _refusal(error, fields) from None


def _refusal(error: ValidationError, fields: type[EditFields]) -> InvalidInput:
    """Return the first error of pydantic with a message that names the allowed values."""
    first = error.errors(include_url=False)[0]
    name, value = str(first["loc"][0]), first["input"]
    schema = properties(fields)[name]
    match first["type"]:
        case "literal_error":
            wanted = first["ctx"]["expected"].replace("'", "")
        case "greater_than_equal" | "less_than_equal":
            wanted = f"from {schema['minimum']} to {schema['maximum']}"
        case "string_too_long":
            message = f"{name}: must have at most {schema['maxLength']} characters, not {len(value)}"
            return InvalidInput(message, param=name)
        case _:
            return invalid_input(error)
    return InvalidInput(f"{name}: must be {wanted}, not {reprlib.repr(value)}; {schema['description']}", param=name)
