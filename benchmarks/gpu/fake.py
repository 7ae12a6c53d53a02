"""A CUDA device without a GPU: it knows its tensors' shapes, not their values, and counts what is asked of it.

Tensors on the CPU are real. What is "on cuda" is a FakeTensor of PyTorch, so that the published model takes no memory,
and an operation between both raises FakeTensorDeviceMismatchError, as a GPU would.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

CUDA = torch.device("cuda", 0)
_CPU = torch.device("cpu")

aten = torch.ops.aten
# Neither a view nor work: memory is reserved, or a tensor gets another shape.
_FREE = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view)
_COPIES = (aten._to_copy, aten.copy_)
# They leave a tensor without known values.
_RANDOM_OR_EMPTY = (*_FREE[:5], aten.rand, aten.randn, aten.normal_, aten.uniform_)
# Whole numbers up to so many are known: positions and masks, from which programs read shapes.
_KNOWN_ELEMENTS = 1 << 20


@dataclass
class Counts:
    """What was asked of the device.

    `operations`: how often each operation but views ran, about one launch of a kernel each; attention is one. `flop`:
    of products, convolutions and attention. `waits`: the functions that waited until the device had done all of its
    work, and how often. `uploads`: those that copied from the CPU. `late_uploads`: those of them that came after a
    product, a convolution or attention: a copy from ordinary memory waits for what is queued before it. `peak_bytes`:
    the most that tensors took at once, of those made since the counting began; not what kernels take for themselves.
    """

    operations: Counter[str] = field(default_factory=Counter)
    flop: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    late_uploads: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0

    @property
    def launches(self) -> int:
        return self.operations.total()


class FakeCuda:
    """A device to build models on and to run them on, inside `counting`."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._counts = Counts()

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Be the CUDA device of this thread, and count. Tensors of one FakeCuda work in all of its blocks."""
        self._counts = counts = Counts()
        with (
            mock.patch.object(torch.cuda, "synchronize", self._synchronize),
            mock.patch.object(FakeTensor, "tolist", lambda tensor: self._read_all(tensor)),
            self._fake,
            _Operations(counts),
            _Functions(counts),
        ):
            yield counts

    def _synchronize(self, device: object = None) -> None:
        self._counts.waits[_caller()] += 1

    def _read_all(self, tensor: torch.Tensor) -> Any:
        """Stand in for FakeTensor's `tolist`, which reads one element after another (torch 2.15)."""
        self._counts.waits[_caller()] += 1
        values = _values(tensor)
        if values is None:
            raise DataDependentOutputException(aten._local_scalar_dense.default)
        with unset_fake_temporarily():
            return values.tolist()

    def varlen_attn(
        self, query: Any, key: Any, value: Any, starts_q: Any, starts_k: Any, longest_q: int, longest_k: int
    ) -> torch.Tensor:
        """Stand in for PyTorch's `varlen_attn`, which asks the driver which kernel to take: one operation."""
        _, heads, width = query.shape
        pairs = sum(query * key for query, key in zip(_lengths(starts_q), _lengths(starts_k), strict=True))
        self._counts.operations["varlen_attn"] += 1
        self._counts.flop += 4 * heads * width * pairs
        return torch.empty_like(query)

    def count(self, work: Callable[[], object]) -> Counts:
        """Return the counts of one call."""
        with self.counting() as counts:
            work()
        return counts


