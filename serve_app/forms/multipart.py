"""A multipart body. Each part is checked once its headers are read, so that a bad part is never stored."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve_app.errors import InvalidInput
from serve_app.forms.fields import EditFields
from serve_app.forms.names import PICTURE_FIELDS, SYNONYMS, check_name, count
from serve_app.forms.upload import PictureFiles, Values, file_too_large, text_too_large, within_limit
from serve_app.forms.values import from_text
from serve_app.settings import LimitSettings

MEDIA_TYPE = "multipart/form-data"


@asynccontextmanager
async def opened(
    request: Request, limits: LimitSettings, fields: type[EditFields]
) -> AsyncIterator[tuple[Values, PictureFiles]]:
    """Yield the values and the pictures of the body, whose files are closed on the way out."""
    if not parse_options_header(request.headers.get("content-type"))[1].get(b"boundary"):
        raise InvalidInput("The Content-Type header has no boundary: let your HTTP client set this header itself")
    files: list[UploadFile] = []
    values: Values = {}
    try:
        items = await _read(request, limits, fields)
        files += (value for _, value in items if not isinstance(value, str))
        for name, text in _given([(name, value) for name, value in items if isinstance(value, str)]):
            values.setdefault(SYNONYMS.get(name, name), []).append(from_text(name, text))
        pictures = PictureFiles()
        for name, file in items:
            if isinstance(file, UploadFile) and _is_given(SYNONYMS.get(name, name), file):
                pictures.add(SYNONYMS.get(name, name), partial(_contents, file))
        yield values, pictures
    finally:
        for file in files:
            file.file.close()  # not UploadFile.close(): an await here would not run once the request is cancelled


def _given(texts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the texts without those of fields that were left empty, as forms of browsers and PHP send them.

    A prompt is required, so an empty one stays and is refused.
    """
    empty = {name for name, text in texts if not text and SYNONYMS.get(name, name) != "prompt"}
    # go-openai writes these three fields into every form, and Go has no number that is empty.
    if empty & {"size", "response_format"}:
        empty |= {name for name, text in texts if (name, text) == ("n", "0")}
    return [(name, text) for name, text in texts if name not in empty]


def _is_given(field: str, file: UploadFile) -> bool:
    """Return whether a file was chosen: browsers send one without a name and without bytes where none was.

    Other clients give an empty mask a name. An empty picture that has a name is refused.
    """
    return bool(file.size or (file.filename and field != "mask"))


def _contents(file: UploadFile) -> bytes:
    file.file.seek(0)
    return file.file.read()


async def _read(
    request: Request, limits: LimitSettings, fields: type[EditFields]
) -> list[tuple[str, str | UploadFile]]:
    parser = _Parser(request.headers, within_limit(request, limits), limits, fields)
    try:
        return (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise InvalidInput(f"The multipart body cannot be read: {error.message}") from None


class _Parser(MultiPartParser):
    """Starlette's parser, which spools files to disk, with our limits and rules applied while the body arrives.

    Errors of these methods pass through `parse`, which closes the files first.
    """

    def __init__(
        self,
        headers: Headers,
        stream: AsyncGenerator[bytes, None],
        limits: LimitSettings,
        fields: type[EditFields],
    ) -> None:
        # `count` limits the number of parts by name.
        super().__init__(headers, self._whole(stream), max_files=float("inf"), max_fields=float("inf"))
        self.max_part_size = limits.max_field_bytes
        self._limits = limits
        self._fields = fields
        self._seen: Counter[str] = Counter()
        self._part_bytes = 0
        self._complete = False

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        # python-multipart 0.0.34 accepts a truncated body: the form would miss the part that was cut off.
        if not self._complete:
            raise InvalidInput("The multipart body ends before its closing boundary: the upload was cut off")

    def on_headers_finished(self) -> None:
        # The charset of the Content-Type is ignored: field names are ASCII, and codecs such as `undefined` raise.
        self._charset = "utf-8"
        super().on_headers_finished()
        part = self._current_part
        name, is_file = part.field_name, part.file is not None
        check_name(name, self._fields)
        if name in PICTURE_FIELDS and not is_file and not _is_mask(name):
            raise _not_a_file(name)
        if name not in PICTURE_FIELDS and is_file:
            raise InvalidInput(f"{name} must be text, not a file", param=name)
        count(name, self._seen, self._limits)
        self._part_bytes = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part_bytes += end - start
        part = self._current_part
        if self._part_bytes and part.file is None and _is_mask(part.field_name):
            # An empty text is no mask, so a text is refused at its first byte.
            raise _not_a_file(part.field_name)
        if part.file is None and self._part_bytes > self._limits.max_field_bytes:
            raise text_too_large(part.field_name, self._limits)
        if part.file is not None and self._part_bytes > self._limits.max_file_bytes:
            index = self._seen[SYNONYMS.get(part.field_name, part.field_name)] - 1
            raise file_too_large(part.field_name, index, self._limits)
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        part = self._current_part
        if part.file is None:
            # Starlette falls back to Latin-1, which turns other encodings into a wrong prompt.
            try:
                part.data.decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidInput(f"{part.field_name} is not UTF-8 text", param=part.field_name) from None
            self._charset = "utf-8"
        super().on_part_end()

    def on_end(self) -> None:
        self._complete = True


def _is_mask(name: str) -> bool:
    return SYNONYMS.get(name, name) == "mask"


def _not_a_file(name: str) -> InvalidInput:
    return InvalidInput(f"{name} must be a file, not text; with curl: -F '{name}=@photo.png'", param=name)
