"""An HTTP form becomes a validated request. Every rule about fields lives here; rules about values are EditRequest's.

A part is judged by its name as soon as its headers are read, so that what will be refused is never stored.
"""

import asyncio
import difflib
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve_app.errors import InvalidInput, ModelNotFound, PayloadTooLarge, UnsupportedMediaType
from serve_app.images import OutputFormat, decode
from serve_app.request import EditParams, EditRequest, check_limits, invalid_input
from serve_app.settings import AppSettings, LimitSettings

MAX_USER_CHARS = 256
MAX_COMPRESSION = 100

# FormData serializers (axios, PHP, Rails) put brackets after the name of a list.
_SYNONYMS = {"images[]": "images", "prompt[]": "prompt"}
_PICTURE_FIELDS = frozenset({"images", "image", "image[]"})
_REPEATED_FIELDS = frozenset({"images", "image", "image[]", "prompt"})

# Fields of the OpenAI API that change nothing here, at the values that ask for what is done anyway.
_HARMLESS = {
    "background": (("auto", "opaque"), "results are opaque"),
    "input_fidelity": (("low",), "the model has no such setting"),
    "moderation": (("auto",), "this server does not moderate"),
    "quality": (("auto",), "set num_inference_steps instead"),
    "response_format": (("b64_json",), "this server keeps no files that a url could point to"),
}

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_DECIMAL = re.compile(r"-?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class EditForm:
    """What one HTTP request asks for: the edit, and how its answer is written."""

    request: EditRequest
    output_format: OutputFormat
    output_compression: int
    user: str | None
    stream: bool


async def parse(request: Request, settings: AppSettings, executor: Executor | None = None) -> EditForm:
    """Read and validate the body of an edit; pictures are decoded one after another in `executor`.

    Raises UnsupportedMediaType, PayloadTooLarge (while reading), ModelNotFound, InvalidInput, and Starlette's
    ClientDisconnect where the client left during the upload.
    """
    limits = settings.limits
    async with _body(request, limits) as (texts, files):
        form_options = _options(texts, settings)
        params = _params(texts)
        if not files:
            raise InvalidInput("At least one image is required", param="images")
        loop = asyncio.get_running_loop()
        images = [
            await loop.run_in_executor(executor, decode, await file.read(), index, limits)
            for index, file in enumerate(files)
        ]
    edit = EditRequest(images=images, **params)
    check_limits(edit, limits)
    return EditForm(edit, *form_options)


# --- reading the body ---------------------------------------------------------------------------------------------

_Texts = dict[str, list[str]]


@asynccontextmanager
async def _body(request: Request, limits: LimitSettings) -> AsyncIterator[tuple[_Texts, list[UploadFile]]]:
    """The texts and picture files of a multipart body. The files are closed on the way out."""
    _check_headers(request.headers, limits)
    files: list[UploadFile] = []
    texts: _Texts = {}
    try:
        for name, value in await _read(request, limits):
            if isinstance(value, str):
                texts.setdefault(_SYNONYMS.get(name, name), []).append(value)
            else:
                files.append(value)
        # What a browser sends for a file input that was left empty.
        yield texts, [file for file in files if file.filename or file.size]
    finally:
        for file in files:
            file.file.close()  # not UploadFile.close(): an await here would not run once the request is cancelled


def _check_headers(headers: Headers, limits: LimitSettings) -> None:
    content_type, options = parse_options_header(headers.get("content-type"))
    if content_type != b"multipart/form-data":
        found = content_type.decode("latin-1")[:80] or "nothing"
        raise UnsupportedMediaType(f"Content-Type must be multipart/form-data, not {found}")
    if not options.get(b"boundary"):
        raise InvalidInput("The Content-Type header has no boundary: let your HTTP client set this header itself")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_request_bytes:
        raise _request_too_large(limits)


async def _read(request: Request, limits: LimitSettings) -> list[tuple[str, str | UploadFile]]:
    async with aclosing(request.stream()) as stream:
        parser = _Parser(request.headers, stream, limits)
        try:
            return (await parser.parse()).multi_items()
        except MultiPartException as error:
            raise InvalidInput(f"The multipart body cannot be read: {error.message}") from None


class _Parser(MultiPartParser):
    """Starlette's parser, which spools files to disk, with our limits and rules applied while the body arrives.

    What the methods raise passes through `parse`, which then closes the files.
    """

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], limits: LimitSettings) -> None:
        # Numbers of parts are bounded by `_admit`, by name.
        super().__init__(headers, self._bounded(stream), max_files=float("inf"), max_fields=float("inf"))
        self.max_part_size = limits.max_field_bytes
        self._limits = limits
        self._seen: Counter[str] = Counter()
        self._part_bytes = 0
        self._complete = False

    async def _bounded(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        received_bytes = 0
        async for chunk in stream:
            received_bytes += len(chunk)
            if received_bytes > self._limits.max_request_bytes:
                raise _request_too_large(self._limits)
            yield chunk
        # python-multipart 0.0.34 does not mind: the part that was cut off would be missing from the form.
        if not self._complete:
            raise InvalidInput("The multipart body ends before its closing boundary: the upload was cut off")

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        _admit(part.field_name, part.file is not None, self._seen, self._limits)
        self._part_bytes = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part_bytes += end - start
        part = self._current_part
        if part.file is None and self._part_bytes > self._limits.max_field_bytes:
            raise PayloadTooLarge(
                f"{part.field_name} is larger than {self._limits.max_field_bytes} bytes", param=part.field_name
            )
        if part.file is not None and self._part_bytes > self._limits.max_file_bytes:
            index = sum(self._seen[name] for name in _PICTURE_FIELDS) - 1
            raise PayloadTooLarge(
                f"Image at index {index} is larger than {self._limits.max_file_bytes} bytes", param=part.field_name
            )
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        part = self._current_part
        if part.file is None:
            # Starlette would fall back to Latin-1, and the model would be asked for gibberish.
            try:
                part.data.decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidInput(f"{part.field_name} is not UTF-8 text", param=part.field_name) from None
            self._charset = "utf-8"
        super().on_part_end()

    def on_end(self) -> None:
        self._complete = True


def _request_too_large(limits: LimitSettings) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request is larger than {limits.max_request_bytes} bytes")


# --- which parts may come -----------------------------------------------------------------------------------------


def _admit(name: str, is_file: bool, seen: Counter[str], limits: LimitSettings) -> None:
    """Count a part, or raise InvalidInput by its name, its kind, or what came before it."""
    field = _SYNONYMS.get(name, name)
    if field == "mask":
        raise InvalidInput("mask: this model does not inpaint; say in the prompt what should change", param="mask")
    if field not in _FIELDS:
        raise _unknown(name)
    if field in _PICTURE_FIELDS and not is_file:
        raise InvalidInput(f"{name} must be a file, not text; with curl: -F '{name}=@photo.png'", param=name)
    if field not in _PICTURE_FIELDS and is_file:
        raise InvalidInput(f"{name} must be text, not a file", param=name)
    seen[field] += 1
    if field in _PICTURE_FIELDS:
        _admit_picture(name, seen, limits)
    elif seen[field] > (limits.max_images if field in _REPEATED_FIELDS else 1):
        times = f"more than {limits.max_images} times" if field in _REPEATED_FIELDS else "more than once"
        raise InvalidInput(f"{name} is given {times}", param=name)


def _admit_picture(name: str, seen: Counter[str], limits: LimitSettings) -> None:
    references = seen["image"] + seen["image[]"]
    if references and seen["images"]:
        raise InvalidInput("image and images cannot be mixed: send every picture of a batch as `images`", param=name)
    if references > 1:
        raise InvalidInput(
            f"{name}: several of them mean references for one picture, and this model takes one picture; "
            "to edit each picture on its own, send them as `images`",
            param=name,
        )
    if seen["images"] > limits.max_images:
        raise InvalidInput(f"At most {limits.max_images} images are allowed", param="images")


def _unknown(name: str) -> InvalidInput:
    shown = name[:64]
    similar = difflib.get_close_matches(shown, sorted(_FIELDS), n=1)
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
_FIELDS = frozenset({*_PICTURE_FIELDS, "prompt", *_PARAMS, *_GUIDANCE_NAMES, *_HARMLESS, *_OPTIONS})


def _params(texts: _Texts) -> dict[str, Any]:
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
        raise invalid_input(error) from None
    return params


def _options(texts: _Texts, settings: AppSettings) -> tuple[OutputFormat, int, str | None, bool]:
    """Output format, compression, user, stream; the options that have only one value here are checked."""
    for name, (values, reason) in _HARMLESS.items():
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


def _stream(texts: _Texts) -> bool:
    stream = texts.get("stream", ["false"])[0].lower()
    if stream not in ("true", "false"):
        raise InvalidInput(f"stream must be true or false, not {stream[:40]!r}", param="stream")
    if stream == "false" and _integer("partial_images", texts.get("partial_images", ["0"])[0]) != 0:
        raise InvalidInput("partial_images: only a stream has previews; send stream=true", param="partial_images")
    return stream == "true"


def _output_format(texts: _Texts) -> OutputFormat:
    text = texts.get("output_format", ["png"])[0]
    for output_format in get_args(OutputFormat):
        if text == output_format:
            return output_format  # type: ignore[no-any-return]
    raise InvalidInput(f"output_format must be png, jpeg or webp, not {text[:40]!r}", param="output_format")


def _compression(texts: _Texts, output_format: OutputFormat) -> int:
    name = "output_compression"
    compression = _integer(name, texts.get(name, [str(MAX_COMPRESSION)])[0])
    if not 0 <= compression <= MAX_COMPRESSION:
        raise InvalidInput(f"{name} must be from 0 to {MAX_COMPRESSION}, not {compression}", param=name)
    if output_format == "png" and compression != MAX_COMPRESSION:
        raise InvalidInput(f"{name} is the quality of jpeg and webp; png is lossless, leave it out", param=name)
    return compression


def _user(texts: _Texts) -> str | None:
    user = texts.get("user", [""])[0]
    if len(user) > MAX_USER_CHARS:
        raise InvalidInput(f"user must have at most {MAX_USER_CHARS} characters, not {len(user)}", param="user")
    # It goes into the log, where a line break would forge a line.
    return "".join(character for character in user if character.isprintable()) or None
