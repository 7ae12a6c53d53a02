"""Blobs in an object store or in a directory: whatever obstore opens."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url

from serve_app.errors import RETRY_AFTER_S, StoreUnavailable
from serve_app.store.blobs import BYTES

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

_RETRIES: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}

logger = logging.getLogger("ray.serve")


class ObjectBlobs:
    """The Blobs behind a URL such as `s3://bucket/prefix` or `file:///srv/edits`.

    Credentials come from the environment, as the provider's own tools read them. Raises ValueError for a URL that
    obstore does not know.
    """

    def __init__(self, url: str) -> None:
        try:
            self._store: ObjectStore = _open(url)
        except (BaseError, ValueError) as error:
            raise ValueError(f"results.store: {url} cannot be opened: {error}") from None

    async def put(self, name: str, data: bytes, media_type: str = BYTES) -> None:
        """As Blobs.put."""
        # A directory keeps no types.
        attributes = None if isinstance(self._store, LocalStore) else {"Content-Type": media_type}
        with _translated():
            await obstore.put_async(self._store, name, data, attributes=attributes)

    async def get(self, name: str) -> bytes:
        """As Blobs.get."""
        with _translated():
            try:
                return bytes(await (await obstore.get_async(self._store, name)).bytes_async())
            except (NotFoundError, FileNotFoundError):
                raise KeyError(name) from None

    async def delete(self, name: str) -> None:
        """As Blobs.delete."""
        with _translated():
            await self._delete([name])

    async def delete_folder(self, folder: str) -> None:
        """As Blobs.delete_folder."""
        with _translated():
            async for found in obstore.list(self._store, f"{folder}/"):
                await self._delete([item["path"] for item in found])

    async def sign(self, name: str, ttl_s: float) -> str | None:
        """As Blobs.sign."""
        if not isinstance(self._store, S3Store | GCSStore | AzureStore):
            return None
        with _translated():
            return await obstore.sign_async(self._store, "GET", name, timedelta(seconds=ttl_s))

    async def _delete(self, names: list[str]) -> None:
        # S3 does not say whether there was one; a directory does.
        for name in names:
            with suppress(NotFoundError, FileNotFoundError):
                await obstore.delete_async(self._store, name)


def _open(url: str) -> "ObjectStore":
    if url.startswith("file:"):
        # Folders go with their last blob.
        return LocalStore.from_url(url, mkdir=True, automatic_cleanup=True)
    # By default, obstore tries for three minutes, longer than a caller waits.
    return from_url(url, retry_config=_RETRIES)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        logger.warning("The store of results fails: %s", str(error).partition("\n")[0])
        raise StoreUnavailable("The store of results does not answer", retry_after_s=RETRY_AFTER_S) from error
