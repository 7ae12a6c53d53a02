"""Forms: HTTP bodies of either kind, read into validated requests."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from serve_app.decoding.pool import DECODERS
from serve_app.errors import DeadlineExceeded, InvalidInput, UnsupportedMediaType
from serve_app.forms import json_body, kept_form, multipart
from serve_app.forms.fetching import PictureFetcher
from serve_app.forms.fields import EditFields, GenerationFields, validate
from serve_app.forms.fingerprint import Fingerprint
from serve_app.forms.memory import Reservation
from serve_app.forms.upload import PictureFiles, ReadPicture, Values
from serve_app.images.encoding import OutputFormat, check_encodable
from serve_app.images.geometry import Size
from serve_app.images.pixels import naming, shrunk_size
from serve_app.request import (
    EditRequest,
    Pixels,
    check_limits,
    check_mask_size,
    check_masks,
    check_original_size,
    original_pixels,
    wanted_size,
)
from serve_app.settings import AppSettings, LimitSettings, ProvenanceSettings

T = TypeVar("T")

_KINDS: dict[type[EditFields], str] = {EditFields: "edit", GenerationFields: "generation"}
"""The names of the kinds of forms, as the store has them."""


@dataclass(frozen=True, slots=True)
class EditForm:
    """One HTTP request: the edit or the generation, and the format of its response.

    `fingerprint`: digest of all that was sent, which distinguishes a retry from another edit; None if not requested.
    `ignored`: names of the fields that were accepted without effect. `provenance`: the marks of its output files.
    `as_links`: its outputs are answered as links. `webhook_url`: is told of the end of its job. `kept`: the form for a
    later process; None if not requested.
    """

    request: EditRequest
    output_format: OutputFormat
    output_compression: int
    user: str | None
    stream: bool
    fingerprint: str | None = None
    ignored: tuple[str, ...] = ()
    provenance: ProvenanceSettings = field(default_factory=ProvenanceSettings)
    as_links: bool = False
    webhook_url: str | None = None
    kept: bytes | None = None


async def parse(
    request: Request,
    settings: AppSettings,
    executor: Executor | None = None,
    reservation: Reservation | None = None,
    caller: str | None = None,
    *,
    fields: type[EditFields] = EditFields,
    fingerprinted: bool = False,
    is_job: bool = False,
    fetcher: PictureFetcher | None = None,
) -> EditForm:
    """Read and validate the body of an edit, or of what else `fields` are of. Threads of `executor` wait for decoders.

    `reservation` holds the bytes of the body, and then the pixels of all pictures; None: no limit. `caller`: as in
    EditRequest; no field can set it. `is_job`: a job has previews without `stream`, since its events can be streamed.
    `fetcher`: fetches pictures by URL; by default as the settings say.

    Raise UnsupportedMediaType, PayloadTooLarge, UploadTooSlow and Overloaded (while reading), ModelNotFound,
    InvalidInput, DeadlineExceeded if the pixels cannot be reserved in time, and Starlette's ClientDisconnect if the
    client leaves during the upload.
    """
    async with _opened(request, settings.limits, executor, fields) as (values, files):
        return await _build(
            fields,
            values,
            files,
            settings,
            executor,
            reservation,
            caller,
            fingerprinted=fingerprinted,
            is_job=is_job,
            fetcher=fetcher,
        )


async def parse_kept(kept: bytes, settings: AppSettings, executor: Executor | None, caller: str | None) -> EditForm:
    """Return the form of a job from `EditForm.kept`. Raises ValueError for that of another version, and as `parse`."""
    kind, values, files = kept_form.load(kept)
    fields = {kind: fields for fields, kind in _KINDS.items()}[kind]
    return await _build(fields, values, files, settings, executor, None, caller, fingerprinted=False, is_job=True)


async def _build(
    fields: type[EditFields],
    values: Values,
    files: PictureFiles,
    settings: AppSettings,
    executor: Executor | None,
    reservation: Reservation | None,
    caller: str | None,
    *,
    fingerprinted: bool,
    is_job: bool,
    fetcher: PictureFetcher | None = None,
) -> EditForm:
    limits = settings.limits
    given = validate(values, settings.model, fields)
    if given.partial_images and not (given.stream or is_job):
        message = "partial_images: only a stream or a job has previews; send stream=true"
        raise InvalidInput(message, param="partial_images")
    if fields is EditFields:
        _check_counts(files, given)
    if files.by_url:
        await (fetcher or PictureFetcher(settings)).fetch(files.by_url, reservation)
    fingerprint = Fingerprint(values, files) if fingerprinted else None
    reads = files if fingerprint is None else fingerprint.pictures
    sizes = await _measure(reads, limits, executor)
    _check_mask_sizes(sizes)
    _check_results(given, sizes, limits)
    if reservation is not None:
        results = original_pixels(given, sizes.images, masked=sizes.masked)
        await _reserve(reservation, sizes.decoded_pixels(limits) + results, limits)
    pictures = await _decode(reads, limits, executor)
    loop = asyncio.get_running_loop()
    # Not on the event loop: the masks and the alpha of large pictures are searched, or laid on white.
    edit = await loop.run_in_executor(
        executor, partial(fields.request_type, **pictures, caller=caller, **given.params())
    )
    check_limits(edit, limits)
    # With the seed, so that a later process makes the same pictures.
    dump = partial(kept_form.dump, _KINDS[fields], {**values, "seed": [edit.seed]}, files)
    kept = await loop.run_in_executor(executor, dump) if is_job else None
    if reservation is not None:
        reservation.release_bytes()
    digest = None if fingerprint is None else fingerprint.hexdigest()
    return EditForm(
        edit,
        given.output_format,
        given.output_compression,
        given.user,
        given.stream,
        digest,
        given.ignored,
        settings.provenance,
        given.response_format == "url",
        given.webhook_url,
        kept,
    )


def _check_counts(files: PictureFiles, given: EditFields) -> None:
    """Raise InvalidInput for an edit without images, and for references or masks that do not fit their number."""
    if not files.images:
        raise InvalidInput("At least one image is required", param="images")
    counts, images = files.per_image, len(files.images)
    if counts is not None and len(counts) != images:
        raise InvalidInput(
            f"references: {len(counts)} lists for {images} images; send one for each image, or pictures for all",
            param="references",
        )
    check_masks(len(files.masks), images, given.fit)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The sizes of the picture files of one body."""

    images: list[Size]
    references: list[Size]
    masks: list[Size]

    @property
    def masked(self) -> bool:
        return bool(self.masks)

    def decoded_pixels(self, limits: LimitSettings) -> int:
        """Return the pixels of the decoded pictures and masks. A picture with a mask is not shrunk."""
        most = limits.shrink_above_pixels
        images = self.images if self.masked else [shrunk_size(size, most) for size in self.images]
        references = [shrunk_size(size, most) for size in self.references]
        return sum(size.pixels for size in (*images, *references, *self.masks))


