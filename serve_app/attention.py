"""Attention over texts of different lengths without a mask.

With a mask, PyTorch leaves its flash attention kernel and other backends refuse (diffusers 0.42); a merged batch, or a
guided one alone, nearly always holds texts of several lengths.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0


class ByTextLength(QwenDoubleStreamAttnProcessor2_0):  # type: ignore[misc]
    """Diffusers' own attention, called once for all neighbouring rows whose texts are equally long."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        text_runs: Sequence[tuple[int, int]] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (rows × tokens × width) and text (rows × longest × width), in and out, as the class above.

        `text_runs`: (rows, tokens of the text of each) from the first row to the last; behind a text there is padding,
        which comes out as zeros. Without runs, the mask tells.
        """
        whole = super().__call__
        if not text_runs or image_rotary_emb is None:
            both: tuple[torch.Tensor, torch.Tensor] = whole(
                attn, hidden_states, encoder_hidden_states, encoder_hidden_states_mask, attention_mask, image_rotary_emb
            )
            return both
        positions, text_positions = image_rotary_emb
        images, texts = [], []
        first, longest = 0, encoder_hidden_states.shape[1]
        for rows, length in text_runs:
            run = slice(first, first + rows)
            image, text = whole(
                attn,
                hidden_states[run],
                encoder_hidden_states[run, :length],
                image_rotary_emb=(positions, text_positions[:length]),
            )
            images.append(image)
            texts.append(torch.nn.functional.pad(text, (0, 0, 0, longest - length)))
            first += rows
        return torch.cat(images), torch.cat(texts)


def attend_by_text_length(transformer: Any) -> None:
    """Let every block of a QwenImageTransformer2DModel take `text_runs` among its `attention_kwargs`."""
    for block in transformer.transformer_blocks:
        block.attn.set_processor(ByTextLength())
