"""Attention in a text encoder's vision tower, within the windows of pictures or within whole pictures, in few calls.

Transformers 5.23 calls the attention once for each window, and without flash-attn waits for the GPU in every block.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention, apply_rotary_pos_emb_vision
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int | None], torch.Tensor]
"""Attention within each segment, from queries, keys and values (tokens × heads × width of a head).

Then where each segment starts and the last one ends (segments + 1, int32), and the tokens of the longest, if known.
"""


def attend_by_runs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int | None = None
) -> torch.Tensor:
    """Attend with one call for each run of segments with equally many tokens. For any device and type."""
    attended, start = [], 0
    for length, run in groupby(starts.diff().tolist()):
        segments = len(list(run))
        end = start + segments * length
        q, k, v = (
            each[start:end].view(segments, length, *each.shape[1:]).transpose(1, 2) for each in (query, key, value)
        )
        attended.append(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        start = end
    return torch.cat(attended)


def attend_at_once(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int | None = None,
    varlen_attn: Callable[..., Any] = varlen_attn,
) -> torch.Tensor:
    """Attend within all segments in one call. For CUDA and 16-bit types. `varlen_attn`: as PyTorch's."""
    longest = int(starts.diff().max()) if longest is None else longest
    attended: torch.Tensor = varlen_attn(query, key, value, starts, starts, longest, longest)
    return attended


class _SegmentAttention:
    """The attention of a block of a vision tower, within segments. `merge_windows` turns transformers' own into it."""

    attend: Attention
    qkv: Any
    proj: Any
    num_heads: int

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        max_seqlen: int | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Return the tokens behind the attention (tokens × width), from arguments as the base class takes them."""
        query, key, value = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        attended: torch.Tensor = self.proj(self.attend(query, key, value, cu_seqlens, max_seqlen).flatten(1))
        return attended


class WindowAttention(_SegmentAttention, Qwen2_5_VLVisionAttention):  # type: ignore[misc]
    """Attention within windows or pictures, of Qwen2.5-VL."""


class PictureAttention(_SegmentAttention, Qwen3VLVisionAttention):  # type: ignore[misc]
    """Attention within pictures, of Qwen3-VL."""


def merge_windows(text_encoder: Any, attend: Attention = attend_by_runs) -> None:
    """Make a vision tower attend within many windows or pictures in one call (transformers 5.23), in place."""
    for block in text_encoder.model.visual.blocks:
        is_qwen3 = isinstance(block.attn, Qwen3VLVisionAttention)
        block.attn.__class__ = PictureAttention if is_qwen3 else WindowAttention
        block.attn.attend = attend
