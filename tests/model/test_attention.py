"""Attention by text length: the same numbers as with a mask, and no mask."""

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from serve_app.models.patches import ByTextLength, attend_by_text_length


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=(4, 6, 6)
    ).eval()
    attend_by_text_length(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize("runs", [((2, 3), (1, 7)), ((1, 7), (1, 3), (1, 5)), ((3, 7),)])
def test_runs_give_what_a_mask_gives(transformer, runs):
    rows, longest = sum(count for count, _ in runs), max(length for _, length in runs)
    lengths = torch.tensor([length for count, length in runs for _ in range(count)])
    mask = torch.arange(longest)[None] < lengths[:, None]
    fields = {
        "hidden_states": torch.randn(rows, 8, 64),
        "encoder_hidden_states": torch.randn(rows, longest, 8) * mask[..., None],
        "timestep": torch.rand(rows),
        "img_shapes": [[(1, 2, 2), (1, 2, 2)]] * rows,
    }
    masked = transformer(**fields, encoder_hidden_states_mask=mask).sample
    by_length = transformer(**fields, attention_kwargs={"text_runs": runs}).sample
    torch.testing.assert_close(by_length, masked, rtol=1e-4, atol=1e-5)
    if len(runs) > 1:
        unmasked = transformer(**fields).sample
        assert (unmasked - masked).abs().max() > 1e-3


def test_every_block_has_it_and_a_backend_reaches_it(transformer):
    processors = [block.attn.processor for block in transformer.transformer_blocks]
    assert all(type(processor) is ByTextLength for processor in processors)
    transformer.set_attention_backend("_native_math")
    assert all(processor._attention_backend is not None for processor in processors)
    transformer.reset_attention_backend()
