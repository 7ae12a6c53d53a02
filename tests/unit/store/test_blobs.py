"""Blobs: the same promises in memory, in a directory, and in an S3 server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.errors import StoreUnavailable
from serve_app.store.blobs import Blobs, MemoryBlobs
from serve_app.store.object_blobs import ObjectBlobs
from tests.s3_server import BUCKET, running_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with running_s3() as environment:
        yield environment


@pytest.fixture
def s3_environment(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["memory", "file", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    match request.param:
        case "memory":
            return MemoryBlobs()
        case "file":
            return ObjectBlobs(f"file://{tmp_path}/results")
    request.getfixturevalue("s3_environment")
    return ObjectBlobs(f"s3://{BUCKET}/some/prefix")


def test_a_blob_is_what_was_put_last(blobs: Blobs) -> None:
    async def story() -> None:
        data = bytes(range(256)) * 4096
        await blobs.put("folder/a", b"former")
        await blobs.put("folder/a", data)
        await blobs.put("folder/empty", b"")
        assert await blobs.get("folder/a") == data
        assert await blobs.get("folder/empty") == b""
        for name in ("folder/b", "other/a"):
            with pytest.raises(KeyError):
                await blobs.get(name)

    asyncio.run(story())


def test_a_deleted_blob_is_gone_and_may_be_deleted_again(blobs: Blobs) -> None:
    async def story() -> None:
        await blobs.put("folder/a", b"a")
        await blobs.put("folder/b", b"b")
        for _ in range(2):
            await blobs.delete("folder/a")
        with pytest.raises(KeyError):
            await blobs.get("folder/a")
        assert await blobs.get("folder/b") == b"b"

    asyncio.run(story())


def test_a_folder_is_deleted_with_all_its_blobs_and_no_others(blobs: Blobs) -> None:
    async def story() -> None:
        names = [f"folder/{k}" for k in range(60)]
        for name in (*names, "folder-2/a", "fold/a"):
            await blobs.put(name, b"x")
        for _ in range(2):
            await blobs.delete_folder("folder")
        for name in names:
            with pytest.raises(KeyError):
                await blobs.get(name)
        assert [await blobs.get(name) for name in ("folder-2/a", "fold/a")] == [b"x", b"x"]

    asyncio.run(story())


def test_a_directory_is_empty_when_its_folders_are_deleted(tmp_path: Path) -> None:
    async def story() -> None:
        blobs = ObjectBlobs(f"file://{tmp_path}/results")
        await blobs.put("folder/a", b"a")
        await blobs.delete_folder("folder")
        assert list((tmp_path / "results").iterdir()) == []

    asyncio.run(story())


@pytest.mark.usefixtures("s3_environment")
def test_a_bucket_that_is_not_there_is_unavailable() -> None:
    async def story() -> None:
        blobs = ObjectBlobs("s3://another/prefix")
        with pytest.raises(StoreUnavailable):
            await blobs.put("folder/a", b"a")

    asyncio.run(story())


@pytest.mark.parametrize("url", ["ftp://host/path", "s3://", "nonsense"])
def test_an_address_that_cannot_be_opened_is_said(url: str) -> None:
    with pytest.raises(ValueError, match=r"results\.store"):
        ObjectBlobs(url)
