"""What errors of the device become, and the environment of its allocator."""

import os
import subprocess
import sys
import weakref

import pytest
import torch

from serve_app.errors import DeviceLost, OutOfMemory
from serve_app.models.device import translated_errors

OWN_VALUE = "max_split_size_mb:512"


def works() -> None:
    """Return, as torch.cuda.synchronize does on a device that works."""


def is_lost() -> None:
    """Raise, as torch.cuda.synchronize does after an error that stays."""
    raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize("synchronize", [works, is_lost])
@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=str,
)
def test_running_out_of_memory_is_no_loss_of_the_device(raised, synchronize):
    with pytest.raises(OutOfMemory) as caught, translated_errors(synchronize):
        raise raised
    assert caught.value.message.startswith("Image generation failed: ")
    assert "GiB" not in caught.value.message


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: invalid configuration argument",
        "CUDA driver error: invalid argument",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
        "GET was unable to find an engine: CUDNN_STATUS_NOT_SUPPORTED",
    ],
)
def test_a_device_is_lost_only_if_it_says_so_itself(message):
    error = RuntimeError(message)
    with pytest.raises(DeviceLost) as lost, translated_errors(is_lost):
        raise error
    assert lost.value.__cause__ is error
    with pytest.raises(RuntimeError) as kept, translated_errors(works):
        raise error
    assert kept.value is error


def test_an_error_that_is_not_of_the_device_does_not_wait_for_it():
    def synchronize() -> None:
        raise AssertionError("asked")

    with pytest.raises(RuntimeError, match="shapes"), translated_errors(synchronize):
        raise RuntimeError("shapes do not match")


def test_what_ran_out_of_memory_is_let_go_while_its_error_is_kept():
    made = []

    def stage():
        tensor = torch.zeros(10)
        made.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(OutOfMemory) as caught, translated_errors():
        stage()
    assert caught.value.__cause__ is not None
    assert made[0]() is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": OWN_VALUE}, OWN_VALUE),
        ({"PYTORCH_CUDA_ALLOC_CONF": OWN_VALUE}, OWN_VALUE),
    ],
    ids=str,
)
def test_segments_grow_unless_the_environment_sets_the_allocator(environment, expected):
    """PyTorch says what it has read. It reads once, so each case has its own process."""
    script = (
        "import torch; from serve_app.models.device import grow_segments; grow_segments(); "
        "print(torch._C._accelerator_getAllocatorSettings())"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTORCH_")}
    run = subprocess.run(
        [sys.executable, "-c", script], env={**inherited, **environment}, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == expected
