"""The fields of an edit, whatever body they come in. Every rule about fields lives here; rules about values are
EditRequest's.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

from pydantic import ValidationError

from serve_app.errors import InvalidInput, ModelNotFound
from serve_app.forms.upload import Texts
from serve_app.images import OutputFormat
from serve_app.request import EditParams, invalid_input
from serve_app.settings import AppSettings, LimitSettings

MAX_USER_CHARS = 256
MAX_COMPRESSION = 100

# FormData serializers (axios, PHP, Rails) and OpenAI's clients put brackets after the name of a list.
SYNONYMS = {"images[]": "images", "image[]": "image", "prompt[]": "prompt"}
PICTURE_FIELDS = frozenset({"images", "images[]", "image", "image[]"})

# What a value is where the body has types; text where it is not named here.
KINDS: dict[str, type] = {
    "n": int,
    "num_inference_steps": int,
    "guidance_scale": float,
    "true_cfg_scale": float,
    "seed": int,
    "output_compression": int,
    "stream": bool,
    "partial_images": int,
}

# Fields of the OpenAI API that change nothing here, at the values that ask for what is done anyway.
HARMLESS = {
    "background": (("auto", "opaque"), "results are opaque"),
    "input_fidelity": (("low",), "the model has no such setting"),
    "moderation": (("auto",), "this server does not moderate"),
    "quality": (("auto",), "set num_inference_steps instead"),
    "response_format": (("b64_json",), "this server keeps no files that a url could point to"),
}

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_DECIMAL = re.compile(r"-?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})")


# --- which fields may come ----------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """Raise InvalidInput for a field that this API has not."""
    if name == "mask":
        raise InvalidInput("mask: this model does not inpaint; say in the prompt what should change", param="mask")
    if name not in FIELDS:
        raise _unknown(name)


def count(name: str, seen: Counter[str], limits: LimitSettings) -> None:
    """Add one value to those `seen`, or raise InvalidInput because of what came before it."""
    field = SYNONYMS.get(name, name)
    seen[field] += 1
    if field in PICTURE_FIELDS:
        _check_pictures(name, seen, limits)
    elif seen[field] > (limits.max_images if field == "prompt" else 1):
        times = f"more than {limits.max_images} times" if field == "prompt" else "more than once"
        raise InvalidInput(f"{name} is given {times}", param=name)


def _check_pictures(name: str, seen: Counter[str], limits: LimitSettings) -> None:
    if seen["image"] and seen["images"]:
        raise InvalidInput("image and images cannot be mixed: send every picture of a batch as `images`", param=name)
    if seen["image"] > 1:
        raise InvalidInput(
            f"{name}: several of them mean references for one picture, and this model takes one picture; "
            "to edit each picture on its own, send them as `images`",
            param=name,
        )
    if seen["images"] > limits.max_images:
        raise InvalidInput(f"At most {limits.max_images} images are allowed", param="images")


def _unknown(name: str) -> InvalidInput:
    shown = name[:64]
    similar = difflib.get_close_matches(shown, sorted(FIELDS), n=1)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    return InvalidInput(f"Unknown field {shown!r}{hint}", param=shown)


# --- what their texts mean ----------------------------------------------------------------------------------------


def _text(name: str, text: str) -> str:
    return text


def _integer(name: str, text: str) -> int:
    if _INTEGER.fullmatch(text) is None:
        raise InvalidInput(f"{name} must be a whole number in digits, not {text[:40]!r}", param=name)
    return int(text)


def _decimal(name: str, text: str) -> float:
    if _DECIMAL.fullmatch(text) is None:
        raise InvalidInput(f"{name} must be a number such as 4 or 4.5, not {text[:40]!r}", param=name)
    return float(text)


def _seed(name: str, text: str) -> int:
    seed = _integer(name, text)
    if seed < 0:
        raise InvalidInput(f"seed must be 0 or more, not {seed}; leave it out for a random one", param=name)
    return seed


# The fields that go to EditParams under their own name, and how their text is read.
_PARAMS: dict[str, Callable[[str, str], Any]] = {
    "negative_prompt": _text,
    "n": _integer,
    "size": _text,
    "num_inference_steps": _integer,
    "partial_images": _integer,
    "seed": _seed,
}
_GUIDANCE_NAMES = ("guidance_scale", "true_cfg_scale")
_OPTIONS = ("output_format", "output_compression", "stream", "model", "user")
FIELDS = frozenset({*SYNONYMS, *PICTURE_FIELDS, "prompt", *_PARAMS, *_GUIDANCE_NAMES, *HARMLESS, *_OPTIONS})


def params(texts: Texts) -> dict[str, Any]:
    """The fields of EditParams. They are validated here too, so that no picture is decoded for a bad one."""
    params = {name: read(name, texts[name][0]) for name, read in _PARAMS.items() if name in texts}
    if prompts := texts.get("prompt"):
        params["prompt"] = prompts[0] if len(prompts) == 1 else tuple(prompts)
    scales = {name: _decimal(name, texts[name][0]) for name in _GUIDANCE_NAMES if name in texts}
    if len(set(scales.values())) > 1:
        raise InvalidInput("guidance_scale and true_cfg_scale are one setting: send only one", param="true_cfg_scale")
    if scales:
        params["guidance_scale"] = next(iter(scales.values()))
    try:
        EditParams(**params)
    except ValidationError as error:
        raise _as_sent(invalid_input(error), texts) from None
    return params


def _as_sent(refusal: InvalidInput, texts: Texts) -> InvalidInput:
    """The refusal in the word that the caller used, where it is the alias."""
    name, alias = _GUIDANCE_NAMES
    if refusal.param != name or name in texts:
        return refusal
    return InvalidInput(refusal.message.replace(name, alias), param=alias)


def options(texts: Texts, settings: AppSettings) -> tuple[OutputFormat, int, str | None, bool]:
    """Output format, compression, user, stream; the options that have only one value here are checked."""
    for name, (values, reason) in HARMLESS.items():
        if name in texts and texts[name][0] not in values:
            allowed = " or ".join(values)
            raise InvalidInput(f"{name} must be {allowed}, not {texts[name][0][:40]!r}: {reason}", param=name)
    model = texts.get("model", [settings.model.served_name])[0]
    if model not in settings.model.all_names:
        raise ModelNotFound(
            f"The model {model[:80]!r} is not served here; {settings.model.served_name!r} is", param="model"
        )
    output_format = _output_format(texts)
    return output_format, _compression(texts, output_format), _user(texts), _stream(texts)


def _stream(texts: Texts) -> bool:
    stream = texts.get("stream", ["false"])[0].lower()
    if stream not in ("true", "false"):
        raise InvalidInput(f"stream must be true or false, not {stream[:40]!r}", param="stream")
    if stream == "false" and _integer("partial_images", texts.get("partial_images", ["0"])[0]) != 0:
        raise InvalidInput("partial_images: only a stream has previews; send stream=true", param="partial_images")
    return stream == "true"


def _output_format(texts: Texts) -> OutputFormat:
    text = texts.get("output_format", ["png"])[0]
    for output_format in get_args(OutputFormat):
        if text == output_format:
            return output_format  # type: ignore[no-any-return]
    raise InvalidInput(f"output_format must be png, jpeg or webp, not {text[:40]!r}", param="output_format")


def _compression(texts: Texts, output_format: OutputFormat) -> int:
    name = "output_compression"
    compression = _integer(name, texts.get(name, [str(MAX_COMPRESSION)])[0])
    if not 0 <= compression <= MAX_COMPRESSION:
        raise InvalidInput(f"{name} must be from 0 to {MAX_COMPRESSION}, not {compression}", param=name)
    if output_format == "png" and compression != MAX_COMPRESSION:
        raise InvalidInput(f"{name} is the quality of jpeg and webp; png is lossless, leave it out", param=name)
    return compression


def _user(texts: Texts) -> str | None:
    user = texts.get("user", [""])[0]
    if len(user) > MAX_USER_CHARS:
        raise InvalidInput(f"user must have at most {MAX_USER_CHARS} characters, not {len(user)}", param="user")
    # It goes into the log, where a line break would forge a line.
    return "".join(character for character in user if character.isprintable()) or None
