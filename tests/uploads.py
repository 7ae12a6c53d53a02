"""Bodies of edit requests, and the sending side of an upload."""

import asyncio
from collections.abc import Iterable
from typing import Any

import httpx
from starlette.requests import Request
from starlette.types import Message

from serve_app.forms.fields import EditFields
from serve_app.forms.form import EditForm, parse
from serve_app.settings import AppSettings, ModelSettings
from tests.pictures import png

SETTINGS = AppSettings(model=ModelSettings(source="Qwen/Qwen-Image-Edit", aliases=("gpt-image-1",)))
MIB = 2**20
Part = tuple[str, tuple[Any, ...]]


def picture(name: str = "images", value: int = 0) -> Part:
    return (name, (f"{value}.png", png(value, 8, 8), "image/png"))


def text(name: str, value: str | bytes) -> Part:
    return (name, (None, value))


PROMPT = text("prompt", "make it blue")
PICTURE = picture()


def body_of(parts: list[Part]) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://test/", files=parts)
    return request.read(), request.headers["content-type"]


class Upload:
    """The sending side of one request: it hands out chunks and counts the bytes that were taken."""

    def __init__(
        self,
        chunks: Iterable[bytes],
        content_type: str,
        headers: Iterable[tuple[bytes, bytes]] = (),
        disconnects: bool = False,
    ) -> None:
        self.chunks = iter(chunks)
        self.taken_bytes = 0
        self.disconnects = disconnects
        raw = [(b"content-type", content_type.encode()), *headers] if content_type else list(headers)
        self.scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw}

    async def receive(self) -> Message:
        chunk = next(self.chunks, None)
        if chunk is None:
            return {"type": "http.disconnect"} if self.disconnects else {"type": "http.request", "body": b""}
        self.taken_bytes += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}

    def parse(self, settings: AppSettings = SETTINGS, fields: type[EditFields] = EditFields) -> EditForm:
        return asyncio.run(parse(Request(self.scope, self.receive), settings, fields=fields))


def form_of(
    *parts: Part,
    settings: AppSettings = SETTINGS,
    chunk_bytes: int = 1000,
    fields: type[EditFields] = EditFields,
) -> EditForm:
    body, content_type = body_of(list(parts))
    chunks = [body[i : i + chunk_bytes] for i in range(0, len(body), chunk_bytes)]
    return Upload(chunks, content_type).parse(settings, fields)


def levels(form: EditForm) -> list[int]:
    return [int(pixels[0, 0, 0]) for pixels in form.request.images]
