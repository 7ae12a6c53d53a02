"""A JSON body: the fields with JSON's types. Pictures are base64, data URLs, or URLs, which are not fetched here."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pybase64
from starlette.requests import Request

from serve_app.errors import InvalidInput
from serve_app.forms.fields import EditFields
from serve_app.forms.names import PICTURE_FIELDS, SYNONYMS, check_name, count, too_many_references
from serve_app.forms.upload import (
    PictureFiles,
    ReadPicture,
    UrlPicture,
    Values,
    file_too_large,
    text_too_large,
    within_limit,
)
from serve_app.forms.values import WORDS, from_json
from serve_app.images.pixels import undecodable
from serve_app.settings import LimitSettings

MEDIA_TYPE = "application/json"

# As objects, a body of `[[],[],[],…` takes fifty times its size. The limit allows sixteen prompts of commas only.
_MAX_MARKS = 100_000
_MARKS = (b",", b"[", b"{")

_URL = re.compile("[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)


@asynccontextmanager
async def opened(
    request: Request, limits: LimitSettings, executor: Executor | None, fields: type[EditFields]
) -> AsyncIterator[tuple[Values, PictureFiles]]:
    """Yield the values and the pictures of the body, which is parsed in `executor`."""
    body = await _read(request, limits)
    yield await asyncio.get_running_loop().run_in_executor(executor, _parse, body, limits, fields)


async def _read(request: Request, limits: LimitSettings) -> bytearray:
    body = bytearray()
    async for chunk in within_limit(request, limits):
        body += chunk
    return body


def _parse(body: bytearray, limits: LimitSettings, fields: type[EditFields]) -> tuple[Values, PictureFiles]:
    values: Values = {}
    pictures = PictureFiles()
    seen: Counter[str] = Counter()
    for name, value in _load(body).items():
        check_name(name, fields)
        if value is None:
            # Typed clients send null for every field that was left out.
            continue
        if name in PICTURE_FIELDS:
            _add_pictures(pictures, name, value, seen, limits)
            continue
        for item in value if isinstance(value, list) and SYNONYMS.get(name, name) == "prompt" else [value]:
            count(name, seen, limits)
            values.setdefault(SYNONYMS.get(name, name), []).append(_value(name, item, limits))
    return values, pictures


# --- JSON ---------------------------------------------------------------------------------------------------------


def _load(body: bytearray) -> dict[str, Any]:
    if sum(body.count(mark) for mark in _MARKS) > _MAX_MARKS:
        raise InvalidInput(f"The JSON body holds more than {_MAX_MARKS} values")
    try:
        # Not orjson: it silently keeps the last value of a name that comes twice.
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"The JSON body cannot be read: {error}") from None
    except (ValueError, RecursionError):
        raise InvalidInput("The JSON body cannot be read: not UTF-8, nested too deep, or a number too long") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"The JSON body must be an object, not {WORDS[type(value)]}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs)
    for name, times in names.items():
        _check_unicode("The name of a field", name, None)
        if times > 1:
            raise InvalidInput(f"{name[:64]} is given more than once", param=name[:64])
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise InvalidInput(f"The JSON body cannot be read: {constant} is no JSON")


# --- values -------------------------------------------------------------------------------------------------------


def _value(name: str, item: Any, limits: LimitSettings) -> Any:
    value = from_json(name, item)
    if isinstance(value, str):
        _check_unicode(name, value, name)
        if len(value.encode()) > limits.max_field_bytes:
            raise text_too_large(name, limits)
    return value


def _check_unicode(what: str, text: str, param: str | None) -> None:
    # JSON can escape half a surrogate pair, which no encoding can write.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} is not UTF-8 text", param=param) from None


# --- pictures -----------------------------------------------------------------------------------------------------


def _add_pictures(pictures: PictureFiles, name: str, value: Any, seen: Counter[str], limits: LimitSettings) -> None:
    items, field = value if isinstance(value, list) else [value], SYNONYMS.get(name, name)
    if field == "references" and any(isinstance(item, list) for item in items):
        _add_nested(pictures, name, items, limits)
        return
    if not items and field not in ("references", "mask"):
        raise InvalidInput("At least one image is required", param=name)
    if field == "images" and len(items) > 1 and any(isinstance(item, dict) for item in items):
        # In OpenAI's API, several objects are one edit.
        field = "image"
    for index, item in enumerate(items):
        # Counted by its meaning, and named in errors as it was sent.
        count(name if field == SYNONYMS.get(name, name) else field, seen, limits)
        pictures.add(field, _picture(name, _text(name, item), index, limits))


def _add_nested(pictures: PictureFiles, name: str, lists: list[Any], limits: LimitSettings) -> None:
    """Add the references of each image."""
    if not all(isinstance(items, list) for items in lists):
        raise InvalidInput(f"{name} must be a list of pictures, or a list of such lists, not both", param=name)
    pictures.per_image = [len(items) for items in lists]
    if max(pictures.per_image) > limits.max_references:
        raise too_many_references(name, limits)
    for items in lists:
        for index, item in enumerate(items):
            pictures.add("references", _picture(name, _text(name, item), index, limits))


def _text(name: str, item: Any) -> str:
    text = _unwrap(item)
    if not isinstance(text, str):
        raise InvalidInput(f"{name} must be base64 text, or a list of them, not {WORDS[type(text)]}", param=name)
    return text


def _unwrap(item: Any) -> Any:
    """Return the text in one of the objects that other APIs have for a picture; anything else as it is.

    OpenAI's edits have `{"image_url": text}`, xAI's `{"url": text}`, and chats `{"image_url": {"url": text}}`; each may
    have the type `image_url`.
    """
    match item:
        case {"type": "image_url", **rest} if rest:
            return _unwrap(rest)
        case {"image_url": {"url": str(text), **others}, **rest} if not others and not rest:
            return text
        case {"image_url": str(text), **rest} | {"url": str(text), **rest} if not rest:
            return text
    return item


def _picture(name: str, text: str, index: int, limits: LimitSettings) -> ReadPicture:
    if _URL.match(text):
        return UrlPicture(text, name, index)
    start = text.find(",") + 1 if text[:5].lower() == "data:" else 0
    if (len(text) - start) // 4 * 3 - text[-2:].count("=") > limits.max_file_bytes:
        raise file_too_large(name, index, limits)
    return partial(_decode_base64, text, start, index)


def _decode_base64(text: str, start: int, index: int) -> bytes:
    try:
        if start and not text[:start].lower().endswith(";base64,"):
            raise ValueError("percent-encoded")
        payload = text[start:]
        # MIME breaks base64 into lines.
        return pybase64.b64decode("".join(payload.split()) if "\n" in payload else payload, validate=True)
    except ValueError:
        raise undecodable(index, "neither base64 nor a data URL of base64") from None
