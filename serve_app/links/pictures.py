"""Pictures that are answered as links, for `response_format=url`, and the links themselves.

    {base}/v1/images/{id}/{place}.{format}?expires={seconds since the epoch}&signature={hexadecimal digits}

The id is that of a record in the store: one of an answer, made here, or a job. The pictures are blobs of its folder, by
their places. Where the store of results has signed links of its own, those are answered instead.
"""

import asyncio
import time
import uuid
from dataclasses import dataclass

import orjson

from serve_app.errors import NotFound
from serve_app.images.encoding import OutputFormat
from serve_app.links.signature import is_signed, read_secret, sign
from serve_app.responses.schemas import LinkedOutputBody, OutputBody
from serve_app.settings import ResultSettings
from serve_app.store.records import Bounds, Change
from serve_app.store.store import Store
from serve_app.store.sweeper import sweep

_GROUP = "links"
_JOBS = "jobs"
_MAX_RECORDS = 100_000


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture that a link has opened."""

    data: bytes
    media_type: str


class LinkedPictures:
    """The pictures behind links. `settings`: how long, and how many bytes."""

    def __init__(self, store: Store, settings: ResultSettings) -> None:
        self._store = store
        self._ttl_s = settings.link_ttl_s
        self._bounds = Bounds(_MAX_RECORDS, 0, settings.max_link_bytes)

    async def publish(
        self,
        base_url: str,
        caller: str | None,
        output_format: OutputFormat,
        pictures: list[tuple[OutputBody, bytes]],
    ) -> list[LinkedOutputBody]:
        """Store the files of one answer, and return its outputs with links. Raises StoreUnavailable.

        `base_url`: the address of this server, without a slash at its end. `caller`: the name of the key that they
        belong to. If there are too many bytes behind links, the oldest answers make room.
        """
        id = uuid.uuid4().hex
        folder, value = f"{_GROUP}-{id}", orjson.dumps({"caller": caller})
        size = sum(len(data) for _, data in pictures)
        # Before the blobs, so that they are deleted with it even if this process dies now.
        change = Change(id, folder, 0, is_open=False, value=value, keep_s=self._ttl_s, size=size)
        await self._store.records.put(_GROUP, [change], self._bounds)
        blobs = [(output, f"{folder}/{place_of(output)}.{output_format}") for output, _ in pictures]
        puts = (
            self._store.blobs.put(blob, data, _media_type(output_format))
            for (_, blob), (_, data) in zip(blobs, pictures, strict=True)
        )
        await asyncio.gather(*puts)
        return await self.link(base_url, id, blobs)

    async def link(
        self, base_url: str, id: str, pictures: list[tuple[OutputBody, str]], *, at_most_s: float | None = None
    ) -> list[LinkedOutputBody]:
        """Return outputs with the links to their blobs. `at_most_s`: how long those are there. Raises StoreUnavailable.

        `id`: of the record in whose folder the blobs lie.
        """
        ttl_s = self._ttl_s if at_most_s is None else min(self._ttl_s, at_most_s)
        expires_at = int(time.time() + ttl_s)
        linked: list[LinkedOutputBody] = []
        secret = b""
        for output, blob in pictures:
            url = await self._store.blobs.sign(blob, ttl_s)
            if url is None:
                secret = secret or await read_secret(self._store)
                name = blob.rpartition("/")[2]
                signature = sign(secret, _signed_text(id, name, expires_at))
                url = f"{base_url}/v1/images/{id}/{name}?expires={expires_at}&signature={signature}"
            linked.append(
                {
                    "url": url,
                    "expires_at": expires_at,
                    "size": output["size"],
                    "seed": output["seed"],
                    "input_index": output["input_index"],
                    "variant_index": output["variant_index"],
                }
            )
        return linked

    async def sweep(self) -> None:
        """Delete the pictures whose time is over. Raises StoreUnavailable."""
        await sweep(self._store, _GROUP)

    async def open(self, id: str, name: str, expires: str, signature: str, caller: str | None) -> PictureFile:
        """Return the picture of a link. `caller`: the name of the key that was sent with it; None: without a key.

        Raises NotFound for a link that this server did not make, whose time is over, or that belongs to another caller;
        StoreUnavailable.
        """
        if not expires.isdecimal() or int(expires[:18]) <= time.time():
            raise _not_found()
        if not is_signed(await read_secret(self._store), _signed_text(id, name, int(expires[:18])), signature):
            raise _not_found()
        for group in (_GROUP, _JOBS):
            record = await self._store.records.get(group, id)
            if record is not None and caller in (None, orjson.loads(record.value)["caller"]):
                try:
                    data = await self._store.blobs.get(f"{record.folder}/{name}")
                except KeyError:
                    break
                return PictureFile(data, _media_type(name.rpartition(".")[2]))
        raise _not_found()


def place_of(output: OutputBody) -> str:
    return f"{output['input_index']}-{output['variant_index']}"


def _signed_text(id: str, name: str, expires_at: int) -> str:
    return f"{id}/{name}?{expires_at}"


def _media_type(output_format: str) -> str:
    return f"image/{output_format}"


def _not_found() -> NotFound:
    return NotFound("There is no such picture; a link is valid for a while, until the `expires_at` beside it")
