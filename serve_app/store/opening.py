"""The store outside of Ray that the settings name, and whether it can be used."""

import asyncio
import os

from serve_app.errors import StoreUnavailable
from serve_app.settings import MEMORY, AppSettings
from serve_app.store.object_blobs import ObjectBlobs
from serve_app.store.redis_records import RedisRecords
from serve_app.store.store import OpenStore, Store


def open_outside(settings: AppSettings) -> Store:
    """Return the store in Redis and in an object store or a directory. Raises ValueError for an unusable address."""
    return OpenStore(_open_records(settings), ObjectBlobs(settings.results.store))


def check_store(settings: AppSettings) -> None:
    """Write and delete a little in both parts of the store. Raises ValueError with the address of what cannot be used.

    For the start of an application: later on, a store that does not answer is waited for.
    """
    if settings.store.url != MEMORY:
        asyncio.run(_check_records(_open_records(settings), settings.store.url))
        asyncio.run(_check_blobs(ObjectBlobs(settings.results.store), settings.results.store))


def _open_records(settings: AppSettings) -> RedisRecords:
    password = os.environ.get(settings.store.password_env)
    return RedisRecords(settings.store.url, password, settings.store.namespace)


async def _check_records(records: RedisRecords, url: str) -> None:
    try:
        await records.check()
    except StoreUnavailable as error:
        raise ValueError(f"store.url: {url} cannot be used: {error.__cause__}") from None
    finally:
        await records.close()


async def _check_blobs(blobs: ObjectBlobs, url: str) -> None:
    folder = f"check-{os.getpid()}"
    try:
        await blobs.put(f"{folder}/probe", b"")
        await blobs.delete_folder(folder)
    except StoreUnavailable as error:
        raise ValueError(f"results.store: {url} cannot be written: {_first_line(error.__cause__)}") from None


def _first_line(error: BaseException | None) -> str:
    # obstore's errors go on for thirty lines.
    return str(error).partition("\n")[0]
