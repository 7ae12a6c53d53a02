"""Qwen-Image-Edit from its published configuration with random weights, made on the device in its dtype.

Speed does not depend on the values of the weights. Nothing is downloaded, and no weight is ever on the host.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPipeline, QwenImageTransformer2DModel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from benchmarks.gpu.floor import TransformerCost
from benchmarks.gpu.prompts import PROMPT, SENTENCES
from serve_app.models.families import StepwiseQwenImageEditPipeline
from training.parts import build_scheduler, build_tokenizer

_WEIGHTS_SEED = 20260101
# The published processor's: a picture of 1024² becomes 37 × 37 of the text's tokens.
_MAX_CONDITION_PIXELS = 12845056
_MIN_CONDITION_PIXELS = 3136
_SPECIAL_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


@dataclass(frozen=True)
class ModelSize:
    """The sizes of the parts, named as in their configurations; the others have the published defaults."""

    native_side: int
    transformer: Mapping[str, Any]
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    vae: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> TransformerCost:
        """The FLOP of the transformer of this size."""
        width = self.transformer["num_attention_heads"] * self.transformer["attention_head_dim"]
        return TransformerCost(self.transformer["num_layers"], width)


def published_size(*, depth: float) -> ModelSize:
    """Return the configuration of Qwen/Qwen-Image-Edit, with a share of the layers of transformer and text encoder."""
    return ModelSize(
        native_side=1024,
        transformer={
            "num_layers": round(60 * depth),
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 3584,
            "axes_dims_rope": (16, 56, 56),
        },
        text={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": round(28 * depth),
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    )


_TINY = ModelSize(
    native_side=128,
    transformer={
        "num_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "axes_dims_rope": (8, 12, 12),
    },
    text={
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    },
    vision={
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
    vae={"base_dim": 8, "num_res_blocks": 1},
)

SIZES = {"full": published_size(depth=1), "half": published_size(depth=0.5), "tiny": _TINY}
"""`full`: 58 GB in bf16. `half`: half the layers of transformer and text encoder, for cards of 40 GB and more; a step
takes half as long, the share of the floor is much the same. `tiny`: for a CPU, to show that the script runs."""


def build_pipeline(size: ModelSize, device: torch.device, dtype: torch.dtype) -> StepwiseQwenImageEditPipeline:
    """Return the engine's pipeline on the device, with the same weights at every call on one device."""
    # An empty pipeline, for its template, which is nearly all of the text encoder's input.
    template = QwenImageEditPipeline(*[None] * 6).prompt_template_encode
    tokenizer = build_tokenizer([template, PROMPT, *SENTENCES])
    image_processor = Qwen2VLImageProcessor(min_pixels=_MIN_CONDITION_PIXELS, max_pixels=_MAX_CONDITION_PIXELS)
    torch.manual_seed(_WEIGHTS_SEED)
    with on_device(device, dtype):
        transformer, text_encoder, vae = build_transformer(size), build_text_encoder(size, tokenizer), build_vae(size)
    return StepwiseQwenImageEditPipeline(
        scheduler=build_scheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        processor=Qwen2VLProcessor(image_processor, tokenizer, Qwen2VLVideoProcessor()),
        transformer=transformer,
        native_area=size.native_side**2,
    )


@contextmanager
def on_device(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make modules with their weights on `device` in `dtype` from the start, initial values included."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def build_transformer(size: ModelSize) -> Any:
    """Return the transformer (full: 20.43 B parameters). Call it inside `on_device`."""
    return _for_inference(QwenImageTransformer2DModel(**size.transformer))


def build_text_encoder(size: ModelSize, tokenizer: Qwen2Tokenizer) -> Any:
    """Return Qwen2.5-VL (full: 7B, 8.29 B parameters with its vision). Call it inside `on_device`."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _SPECIAL_IDS.items()}
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2_5_VLConfig(text_config={**size.text, **ends}, vision_config=dict(size.vision), **ids)
    model = _for_inference(Qwen2_5_VLForConditionalGeneration(config))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def build_vae(size: ModelSize) -> Any:
    """Return the autoencoder (full: 0.13 B parameters). Call it inside `on_device`."""
    return _for_inference(AutoencoderKLQwenImage(**size.vae))


def _for_inference(module: Any) -> Any:
    return module.eval().requires_grad_(False)
