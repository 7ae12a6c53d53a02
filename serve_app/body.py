"""The body of a request, read within its limit, and what every kind of body is read into."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.requests import Request

from serve_app.errors import PayloadTooLarge
from serve_app.settings import LimitSettings

Texts = dict[str, list[str]]
"""The text fields: every value that came under a name, in order."""

ReadPicture = Callable[[], bytes]
"""Gives the bytes of one picture file. It may block, so it is called on the picture pool."""


async def within_limit(request: Request, limits: LimitSettings) -> AsyncGenerator[bytes, None]:
    """The chunks of the body. Raises PayloadTooLarge, before reading where it can; ClientDisconnect."""
    too_large = PayloadTooLarge(f"The request is larger than {limits.max_request_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_request_bytes:
        raise too_large
    received_bytes = 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            received_bytes += len(chunk)
            if received_bytes > limits.max_request_bytes:
                raise too_large
            yield chunk


def text_too_large(name: str, limits: LimitSettings) -> PayloadTooLarge:
    return PayloadTooLarge(f"{name} is larger than {limits.max_field_bytes} bytes", param=name)


def file_too_large(name: str, index: int, limits: LimitSettings) -> PayloadTooLarge:
    return PayloadTooLarge(f"Image at index {index} is larger than {limits.max_file_bytes} bytes", param=name)