def _check_mask_sizes(sizes: _Sizes) -> None:
    """Raise InvalidInput for a mask that has another size than its image, however they are to be turned."""
    masks = sizes.masks * len(sizes.images) if len(sizes.masks) == 1 else sizes.masks
    for index, (mask, image) in enumerate(zip(masks, sizes.images, strict=False)):
        if {mask.width, mask.height} != {image.width, image.height}:
            check_mask_size(mask, image, index)


def _check_results(given: EditFields, sizes: _Sizes, limits: LimitSettings) -> None:
    """Raise InvalidInput for a `size` whose outputs are too large, before any picture is decoded."""
    check_original_size(given, sizes.images, limits, masked=sizes.masked)
    wanted = wanted_size(given, masked=sizes.masked)
    if wanted is not None:
        for result in sizes.images if wanted == "original" else [wanted]:
            check_encodable(result, given.output_format)


async def _measure(files: PictureFiles, limits: LimitSettings, executor: Executor | None) -> _Sizes:
    images = await _each(DECODERS.measure, files.images, limits, executor)
    with naming("references"):
        references = await _each(DECODERS.measure, files.references, limits, executor)
    with naming("mask"):
        return _Sizes(images, references, await _each(DECODERS.measure, files.masks, limits, executor))


async def _decode(files: PictureFiles, limits: LimitSettings, executor: Executor | None) -> dict[str, Any]:
    """Return the pictures as the fields of an EditRequest. Masks come first: they are the smallest files."""
    with naming("mask"):
        masks = await _each(DECODERS.decode_mask, files.masks, limits, executor)
    decode = partial(DECODERS.decode, keep_alpha=True, shrink=not masks)
    images = await _each(decode, files.images, limits, executor)
    with naming("references"):
        references = await _each(DECODERS.decode, files.references, limits, executor)
    return {
        "images": [picture.pixels for picture in images],
        "references": _nested([picture.pixels for picture in references], files.per_image),
        "mask": masks,
        "original_sizes": [picture.sent_size for picture in images],
    }


def _nested(references: list[Pixels], counts: list[int] | None) -> list[Any]:
    """Return the references as EditRequest takes them: for all images, or a list for each."""
    left = iter(references)
    return references if counts is None else [list(islice(left, count)) for count in counts]


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
    request: Request, limits: LimitSettings, executor: Executor | None, fields: type[EditFields]
) -> AbstractAsyncContextManager[tuple[Values, PictureFiles]]:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedMediaType(f"A body with Content-Encoding: {encoding[:80]} is not read; send it uncompressed")
    media_type = parse_options_header(request.headers.get("content-type"))[0].decode("latin-1")
    if media_type == multipart.MEDIA_TYPE:
        return multipart.opened(request, limits, fields)
    if media_type == json_body.MEDIA_TYPE:
        return json_body.opened(request, limits, executor, fields)
    found = media_type[:80] or "nothing"
    raise UnsupportedMediaType(f"Content-Type must be {multipart.MEDIA_TYPE} or {json_body.MEDIA_TYPE}, not {found}")
