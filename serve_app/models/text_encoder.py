"""Reading of texts with their pictures by Qwen2.5-VL or Qwen3-VL, the text encoders: each picture once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch.nn.utils.rnn import pad_sequence
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

SeenPicture = tuple[torch.Tensor, torch.Tensor]
"""A picture's patches, and its grid (1 × 3), both on the CPU."""

Features = tuple[torch.Tensor, ...]
"""What a text encoder sees of a picture (each tokens × width): in its input and, of Qwen3-VL, behind its first layers.
"""

Embed = Callable[[Any, Sequence[SeenPicture], torch.device], Sequence[Features]]
"""Returns the features of each picture, in one call of the vision tower (the first argument)."""


# Diffusers' decorator moves an offloaded model to the GPU, which only a call of the whole model would do otherwise.
@apply_forward_hook  # type: ignore[untyped-decorator]
@torch.no_grad()
def read_texts(
    text_encoder: Any,
    texts: Sequence[torch.Tensor],
    pictures: Sequence[SeenPicture],
    seen: Sequence[Sequence[int]],
    *,
    embed: Embed,
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
    # Everything that depends on lengths is computed on the CPU, where reading a length waits for no GPU.
    ids = pad_sequence(list(texts), batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    order = [index for of_text in seen for index in of_text]
    positions = None
    if grid_positions:
        is_picture = (ids == text_encoder.config.image_token_id).int()
        grids = torch.cat([pictures[index][1] for index in order]) if order else None
        positions, _ = model.get_rope_index(ids, is_picture, image_grid_thw=grids, attention_mask=mask)
        positions = positions.to(device)
    hidden = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions,
        mm_encoder_outputs=_as_outputs(embed(model.visual, pictures, device), order) if order else None,
        use_cache=False,
    ).last_hidden_state
    return [row[: len(text)] for row, text in zip(hidden, texts, strict=True)]


def _as_outputs(features: Sequence[Features], order: Sequence[int]) -> dict[str, Any]:
    """Return the features of the pictures in this order as transformers takes them."""
    first, *deeper = zip(*(features[index] for index in order), strict=True)
    return {"image": BaseModelOutputWithDeepstackFeatures(pooler_output=first, deepstack_features=deeper)}


def embed_for_qwen2_5(visual: Any, pictures: Sequence[SeenPicture], device: torch.device) -> Sequence[Features]:
    """Embed pictures with the vision tower of a Qwen2.5-VL, whose first layers attend within windows."""
    grids = torch.cat([grid for _, grid in pictures])
    order, window_starts = get_vision_window_index(
        grids, visual.spatial_merge_size, visual.window_size, visual.patch_size
    )
    features = visual(
        _patches(visual, pictures, device),
        **_inputs(visual, grids, device),
        window_index=order.to(device),
        cu_window_seqlens=window_starts.to(device),
        max_window_seqlen=_longest(window_starts),
    ).pooler_output
    return _by_picture([features], grids, visual)


def embed_for_qwen3(visual: Any, pictures: Sequence[SeenPicture], device: torch.device) -> Sequence[Features]:
    """Embed pictures with the vision tower of a Qwen3-VL, of which more than the last layer is seen."""
    grids = torch.cat([grid for _, grid in pictures])
    places, weights = get_vision_interpolation_indices_and_weights(
        grids,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=visual.spatial_merge_size,
    )
    outputs = visual(
        _patches(visual, pictures, device),
        **_inputs(visual, grids, device),
        interp_indices=places.to(device),
        interp_weights=weights.to(device),
    )
    return _by_picture([outputs.pooler_output, *outputs.deepstack_features], grids, visual)


def _patches(visual: Any, pictures: Sequence[SeenPicture], device: torch.device) -> torch.Tensor:
    return torch.cat([patches for patches, _ in pictures]).to(device, visual.dtype)


def _inputs(visual: Any, grids: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """Return what the vision towers of both models read beside patches, computed on the CPU as far as lengths go in."""
    starts = get_vision_cu_seqlens(grids)
    return {
        "grid_thw": grids,
        "position_ids": get_vision_position_ids(grids, visual.spatial_merge_size).to(device),
        "cu_seqlens": starts.to(device),
        "max_seqlen": _longest(starts),
    }


def _by_picture(features: Sequence[torch.Tensor], grids: torch.Tensor, visual: Any) -> Sequence[Features]:
    lengths = (grids.prod(-1) // visual.spatial_merge_size**2).tolist()
    return list(zip(*(torch.split(each, lengths) for each in features), strict=True))


def _longest(starts: torch.Tensor) -> int:
    return int(starts.diff().max())
