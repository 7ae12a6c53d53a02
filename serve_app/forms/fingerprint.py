"""What an edit asks for, as a short text: the same for a retry, whose bytes differ by their multipart boundary."""

import hashlib
from functools import partial

import orjson

from serve_app.forms.upload import ReadPicture, Values


class Fingerprint:
    """Of the text fields as they were sent, and of the bytes of every picture file, in order.

    `pictures`: to be read in the place of those given; each is hashed by whoever reads it first.
    """

    def __init__(self, values: Values, pictures: list[ReadPicture]) -> None:
        self._values = values
        self._digests: list[bytes | None] = [None] * len(pictures)
        self.pictures: list[ReadPicture] = [partial(self._read, index, read) for index, read in enumerate(pictures)]

    def _read(self, index: int, read: ReadPicture) -> bytes:
        data = read()
        if self._digests[index] is None:
            self._digests[index] = hashlib.sha256(data).digest()
        return data

    def hexdigest(self) -> str:
        """Once every picture has been read."""
        asked = hashlib.sha256(orjson.dumps(self._values, option=orjson.OPT_SORT_KEYS))
        for digest in self._digests:
            assert digest is not None
            asked.update(digest)
        return asked.hexdigest()
