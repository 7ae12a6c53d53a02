"""Forms: HTTP bodies of either kind, read into validated requests."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from serve_app.decoding.pool import DECODERS
from serve_app.errors import DeadlineExceeded, InvalidInput, UnsupportedMediaType
from serve_app.forms import json_body, multipart
from serve_app.forms.fields import EditFields, validate
from serve_app.forms.fingerprint import Fingerprint
from serve_app.forms.memory import Reservation
from serve_app.forms.upload import PictureFiles, ReadPicture, Values
from serve_app.images.encoding import OutputFormat, check_encodable
from serve_app.images.geometry import Size
from serve_app.images.pixels import naming, shrunk_size
from serve_app.request import EditRequest, Pixels, check_limits, check_original_size, original_pixels
from serve_app.settings import AppSettings, LimitSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EditForm:
    """One HTTP request: the edit, and the format of its response.

    `fingerprint`: digest of all that was sent, which distinguishes a retry from another edit; None if not requested.
    `ignored`: names of the fields that were accepted without effect.
    """

    request: EditRequest
    output_format: OutputFormat
    output_compression: int
    user: str | None
    stream: bool
    fingerprint: str | None = None
    ignored: tuple[str, ...] = ()


async def parse(
    request: Request,
    settings: AppSettings,
    executor: Executor | None = None,
    reservation: Reservation | None = None,
    caller: str | None = None,
    *,
    fingerprinted: bool = False,
) -> EditForm:
    """Read and validate the body of an edit. Threads of `executor` wait for the decoders.

    `reservation` holds the bytes of the body, and then the pixels of all pictures; None: no limit. `caller`: as in
    EditRequest; no field can set it.

    Raise UnsupportedMediaType, PayloadTooLarge, UploadTooSlow and Overloaded (while reading), ModelNotFound,
    InvalidInput, DeadlineExceeded if the pixels cannot be reserved in time, and Starlette's ClientDisconnect if the
    client leaves during the upload.
    """
    limits = settings.limits
    async with _opened(request, limits, executor) as (values, files):
        given = validate(values, settings.model)
        if not files.images:
            raise InvalidInput("At least one image is required", param="images")
        _check_references(files)
        fingerprint = Fingerprint(values, files) if fingerprinted else None
        reads = files if fingerprint is None else fingerprint.pictures
        sizes, beside = await _both(DECODERS.measure, reads, limits, executor)
        _check_results(given, sizes, limits)
        if reservation is not None:
            pixels = sum(shrunk_size(size, limits.shrink_above_pixels).pixels for size in (*sizes, *beside))
            await _reserve(reservation, pixels + original_pixels(given, sizes), limits)
        decoded, references = await _both(DECODERS.decode, reads, limits, executor)
    if reservation is not None:
        reservation.release_bytes()
    edit = EditRequest(
        images=[picture.pixels for picture in decoded],
        **_references([picture.pixels for picture in references], files.per_image),
        original_sizes=[picture.sent_size for picture in decoded],
        caller=caller,
        **given.params(),
    )
    check_limits(edit, limits)
    digest = None if fingerprint is None else fingerprint.hexdigest()
    return EditForm(
        edit, given.output_format, given.output_compression, given.user, given.stream, digest, given.ignored
    )


def _check_references(files: PictureFiles) -> None:
    counts, images = files.per_image, len(files.images)
    if counts is not None and len(counts) != images:
        raise InvalidInput(
            f"references: {len(counts)} lists for {images} images; send one for each image, or pictures for all",
            param="references",
        )


def _references(references: list[Pixels], counts: list[int] | None) -> dict[str, Any]:
    """Return the field of an EditRequest; nothing if there are none."""
    left = iter(references)
    nested = references if counts is None else [list(islice(left, count)) for count in counts]
    return {"references": nested} if references else {}


def _check_results(given: EditFields, pictures: list[Size], limits: LimitSettings) -> None:
    """Raise InvalidInput for a `size` whose outputs are too large, before any picture is decoded."""
    check_original_size(given, pictures, limits)
    if given.size is not None:
        for result in pictures if given.size == "original" else [given.size]:
            check_encodable(result, given.output_format)


async def _both(
    call: Callable[[bytes, int, LimitSettings], T],
    files: PictureFiles,
    limits: LimitSettings,
    executor: Executor | None,
) -> tuple[list[T], list[T]]:
    """Call for the images and for the references; errors name the field."""
    images = await _each(call, files.images, limits, executor)
    with naming("references"):
        return images, await _each(call, files.references, limits, executor)


async def _each(
    call: Callable[[bytes, int, LimitSettings], T],
    pictures: list[ReadPicture],
    limits: LimitSettings,
    executor: Executor | None,
) -> list[T]:
    """Call for one picture after another, so that a request with many pictures does not take every decoder."""
    loop = asyncio.get_running_loop()

    def result(read: ReadPicture, index: int) -> T:
        return call(read(), index, limits)

    return [await loop.run_in_executor(executor, result, read, index) for index, read in enumerate(pictures)]


async def _reserve(reservation: Reservation, pixels: int, limits: LimitSettings) -> None:
    try:
        async with asyncio.timeout(limits.request_timeout_s):
            await reservation.reserve_pixels(pixels)
    except TimeoutError:
        seconds = limits.request_timeout_s
        raise DeadlineExceeded(f"There was no room for the pictures within {seconds:g} s") from None


def _opened(
    request: Request, limits: LimitSettings, executor: Executor | None
) -> AbstractAsyncContextManager[tuple[Values, PictureFiles]]:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedMediaType(f"A body with Content-Encoding: {encoding[:80]} is not read; send it uncompressed")
    media_type = parse_options_header(request.headers.get("content-type"))[0].decode("latin-1")
    if media_type == multipart.MEDIA_TYPE:
        return multipart.opened(request, limits)
    if media_type == json_body.MEDIA_TYPE:
        return json_body.opened(request, limits, executor)
    found = media_type[:80] or "nothing"
    raise UnsupportedMediaType(f"Content-Type must be {multipart.MEDIA_TYPE} or {json_body.MEDIA_TYPE}, not {found}")
