"""The protocol of blobs: bytes by name, in folders; and blobs in the memory of one process."""

from typing import Protocol

BYTES = "application/octet-stream"


class Blobs(Protocol):
    """Blobs in this process or in another one. Every method raises StoreUnavailable.

    A folder is a name without a slash; the name of a blob begins with its folder and a slash.
    """

    async def put(self, name: str, data: bytes, media_type: str = BYTES) -> None:
        """Store a blob in place of the one with that name, if there is one."""

    async def get(self, name: str) -> bytes:
        """Return a blob. Raises KeyError if there is none."""

    async def delete(self, name: str) -> None:
        """Delete a blob, if there is one with that name."""

    async def delete_folder(self, folder: str) -> None:
        """Delete all blobs of a folder."""

    async def sign(self, name: str, ttl_s: float) -> str | None:
        """Return a link that opens the blob for that time, or None if this kind of store has none."""


class MemoryBlobs:
    """Blobs without another process. The records to which they belong bound their number and size."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, bytes]] = {}

    async def put(self, name: str, data: bytes, media_type: str = BYTES) -> None:
        """As Blobs.put."""
        self._folders.setdefault(_folder(name), {})[name] = data

    async def get(self, name: str) -> bytes:
        """As Blobs.get."""
        return self._folders[_folder(name)][name]

    async def delete(self, name: str) -> None:
        """As Blobs.delete."""
        self._folders.get(_folder(name), {}).pop(name, None)

    async def delete_folder(self, folder: str) -> None:
        """As Blobs.delete_folder."""
        self._folders.pop(folder, None)

    async def sign(self, name: str, ttl_s: float) -> str | None:
        """As Blobs.sign."""
        return None

    @property
    def names(self) -> list[str]:
        """The names of all blobs."""
        return [name for blobs in self._folders.values() for name in blobs]


def _folder(name: str) -> str:
    return name.partition("/")[0]
