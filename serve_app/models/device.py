"""The device: what its errors mean, and how PyTorch allocates its memory."""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from serve_app.errors import DeviceLost, OutOfMemory

# Texts of a RuntimeError that comes from the device. After some of them, such as a launch with a wrong configuration,
# the device works on; after others, such as a failed assertion in a kernel, every call of it fails.
_OF_DEVICE = ("CUDA error", "CUDA driver error", "cuDNN error", "CUDNN_STATUS_", "CUBLAS_STATUS_")
_NO_CPU_MEMORY = "DefaultCPUAllocator"
# Memory that torch's own allocator does not manage runs out with a plain RuntimeError and one of these texts.
_NO_MEMORY = (
    _NO_CPU_MEMORY,
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "STATUS_ALLOC_FAILED",
)


@contextmanager
def translated_errors(synchronize: Callable[[], object] = torch.cuda.synchronize) -> Iterator[None]:
    """Translate torch's errors into those of `serve_app.errors`, so that the engine needs no torch.

    Raises OutOfMemory, or DeviceLost if the device is unusable. An error after which it works on stays as it is, and
    ends only the work that met it. `synchronize`: waits for the device, and raises if it is unusable.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            if any(sign in str(error) for sign in _OF_DEVICE) and not _works(synchronize):
                raise DeviceLost("the GPU failed") from error
            raise
        # The error keeps the stage's frames alive, and they keep the stage's tensors.
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        raise OutOfMemory("out of memory" if _NO_CPU_MEMORY in str(error) else "CUDA out of memory") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory of the device or of the host has run out."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _NO_MEMORY)


def _works(synchronize: Callable[[], object]) -> bool:
    """Ask the device: one that is lost fails every call from now on."""
    try:
        synchronize()
    except RuntimeError:
        return False
    return True


def grow_segments() -> None:
    """Have PyTorch grow the segments of the GPU's memory in place, unless the environment sets its allocator.

    Forwards differ in size, and fixed segments that are too small for the next one stay unused beside it. PyTorch reads
    the variable at the first use of the GPU's memory (2.15), so call this before.
    """
    # PyTorch prefers PYTORCH_CUDA_ALLOC_CONF, its older name, if the environment has that.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
