"""An HTTP form, of either kind of body, becomes a validated request."""

import asyncio
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from serve_app import fields, json_body, multipart
from serve_app.body import ReadPicture, Texts
from serve_app.errors import InvalidInput, UnsupportedMediaType
from serve_app.images import OutputFormat, decode
from serve_app.request import EditRequest, Pixels, check_limits
from serve_app.settings import AppSettings, LimitSettings


@dataclass(frozen=True, slots=True)
class EditForm:
    """What one HTTP request asks for: the edit, and how its answer is written."""

    request: EditRequest
    output_format: OutputFormat
    output_compression: int
    user: str | None
    stream: bool


async def parse(
    request: Request, settings: AppSettings, executor: Executor | None = None, caller: str | None = None
) -> EditForm:
    """Read and validate the body of an edit; pictures are decoded one after another in `executor`.

    `caller`: as in EditRequest; no field can set it.

    Raises UnsupportedMediaType, PayloadTooLarge (while reading), ModelNotFound, InvalidInput, and Starlette's
    ClientDisconnect where the client left during the upload.
    """
    limits = settings.limits
    async with _opened(request, limits, executor) as (texts, pictures):
        form_options = fields.options(texts, settings)
        params = fields.params(texts)
        if not pictures:
            raise InvalidInput("At least one image is required", param="images")
        loop = asyncio.get_running_loop()
        images = [
            await loop.run_in_executor(executor, _decode, read, index, limits) for index, read in enumerate(pictures)
        ]
    edit = EditRequest(images=images, caller=caller, **params)
    check_limits(edit, limits)
    return EditForm(edit, *form_options)


def _opened(
    request: Request, limits: LimitSettings, executor: Executor | None
) -> AbstractAsyncContextManager[tuple[Texts, list[ReadPicture]]]:
    media_type = parse_options_header(request.headers.get("content-type"))[0].decode("latin-1")
    if media_type == multipart.MEDIA_TYPE:
        return multipart.opened(request, limits)
    if media_type == json_body.MEDIA_TYPE:
        return json_body.opened(request, limits, executor)
    found = media_type[:80] or "nothing"
    raise UnsupportedMediaType(f"Content-Type must be {multipart.MEDIA_TYPE} or {json_body.MEDIA_TYPE}, not {found}")


def _decode(read: ReadPicture, index: int, limits: LimitSettings) -> Pixels:
    return decode(read(), index, limits)
