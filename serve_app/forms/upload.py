"""The body of a request, read within its limits, and the types that every kind of body is read into."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from serve_app.errors import PayloadTooLarge, UploadTooSlow
from serve_app.settings import LimitSettings

Values = dict[str, list[Any]]
"""Text fields: every value under a name, in order, as JSON has it or as the text of a form stands for it."""

ReadPicture = Callable[[], bytes]
"""Return the bytes of one picture file, each time anew. It may block, so it is called on the picture pool."""


@dataclass(slots=True, eq=False)
class UrlPicture:
    """A picture that the body names by a URL: a ReadPicture once its `content` has been fetched.

    `name`: the field, as it was sent; `index`: the picture's place there.
    """

    url: str
    name: str
    index: int
    content: bytes | None = None

    def __call__(self) -> bytes:
        assert self.content is not None
        return self.content


@dataclass(slots=True)
class PictureFiles:
    """The picture files of one body. `images`: those that are edited; `references`: those that edits look at beside.

    `per_image`: how many of the references belong to each image, one after another; None: all belong to every image.
    `masks`: none, one for every image, or one for each.
    """

    images: list[ReadPicture] = field(default_factory=list)
    references: list[ReadPicture] = field(default_factory=list)
    per_image: list[int] | None = None
    masks: list[ReadPicture] = field(default_factory=list)

    @property
    def by_url(self) -> list[UrlPicture]:
        return [read for read in (*self.images, *self.references, *self.masks) if isinstance(read, UrlPicture)]

    def add(self, name: str, read: ReadPicture) -> None:
        """Add a file of a field: of several `image`, the first is edited, and the others are references."""
        if name == "mask":
            self.masks.append(read)
        elif name == "references" or (name == "image" and self.images):
            self.references.append(read)
        else:
            self.images.append(read)


# More digits than any size has. int() raises ValueError for thousands of digits.
_MAX_LENGTH_DIGITS = 18


async def within_limit(request: Request, limits: LimitSettings) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of the body.

    Raise PayloadTooLarge, before the body is read if its length is announced; UploadTooSlow; ClientDisconnect.
    """
    too_large = PayloadTooLarge(f"The request is larger than {limits.max_request_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > _MAX_LENGTH_DIGITS or int(length) > limits.max_request_bytes):
        raise too_large
    received_bytes = 0
    start_s = asyncio.get_running_loop().time()
    async with aclosing(request.stream()) as stream:
        while (chunk := await _next(stream, start_s, received_bytes, limits)) is not None:
            received_bytes += len(chunk)
            if received_bytes > limits.max_request_bytes:
                raise too_large
            yield chunk


async def _next(
    stream: AsyncGenerator[bytes, None], start_s: float, received_bytes: int, limits: LimitSettings
) -> bytes | None:
    """Return the next chunk, None at the end. The rate is that of the whole upload, so a short pause is no offence."""
    latest_s = start_s + limits.upload_grace_s + received_bytes / limits.min_upload_bytes_per_s
    try:
        async with asyncio.timeout_at(latest_s):
            return await anext(stream, None)
    except TimeoutError:
        raise UploadTooSlow(
            f"The body comes at less than {limits.min_upload_bytes_per_s:g} bytes a second: "
            f"{received_bytes} bytes have arrived"
        ) from None


def text_too_large(name: str, limits: LimitSettings) -> PayloadTooLarge:
    return PayloadTooLarge(f"{name} is larger than {limits.max_field_bytes} bytes", param=name)


def file_too_large(name: str, index: int, limits: LimitSettings) -> PayloadTooLarge:
    what = {"references": "Reference", "mask": "Mask"}.get(name.removesuffix("[]"), "Image")
    return PayloadTooLarge(f"{what} at index {index} is larger than {limits.max_file_bytes} bytes", param=name)
