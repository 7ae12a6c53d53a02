"""Digests of edits. A retry has the digest of its first try, though its bytes have another multipart boundary."""

import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import islice

import orjson

from serve_app.forms.upload import PictureFiles, ReadPicture, Values


class Fingerprint:
    """Digest of the values of the text fields and of the bytes of every picture file, in order.

    Read `pictures` in place of those given: the first read of each picture hashes it.
    """

    def __init__(self, values: Values, files: PictureFiles) -> None:
        self._edit = (values, len(files.images), files.per_image, len(files.masks))
        reads = [*files.images, *files.references, *files.masks]
        self._digests: list[bytes | None] = [None] * len(reads)
        hashed: Iterator[ReadPicture] = (partial(self._read, index, read) for index, read in enumerate(reads))
        images = list(islice(hashed, len(files.images)))
        references = list(islice(hashed, len(files.references)))
        self.pictures = PictureFiles(images, references, files.per_image, masks=list(hashed))

    def _read(self, index: int, read: ReadPicture) -> bytes:
        data = read()
        if self._digests[index] is None:
            self._digests[index] = hashlib.sha256(data).digest()
        return data

    def hexdigest(self) -> str:
        """Return the digest. Every picture must have been read."""
        edit = hashlib.sha256(orjson.dumps(self._edit, option=orjson.OPT_SORT_KEYS))
        for digest in self._digests:
            assert digest is not None
            edit.update(digest)
        return edit.hexdigest()
