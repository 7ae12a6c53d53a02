"""Hostile requests: each must be refused with a clear 4xx, and cost nothing."""

import asyncio
import io
import random
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.slow.soak.edits import Edit

EDITS = "/v1/images/edits"


@dataclass(frozen=True)
class Hostile:
    """A hostile request. `send` returns the status, or None for a closed connection; `statuses` are allowed."""

    name: str
    statuses: frozenset[int | None]
    send: Callable[[httpx.AsyncClient, Edit], Awaitable[int | None]]


async def _post(client: httpx.AsyncClient, **request: Any) -> int:
    response = await client.post(EDITS, **request)
    _check_body(response)
    return response.status_code


def _check_body(response: httpx.Response) -> None:
    """Check that the error has the common body, and reveals nothing of the server's inside."""
    error = response.json()["error"]
    assert error["code"], response.text
    assert error["message"], response.text
    assert not any(inside in response.text for inside in ("Traceback", "/tmp/", ".py")), response.text


def _fields(name: str, status: int = 400, **fields: str) -> Hostile:
    async def send(client: httpx.AsyncClient, edit: Edit) -> int:
        return await _post(client, **edit.form(**fields))

    return Hostile(name, frozenset({status}), send)


def _file(name: str, damage: Callable[[bytes], bytes]) -> Hostile:
    async def send(client: httpx.AsyncClient, edit: Edit) -> int:
        files = [("images", ("a.png", damage(edit.files[0])))]
        return await _post(client, files=files, data={"prompt": "x"})

    return Hostile(name, frozenset({400}), send)


def _body(name: str, status: int, content: bytes, content_type: str) -> Hostile:
    async def send(client: httpx.AsyncClient, edit: Edit) -> int:
        return await _post(client, content=content, headers={"content-type": content_type})

    return Hostile(name, frozenset({status}), send)


def _raw(name: str, statuses: set[int | None], data: bytes) -> Hostile:
    """Return a request of those bytes, with the client's key in place of KEY."""

    async def send(client: httpx.AsyncClient, edit: Edit) -> int | None:
        address = urlsplit(str(client.base_url))
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(data.replace(b"KEY", client.headers["Authorization"].encode()))
            line = await reader.readline()
        except ConnectionError:
            return None
        finally:
            writer.close()
        return int(line.split()[1]) if line.startswith(b"HTTP/") else None

    return Hostile(name, frozenset(statuses), send)


def _key(name: str, authorization: str) -> Hostile:
    async def send(client: httpx.AsyncClient, edit: Edit) -> int:
        return await _post(client, **edit.form(), headers={"Authorization": authorization})

    return Hostile(name, frozenset({401}), send)


async def _no_such_path(client: httpx.AsyncClient, edit: Edit) -> int:
    response = await client.get(f"/v1/{random.randrange(10**9)}")
    _check_body(response)
    return response.status_code


async def _wrong_method(client: httpx.AsyncClient, edit: Edit) -> int:
    response = await client.put(EDITS)
    _check_body(response)
    return response.status_code


def bomb(side: int = 60_000) -> bytes:
    """Return a PNG of a few bytes whose header claims that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    file = io.BytesIO()
    file.write(b"\x89PNG\r\n\x1a\n")
    file.write(chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)))
    file.write(chunk(b"IDAT", zlib.compress(bytes(1000))))
    file.write(chunk(b"IEND", b""))
    return file.getvalue()


_CUT_OFF = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhalf of a'
_FORM = b"content-type: multipart/form-data; boundary=b\r\n"
_HEAD = f"POST {EDITS} HTTP/1.1\r\nhost: localhost\r\nauthorization: KEY\r\n".encode()

ALL = (
    _fields("n is zero", n="0"),
    _fields("n is huge", n="99999999999999999999"),
    _fields("steps are huge", num_inference_steps="1000000"),
    _fields("size is huge", size="99999x99999"),
    _fields("size is long", size="10x9999"),
    _fields("guidance is not a number", guidance_scale="nan"),
    _fields("an unknown field", promt="x"),
    _fields("a mask", mask="x"),
    _fields("control tokens", prompt="<|image_pad|>" * 50),
    _fields("an empty prompt", prompt="   "),
    _fields("another model", status=404, model="dall-e-3"),
    _file("an empty file", lambda data: b""),
    _file("no picture", lambda data: b"GIF89a" + bytes(200)),
    _file("half a picture", lambda data: data[: len(data) // 3]),
    _file("a decompression bomb", lambda data: bomb()),
    _body("a cut off form", 400, _CUT_OFF, "multipart/form-data; boundary=b"),
    _body("no boundary", 400, _CUT_OFF, "multipart/form-data"),
    _body("another media type", 415, b"x", "text/plain"),
    _body("deep JSON", 400, b"[" * 50_000, "application/json"),
    _body("JSON of a URL", 400, b'{"prompt": "x", "images": ["http://169.254.169.254/"]}', "application/json"),
    _raw("too much announced", {413}, _HEAD + _FORM + b"content-length: 99999999999\r\n\r\n"),
    _raw("garbage", {400, None}, b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n"),
    _key("no key", ""),
    _key("another key", "Bearer of-nobody"),
    Hostile("no such path", frozenset({404}), _no_such_path),
    Hostile("wrong method", frozenset({405}), _wrong_method),
)
