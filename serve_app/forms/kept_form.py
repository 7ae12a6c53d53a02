"""Forms as bytes, for a later process, which may run a later version of this code: the fields and files as they came.

The bytes: the length of the head in 4 bytes, big-endian; the head, as JSON; the files, one after another.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice

import orjson

from serve_app.forms.upload import PictureFiles, ReadPicture, Values

_VERSION = 1
_LENGTH_BYTES = 4


def dump(kind: str, values: Values, files: PictureFiles) -> bytes:
    """Return the form as bytes. Reads every file. `kind`: what it asks for, an edit or something else."""
    pictures = [read() for read in (*files.images, *files.references, *files.masks)]
    head = orjson.dumps(
        {
            "version": _VERSION,
            "kind": kind,
            "values": values,
            "images": len(files.images),
            "references": len(files.references),
            "per_image": files.per_image,
            "sizes": [len(data) for data in pictures],
        }
    )
    return b"".join((len(head).to_bytes(_LENGTH_BYTES), head, *pictures))


def load(data: bytes) -> tuple[str, Values, PictureFiles]:
    """Return the kind, the fields and the files of `dump`. Raises ValueError for a form of another version."""
    length = int.from_bytes(data[:_LENGTH_BYTES])
    try:
        head = orjson.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except orjson.JSONDecodeError:
        head = None
    if not isinstance(head, dict) or head.get("version") != _VERSION:
        raise ValueError("a form of another version")
    reads = _reads(data, _LENGTH_BYTES + length, head["sizes"])
    images, references = list(islice(reads, head["images"])), list(islice(reads, head["references"]))
    return head["kind"], head["values"], PictureFiles(images, references, head["per_image"], masks=list(reads))


def _reads(data: bytes, start: int, sizes: list[int]) -> Iterator[ReadPicture]:
    for size in sizes:
        yield partial(_cut, data, start, start + size)
        start += size


def _cut(data: bytes, start: int, end: int) -> bytes:
    return data[start:end]
