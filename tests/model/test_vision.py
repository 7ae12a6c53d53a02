"""The merged windows of the vision tower against transformers' own attention."""

import copy
from functools import partial

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from serve_app.models.vision import attend_at_once, attend_by_runs, merge_windows
from tests.model.reading import GRIDS, picture_of, random_text_encoder, read, text_with
from tests.model.test_packed import varlen_on_cpu


@pytest.fixture(scope="module")
def stock():
    return random_text_encoder()


def merged(text_encoder, attend):
    text_encoder = copy.deepcopy(text_encoder)
    merge_windows(text_encoder, attend)
    return text_encoder


@torch.no_grad()
@pytest.mark.parametrize(
    "attend", [attend_by_runs, partial(attend_at_once, varlen_attn=varlen_on_cpu)], ids=["by runs", "at once"]
)
def test_pictures_are_embedded_as_by_transformers_to_the_bit(stock, attend):
    """As a call by transformers, which knows no longest window, and by us."""
    torch.manual_seed(1)
    pictures = [picture_of(grid) for grid in GRIDS]
    patches, grids = (torch.cat(parts) for parts in zip(*pictures, strict=True))
    one, other = (model.model.visual(patches, grid_thw=grids) for model in (stock, merged(stock, attend)))
    assert torch.equal(one.pooler_output, other.pooler_output)
    text = text_with(stock, GRIDS[2], 5, 7)
    [one], [other] = (read(model, [text], [pictures[2]], [[0]]) for model in (stock, merged(stock, attend)))
    assert torch.equal(one, other)


class AttentionCalls(TorchDispatchMode):
    """Counter of the calls of attention kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += "attention" in function.__name__
        return function(*args, **(kwargs or {}))


def one_kernel(query, key, value, starts_q, starts_k, longest_q, longest_k):
    """Call one attention kernel, over everything."""
    q, k, v = (each.transpose(0, 1)[None] for each in (query, key, value))
    return scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)


@pytest.mark.parametrize(
    ("attend", "in_windows"),
    [
        # A picture of 1036 × 1036 pixels has ten rows of ten windows; the last of each row, and the last row, are cut.
        (None, 10 * 10),
        (attend_by_runs, 9 * 2 + 1),
        (partial(attend_at_once, varlen_attn=one_kernel), 1),
    ],
    ids=["transformers", "by runs", "at once"],
)
def test_windows_share_attention_calls(stock, attend, in_windows):
    patches, grid = picture_of((74, 74))
    visual = (stock if attend is None else merged(stock, attend)).model.visual
    with torch.no_grad(), AttentionCalls() as calls:
        visual(patches, grid_thw=grid)
    # One block attends within windows, the other within the whole picture.
    assert calls.number == in_windows + 1
