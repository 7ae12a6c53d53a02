"""Prefill and decode of Qwen-Image-2.1 at the published size, on a CUDA device without a GPU."""

import pytest
import torch
from diffusers import QwenImage21Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21Rope

from benchmarks.gpu.fake import CUDA, Counts, FakeCuda
from benchmarks.gpu.model import on_device
from serve_app.engine.scheduler import Shape
from serve_app.images.geometry import Size
from serve_app.models.packed import Grid
from serve_app.models.prefill import (
    DecodeAtOnce,
    DecodeLayout,
    DecodeRow,
    Prefix,
    decode,
    pack,
    prefill,
    step_cost,
)

PublishedTransformer = tuple[FakeCuda, QwenImage21Transformer2DModel]

SIDE = 64
"""Tokens along a side of 1024 pixels."""
_BLOCKS = 32
GRIDS: list[Grid] = [(64, 64), (48, 84), (84, 48), (32, 32)]


@pytest.fixture(scope="module")
def published() -> PublishedTransformer:
    """Return the device and the transformer of 7 billion parameters."""
    cuda = FakeCuda()
    with cuda.counting():
        with on_device(CUDA, torch.bfloat16):
            transformer = QwenImage21Transformer2DModel().eval().requires_grad_(False)
        # A table of the host, as in a loaded checkpoint.
        transformer.pos_embed = QwenImage21Rope(10000, [16, 56, 56])
    pack(transformer, DecodeAtOnce(cuda.varlen_attn))
    return cuda, transformer


def new_prefix(text: int, grid: Grid) -> Prefix:
    def empty(tokens: int, width: int) -> torch.Tensor:
        return torch.empty(tokens, width, device=CUDA, dtype=torch.bfloat16)

    return Prefix((10, grid, text), (empty(10, 4096), empty(grid[0] * grid[1], 64), empty(text, 4096)), _BLOCKS)


def prefixes_of(published: PublishedTransformer, *texts: int) -> tuple[list[Prefix], Counts]:
    """Return the prefixes of edits with texts of these lengths, and what computing them asked of the device."""
    cuda, transformer = published
    with cuda.counting() as counts:
        prefixes = [new_prefix(text, grid) for text, grid in zip(texts, GRIDS, strict=False)]
        prefill(transformer, prefixes)
    return prefixes, counts


def decoded(published: PublishedTransformer, prefixes: list[Prefix], grids: list[Grid]) -> Counts:
    cuda, transformer = published
    with cuda.counting():
        rows = [DecodeRow(grid, prefix.all_parts) for grid, prefix in zip(grids, prefixes, strict=True)]
        layout = DecodeLayout(rows, transformer, CUDA)
        latents = torch.empty(layout.output.tokens, 64, device=CUDA, dtype=torch.bfloat16)
        times = torch.empty(len(rows), device=CUDA, dtype=torch.bfloat16)
    return cuda.count(lambda: decode(transformer, latents, times, layout, prefixes))


def test_a_step_of_one_megapixel_with_one_reference_is_75_tflop(published):
    prefixes, _ = prefixes_of(published, 290)
    counts = decoded(published, prefixes, [(SIDE, SIDE)])
    assert counts.flop == pytest.approx(75e12, rel=0.02)
    shape = Shape(Size(1024, 1024), (Size(1024, 1024),))
    assert step_cost(published[1]).of_row(shape, 16) == pytest.approx(counts.flop, rel=0.02)


def test_a_reference_of_one_megapixel_keeps_2_3_gb(published):
    [prefix], _ = prefixes_of(published, 290)
    assert prefix.keys.nbytes + prefix.values.nbytes == pytest.approx(2.3e9, rel=0.02)


def test_rows_of_different_shapes_launch_hardly_more_than_one_and_wait_for_nothing(published):
    prefixes, _ = prefixes_of(published, 290, 30, 400, 77)
    one = decoded(published, prefixes[:1], GRIDS[:1])
    four = decoded(published, prefixes, GRIDS)
    assert one.operations["scaled_dot_product_attention"] == four.operations["varlen_attn"] == 32
    assert four.launches <= 1.15 * one.launches, four.operations - one.operations
    assert not four.waits
    assert not four.late_uploads


def test_prefill_waits_for_nothing_and_costs_less_than_two_steps(published):
    _, counts = prefixes_of(published, 290)
    assert not counts.waits
    assert counts.flop < 2 * 75e12
