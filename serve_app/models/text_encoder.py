"""Reading of texts with their pictures by Qwen2.5-VL, the text encoder: each picture once, the last states only."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

SeenPicture = tuple[torch.Tensor, torch.Tensor]
"""A picture's patches, and its grid (1 × 3), both on the CPU."""


# Diffusers' decorator moves an offloaded model to the GPU, which only a call of the whole model would do otherwise.
@apply_forward_hook  # type: ignore[untyped-decorator]
@torch.no_grad()
def read_texts(
    text_encoder: Any,
    texts: Sequence[torch.Tensor],
    pictures: Sequence[SeenPicture],
    seen: Sequence[Sequence[int]],
    *,
    device: torch.device,
    pad: int,
    grid_positions: bool,
) -> list[torch.Tensor]:
    """Return the last hidden states of each text (tokens × width), behind the final norm.

    `texts`: token ids on the CPU, each with the tokens of its pictures. `seen`: for each text the indices of its
    pictures, in the order of their tokens.
    `pad`: any token but a picture's. `grid_positions`: whether a picture's tokens have positions on its grid, or in the
    line of the text.
    """
    model = text_encoder.model
    features = _embed_pictures(model.visual, pictures, device)
    # Everything that depends on lengths is computed on the CPU, where reading a length waits for no GPU.
    ids = pad_sequence(list(texts), batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    positions = None
    if grid_positions:
        is_picture = (ids == text_encoder.config.image_token_id).int()
        grids = torch.cat([pictures[index][1] for of_text in seen for index in of_text])
        positions, _ = model.get_rope_index(ids, is_picture, image_grid_thw=grids, attention_mask=mask)
        positions = positions.to(device)
    hidden = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions,
        mm_encoder_outputs={
            "image": BaseModelOutputWithPooling(
                pooler_output=[features[index] for of_text in seen for index in of_text]
            )
        },
        use_cache=False,
    ).last_hidden_state
    return [row[: len(text)] for row, text in zip(hidden, texts, strict=True)]


def _embed_pictures(visual: Any, pictures: Sequence[SeenPicture], device: torch.device) -> Sequence[torch.Tensor]:
    """Return the embeddings of each picture (tokens × width), in one call of the vision tower."""
    merge, grids = visual.spatial_merge_size, torch.cat([grid for _, grid in pictures])
    starts = get_vision_cu_seqlens(grids)
    order, window_starts = get_vision_window_index(grids, merge, visual.window_size, visual.patch_size)
    features = visual(
        torch.cat([patches for patches, _ in pictures]).to(device, visual.dtype),
        grid_thw=grids,
        position_ids=get_vision_position_ids(grids, merge).to(device),
        cu_seqlens=starts.to(device),
        max_seqlen=_longest(starts),
        window_index=order.to(device),
        cu_window_seqlens=window_starts.to(device),
        max_window_seqlen=_longest(window_starts),
    ).pooler_output
    return torch.split(features, (grids.prod(-1) // merge**2).tolist())


def _longest(starts: torch.Tensor) -> int:
    return int(starts.diff().max())
