"""The store of one application: its records and its blobs, in memory by default."""

from dataclasses import dataclass, field
from typing import Protocol

from serve_app.store.blobs import Blobs, MemoryBlobs
from serve_app.store.memory_records import MemoryRecords
from serve_app.store.records import Records


class Store(Protocol):
    """Where jobs, answers and their pictures are."""

    @property
    def records(self) -> Records: ...

    @property
    def blobs(self) -> Blobs: ...


@dataclass(frozen=True, slots=True)
class OpenStore:
    """The Store of two parts. In the memory of this process by default."""

    records: Records = field(default_factory=MemoryRecords)
    blobs: Blobs = field(default_factory=MemoryBlobs)
