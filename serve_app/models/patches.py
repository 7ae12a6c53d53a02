"""Patches of classes of diffusers and transformers whose published code is wrong or needlessly slow.

Each patch has a function that applies it to one object; the function's docstring names the patched version.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0


class ByTextLength(QwenDoubleStreamAttnProcessor2_0):  # type: ignore[misc]
    """Attention processor that calls diffusers' own once for each run of rows whose texts have the same length."""

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
        """Attend over image (rows × tokens × width) and text (rows × longest text × width), and return both.

        `text_runs`: (number of rows, text tokens of each row) for each run, from the first row to the last. The padding
        behind a text becomes zeros. Without runs, `encoder_hidden_states_mask` masks the padding.
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
    """Make every block of a QwenImageTransformer2DModel accept `text_runs` in `attention_kwargs` (diffusers 0.42)."""
    for block in transformer.transformer_blocks:
        block.attn.set_processor(ByTextLength())


class _FrameConv(QwenImageCausalConv3d):  # type: ignore[misc]
    """Causal convolution that multiplies a single frame by the kernel's last slice only: the other frames are zeros."""

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve `x`, samples × channels × frames × height × width, as the base class does."""
        if x.shape[2] != 1 or cache_x is not None:
            result: torch.Tensor = super().forward(x, cache_x)
            return result
        padding = (self._padding[2], self._padding[0])
        frame = torch.nn.functional.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], padding)
        return frame.unsqueeze(2)


def skip_absent_frames(vae: AutoencoderKLQwenImage) -> None:
    """Make every causal convolution of `vae` skip the frames before the first one, which are zeros (diffusers 0.42).

    The results change by float noise only. On a CPU, encoding and decoding take a third of the time.
    """
    for module in vae.modules():
        if type(module) is QwenImageCausalConv3d:
            module.__class__ = _FrameConv


def mark_picture_tokens(text_encoder: Any) -> None:
    """Pass `mm_token_type_ids` to every call of `text_encoder`, so that it places picture tokens on a grid.

    Without them transformers 5 numbers the tokens in sequence, and diffusers 0.42 does not pass them.
    """
    text_encoder.register_forward_pre_hook(_add_token_types, with_kwargs=True)


def _add_token_types(
    text_encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    is_picture = kwargs["input_ids"] == text_encoder.config.image_token_id
    return args, {"mm_token_type_ids": is_picture.int(), **kwargs}
