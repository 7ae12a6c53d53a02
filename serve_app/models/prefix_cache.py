"""Prefixes of pictures, kept for later edits of the same pictures; the least recently used are dropped first."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch

from serve_app.engine.stats import PrefixStats
from serve_app.models.prefill import Prefix


@dataclass(frozen=True, slots=True)
class CachedPictures:
    """The complete prefix of some pictures, and the latents of these, end to end (tokens × 64)."""

    prefix: Prefix
    references: torch.Tensor

    @property
    def bytes(self) -> int:
        return self.prefix.nbytes + self.references.nbytes


class PrefixCache:
    """A cache of at most `most_bytes`. Only the engine's thread calls it; any thread may read `stats`.

    What is dropped stays with the samples that use it.
    """

    def __init__(self, most_bytes: int) -> None:
        self.stats = PrefixStats()
        self._most_bytes = most_bytes
        self._entries: OrderedDict[Hashable, CachedPictures] = OrderedDict()

    def get(self, key: Hashable) -> CachedPictures | None:
        """Return what is kept for a key, or None, and count neither."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: Hashable, entry: CachedPictures) -> None:
        """Keep an entry, unless it is larger than the whole cache."""
        if entry.bytes > self._most_bytes:
            return
        self._drop(key)
        self._entries[key] = entry
        self.stats.bytes += entry.bytes
        while self.stats.bytes > self._most_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Drop everything, for work that needs the memory."""
        self._entries.clear()
        self.stats.bytes = 0

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.stats.bytes -= entry.bytes
