"""The memory, the disks and the GPU of this machine. torch is imported only to find the GPU."""

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Gpu:
    """The memory and the abilities of a GPU. `capability`: as CUDA counts it, such as (9, 0)."""

    name: str
    free_bytes: int
    total_bytes: int
    has_bfloat16: bool
    capability: tuple[int, int]

    @classmethod
    def found(cls) -> tuple[Self | None, str]:
        """Return the first GPU that PyTorch sees, or None and the warnings of CUDA."""
        import torch

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if not torch.cuda.is_available():
                return None, " ".join(str(warning.message).splitlines()[0] for warning in said)
        free, total = torch.cuda.mem_get_info()
        return cls(
            torch.cuda.get_device_name(),
            free,
            total,
            torch.cuda.is_bf16_supported(including_emulation=False),
            torch.cuda.get_device_capability(),
        ), ""


def available_memory() -> int:
    """Return the bytes that processes may still take: of the machine, or of the container (cgroup v2) if less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available,) = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text()) - _reclaimable()
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit) - used)


def _reclaimable() -> int:
    """Return the bytes of the page cache that the kernel frees first at the container's limit."""
    fields = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    return int(fields["inactive_file"])


@dataclass(frozen=True, slots=True)
class Disk:
    """The room on a disk."""

    free_bytes: int
    used_share: float

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return the disk on which `path` is, or will be."""
        there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        usage = shutil.disk_usage(there)
        return cls(usage.free, 1 - usage.free / usage.total)