def _lengths(starts: torch.Tensor) -> list[int]:
    known = _values(starts)
    assert known is not None
    lengths: list[int] = known.diff().tolist()
    return lengths


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operations between CPU tensors as they are, and counts all others."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts
        self._held: set[int] = set()
        self._held_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        on_cuda = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        target = kwargs.get("device")
        to_cuda = target is not None and torch.device(target).type == "cuda"
        if not on_cuda and not to_cuda:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if on_cuda and target is not None and not to_cuda:
            return self._download(func, args, kwargs)
        if on_cuda and func is aten._local_scalar_dense.default:
            return self._read(func, on_cuda[0])
        known = _known_result(func, args, kwargs, on_cuda)
        try:
            result = func(*args, **kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException):
            if known is None:
                raise
            self._counts.waits[_caller()] += 1
            result = tree_map_only(torch.Tensor, _upload, known)
        self._count(func, tensors, args, kwargs, result)
        self._hold(result, on_cuda)
        if known is not None:
            _remember(result, known)
        elif func._schema.is_mutable:
            _remember(args[0], None)
        return result

    def _hold(self, result: Any, inputs: Sequence[torch.Tensor]) -> None:
        """Count the bytes of new storages until they are freed."""
        known = self._held | {tensor.untyped_storage()._cdata for tensor in inputs}
        for tensor in tree_flatten(result)[0]:
            if not isinstance(tensor, FakeTensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self._held.add(storage._cdata)
                self._held_bytes += storage.nbytes()
                weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())
        self._counts.peak_bytes = max(self._counts.peak_bytes, self._held_bytes)

    def _release(self, storage: int, size: int) -> None:
        self._held.remove(storage)
        self._held_bytes -= size

    def _download(self, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """Return the values on the CPU, zeros where they are not known."""
        self._counts.waits[_caller()] += 1
        source = args[0]
        values = _values(source)
        with unset_fake_temporarily():
            if values is None:
                values = torch.zeros(source.shape, dtype=source.dtype)
            result: torch.Tensor = func(values, *args[1:], **kwargs)
        return result

    def _read(self, func: Any, scalar: torch.Tensor) -> Any:
        """Return the value of one element. What is not known, but true or false, is true."""
        self._counts.waits[_caller()] += 1
        values = _values(scalar)
        if values is not None:
            with unset_fake_temporarily():
                return values.item()
        if scalar.dtype == torch.bool:
            return True
        raise DataDependentOutputException(func)

    def _count(self, func: Any, tensors: Sequence[Any], args: Any, kwargs: Any, result: Any) -> None:
        packet = func.overloadpacket
        # A single number from the CPU travels with the launch.
        if any(packet in _COPIES or tensor.dim() for tensor in tensors if not isinstance(tensor, FakeTensor)):
            self._counts.uploads[_caller()] += 1
            if self._counts.flop:
                self._counts.late_uploads[_caller()] += 1
            if packet in _COPIES:
                return
        if func.is_view or func.namespace == "prim" or packet in _FREE:
            return
        self._counts.operations[str(packet)] += 1
        if packet in flop_registry:
            self._counts.flop += flop_registry[packet](*args, **kwargs, out_val=result)


class _Functions(TorchFunctionMode):
    """Counts a call of attention as one operation: which kernels it really takes, the driver decides.

    And reads tensors within a list for `torch.tensor`, which would ask the driver itself (torch 2.15).
    """

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        if func is torch.tensor:
            args = tree_map_only(FakeTensor, lambda scalar: scalar.item(), args)
        return func(*args, **(kwargs or {}))

    def _attend(self, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> torch.Tensor:
        self._counts.operations["scaled_dot_product_attention"] += 1
        self._counts.flop += sdpa_flop_count(query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
        # As the kernels lay it out: heads within tokens.
        rows, heads, tokens, _ = query.shape
        attended: torch.Tensor = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)
        return attended


# --- values that are known ----------------------------------------------------------------------------------------


def _values(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the values of a fake tensor as a real one on the CPU, None if they are not known."""
    return getattr(tensor, "_known_values", None) if isinstance(tensor, FakeTensor) else tensor


def _remember(result: Any, known: Any) -> None:
    """Keep the known values, or that there are none, with the fake tensors of a result."""
    tensors = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, FakeTensor)]
    values: list[Any] = [leaf for leaf in tree_flatten(known)[0] if isinstance(leaf, torch.Tensor)]
    if known is None:
        values = [None] * len(tensors)
    for tensor, value in zip(tensors, values, strict=True):
        tensor._known_values = value  # type: ignore[attr-defined]


def _known_result(func: Any, args: Any, kwargs: Any, on_cuda: Sequence[Any]) -> Any:
    """Run the operation on the CPU, if it gives whole numbers and all that it needs is known. None otherwise."""
    packet = func.overloadpacket
    if packet in _RANDOM_OR_EMPTY or any(_values(tensor) is None for tensor in on_cuda):
        return None
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    if any(leaf.is_floating_point() or leaf.is_complex() or leaf.numel() > _KNOWN_ELEMENTS for leaf in leaves):
        return None
    args, kwargs = tree_map_only(torch.Tensor, _values, (args, kwargs))
    if "device" in kwargs:
        kwargs["device"] = _CPU
    with unset_fake_temporarily():
        return func(*args, **kwargs)


def _upload(values: torch.Tensor) -> torch.Tensor:
    return torch.empty(values.shape, dtype=values.dtype, device=CUDA)


# --- places -------------------------------------------------------------------------------------------------------

_NOT_CALLERS = ("torch", "contextlib")


def _caller() -> str:
    """Return the innermost running function that is neither PyTorch's nor this device's, as module.function."""
    frame = sys._getframe(1)
    while frame.f_back and (
        frame.f_globals["__name__"] == __name__ or frame.f_globals["__name__"].split(".")[0] in _NOT_CALLERS
    ):
        frame = frame.f_back
    function = frame.f_code.co_qualname.split(".<locals>")[0].rsplit(".", 1)[-1]
    return f"{frame.f_globals['__name__'].rsplit('.', 1)[-1]}.{function}"
