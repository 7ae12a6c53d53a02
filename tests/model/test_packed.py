"""The packed forward against diffusers' forward of each row alone."""

import copy
import itertools
import random

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from serve_app.models.packed import Layout, RowShape, VarlenAttention, attend_by_runs, pack, step_cost
from tests.random_model import build_random_model

CPU = torch.device("cpu")


def varlen_on_cpu(query, key, value, starts_q, starts_k, longest_q, longest_k):
    """Return what varlen_attn returns, on a CPU."""
    assert torch.equal(starts_q, starts_k)
    assert longest_q == longest_k == (starts_q[1:] - starts_q[:-1]).max()
    assert starts_q.dtype == torch.int32
    rows = []
    for start, end in itertools.pairwise(starts_q.tolist()):
        q, k, v = (each[start:end].transpose(0, 1) for each in (query, key, value))
        rows.append(scaled_dot_product_attention(q, k, v).transpose(0, 1))
    return torch.cat(rows)


@pytest.fixture(scope="module", params=[False, True], ids=["", "zero_cond_t"])
def stock(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = QwenImageTransformer2DModel(
            num_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24,
            axes_dims_rope=(4, 6, 6), zero_cond_t=request.param,
        ).eval()  # fmt: skip
        for weights in model.parameters():
            torch.nn.init.normal_(weights, std=0.2)
    return model


@pytest.fixture(params=[attend_by_runs, VarlenAttention(varlen_on_cpu)], ids=["by runs", "varlen"])
def packed(stock, request):
    model = copy.deepcopy(stock)
    pack(model, request.param)
    return model


def mix(seed: int) -> list[RowShape]:
    """Return rows of random sizes, references and texts, some of them alike."""
    draw = random.Random(seed)

    def grid() -> tuple[int, int]:
        return draw.randint(1, 9), draw.randint(1, 9)

    rows = [
        RowShape(grid(), tuple(grid() for _ in range(draw.randint(0, 3))), draw.randint(1, 40))
        for _ in range(draw.randint(1, 5))
    ]
    return sorted([*rows, *draw.choices(rows, k=draw.randint(0, 3))], key=lambda row: row.tokens)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(12))
def test_a_packed_row_is_what_diffusers_makes_of_it_alone(stock, packed, seed):
    rows, draw = mix(seed), torch.Generator().manual_seed(seed)
    images = [torch.randn(row.image_tokens, 64, generator=draw) for row in rows]
    texts = [torch.randn(row.text_tokens, 24, generator=draw) for row in rows]
    times = torch.rand(len(rows), generator=draw)
    layout = Layout(rows, packed, CPU)
    velocities = layout.output.split(packed(torch.cat(images), torch.cat(texts), times, layout))
    for index, (row, velocity) in enumerate(zip(rows, velocities, strict=True)):
        alone = stock(
            hidden_states=images[index][None],
            encoder_hidden_states=texts[index][None],
            timestep=times[index : index + 1],
            img_shapes=[[(1, *grid) for grid in (row.output, *row.references)]],
        ).sample[0, : row.output_tokens]
        torch.testing.assert_close(velocity, alone, rtol=1e-4, atol=1e-4)


def test_the_operations_of_a_forward_are_known_in_advance():
    pipeline = build_random_model()
    rows = [RowShape((16, 16), ((16, 16),), 20), RowShape((12, 20), ((12, 20),), 9)]
    layout = Layout(rows, pipeline.transformer, CPU)
    image, text = torch.zeros(layout.image.tokens, 64), torch.zeros(layout.text.tokens, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pipeline.transformer(image, text, torch.zeros(2), layout)
    counts = counter.get_flop_counts()["Global"]
    # Beside the blocks: what is per row or at either end.
    cost, tokens = pipeline.step_cost, [row.image_tokens + row.text_tokens for row in rows]
    expected = sum(cost.per_token * each + cost.per_pair * each**2 for each in tokens)
    assert sum(counts.values()) == pytest.approx(expected, rel=0.05)
    attention = sum(count for name, count in counts.items() if "scaled_dot" in str(name) or "bmm" in str(name))
    assert attention == sum(cost.per_pair * each**2 for each in tokens)


def test_the_published_models_operations_are_those_that_were_counted():
    # By FlopCounterMode on diffusers' forward: docs/design/performance.md.
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel()
    cost = step_cost(transformer)
    assert cost.per_token == pytest.approx(13.59e9, rel=0.001)
    assert cost.per_pair == 737_280


def test_equal_rows_share_an_attention_call(stock):
    one, other = RowShape((2, 3), ((2, 3),), 5), RowShape((3, 2), ((1, 6),), 5)
    runs = Layout([one, one, other, RowShape((2, 3), ((2, 3),), 6)], stock, CPU).runs
    assert runs == [(3, 17), (1, 18)]


def test_an_attention_backend_reaches_every_block(packed):
    calls = []

    def recorded(*arguments):
        calls.append(arguments[-1])
        return attend_by_runs(*arguments)

    for block in packed.transformer_blocks:
        block.attend = recorded
    packed.set_attention_backend("_native_math")
    row = RowShape((2, 2), (), 3)
    packed(torch.zeros(4, 64), torch.zeros(3, 24), torch.zeros(1), Layout([row], packed, CPU))
    assert calls == [AttentionBackendName._NATIVE_MATH] * 3
    packed.reset_attention_backend()


@torch.no_grad()
@pytest.mark.parametrize(
    "attend",
    [attend_by_runs, VarlenAttention(torch.compiler.disable(varlen_on_cpu))],
    ids=["by runs", "varlen"],
)
def test_blocks_are_compiled_once_for_rows_of_any_sizes(stock, attend):
    packed = copy.deepcopy(stock)
    pack(packed, attend)
    packed.compile_repeated_blocks(backend="eager", dynamic=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = []
    for seed in range(12):
        rows = mix(seed)
        layout = Layout(rows, packed, CPU)
        image, text = (torch.zeros(stream.tokens, width) for stream, width in ((layout.image, 64), (layout.text, 24)))
        if len(layout.runs) > 1:
            packed(image, text, torch.zeros(len(rows)), layout)
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(graphs) > 6
    # The second may differ: sizes that happened to be equal in the first were taken for the same.
    assert graphs[-1] == graphs[1], graphs
