"""Patches of diffusers' and transformers' classes: what the published code gets wrong, or does at needless cost.

Each is applied to one object by a function, and holds for the versions named at it."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
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


class _FrameConv(QwenImageCausalConv3d):  # type: ignore[misc]
    """The same weights; a lone frame meets only the last slice of the kernel, the others would multiply zeros."""

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        """`x`: samples × channels × frames × height × width, as in the class it stands for."""
        if x.shape[2] != 1 or cache_x is not None:
            result: torch.Tensor = super().forward(x, cache_x)
            return result
        padding = (self._padding[2], self._padding[0])
        frame = torch.nn.functional.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], padding)
        return frame.unsqueeze(2)


def skip_absent_frames(vae: AutoencoderKLQwenImage) -> None:
    """Let every causal convolution of `vae` leave out the frames before the first, which are zeros (diffusers 0.42).

    The results are those of before up to float noise; on a CPU, encoding and decoding take a third of the time.
    """
    for module in vae.modules():
        if type(module) is QwenImageCausalConv3d:
            module.__class__ = _FrameConv


def place_on_grid(text_encoder: Any) -> None:
    """Have every call of it know its picture tokens, whoever calls."""
    text_encoder.register_forward_pre_hook(_tell_picture_tokens, with_kwargs=True)


def _tell_picture_tokens(
    text_encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    is_picture = kwargs["input_ids"] == text_encoder.config.image_token_id
    return args, {"mm_token_type_ids": is_picture.int(), **kwargs}
