"""A miniature pipeline of the real classes with random weights, for tests that each output belongs to its own request.

The weights are fixed, and scaled so that the result depends strongly on picture, prompt and seed: any mix-up shows. A
trained model edits every picture alike and would hide some mix-ups.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    QwenImage21Transformer2DModel,
    QwenImageTransformer2DModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from serve_app.models.families import StepwiseQwenImageEditPipeline, StepwiseQwenImageEditPlusPipeline
from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from training.parts import SPECIAL_TOKENS, build_scheduler, build_text_encoder
from training.qwen_image_21 import build_miniature

NATIVE_AREA = 256 * 256
TEXT_AREA = 112 * 112
_WEIGHTS_SEED = 20260101
_HIDDEN_SIZE = 64


def build_random_model() -> StepwiseQwenImageEditPipeline:
    """Build the pipeline on the CPU in float32, with the same weights at every call."""
    return StepwiseQwenImageEditPipeline(**_parts(zero_cond_t=False), native_area=NATIVE_AREA)


def build_random_plus_model(zero_cond_t: bool = True) -> StepwiseQwenImageEditPlusPipeline:
    """As `build_random_model`, of the Plus classes. `zero_cond_t`: as in 2511; 2509 has it not."""
    parts = _parts(zero_cond_t)
    return StepwiseQwenImageEditPlusPipeline(**parts, native_area=NATIVE_AREA, text_area=TEXT_AREA)


def _parts(zero_cond_t: bool) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_WEIGHTS_SEED)
        tokenizer = _tokenizer()
        vae, transformer = _vae(), _transformer(zero_cond_t)
        _strengthen(vae, transformer)
        return {
            "scheduler": build_scheduler(),
            "vae": vae,
            "text_encoder": build_text_encoder(tokenizer, width=_HIDDEN_SIZE, heads=4, rope_section=(2, 3, 3)),
            "tokenizer": tokenizer,
            "processor": Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor()),
            "transformer": transformer,
        }


def _tokenizer() -> Qwen2Tokenizer:
    """Return a tokenizer with one token per byte, so that 256 symbols cover all of Unicode."""
    symbols = [*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet())]
    return Qwen2Tokenizer(
        vocab={symbol: index for index, symbol in enumerate(symbols)},
        merges=[],
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def _vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 16,
        latents_std=[0.1] * 16,
    ).eval()


def _transformer(zero_cond_t: bool) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=_HIDDEN_SIZE,
        axes_dims_rope=(8, 12, 12),
        zero_cond_t=zero_cond_t,
    ).eval()


@torch.no_grad()
def _strengthen(vae: AutoencoderKLQwenImage, transformer: QwenImageTransformer2DModel) -> None:
    """Scale the initial weights, with which another picture would change the result by only 1/255.

    Sharper attention, open residual gates and a larger velocity change the result by 80/255 and more, while the float
    noise between a merged and a lone edit stays below 1e-3 in the latents. Larger factors would make that noise show.
    """
    vae.post_quant_conv.weight.mul_(5)
    transformer.proj_out.weight.mul_(5)
    width = transformer.inner_dim
    for block in transformer.transformer_blocks:
        for norm in (block.attn.norm_q, block.attn.norm_k, block.attn.norm_added_q, block.attn.norm_added_k):
            norm.weight.mul_(1.7)
        for modulation in (block.img_mod[1].bias, block.txt_mod[1].bias):
            # Six parts: shift, scale and gate of the attention, then of the feed-forward.
            modulation[2 * width : 3 * width].add_(1)
            modulation[5 * width :].add_(1)


# --- Qwen-Image-2.1 -----------------------------------------------------------------------------------------------


def build_random_21_model(sample_sigmas: list[float] | None = None) -> StepwiseQwenImage21Pipeline:
    """As `build_random_model`, of the classes of Qwen-Image-2.1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_WEIGHTS_SEED)
        pipeline = build_miniature(
            _tokenizer(),
            layers=4,
            heads=4,
            text_width=_HIDDEN_SIZE,
            native_area=NATIVE_AREA,
            sample_sigmas=sample_sigmas,
        )
        _strengthen_21(pipeline.vae, pipeline.transformer)
        # Of ones, it would not matter whether the transformer reads the states before or behind this norm.
        pipeline.text_encoder.model.language_model.norm.weight.data.uniform_(0.2, 2)
    return pipeline


@torch.no_grad()
def _strengthen_21(vae: AutoencoderKLQwenImage21, transformer: QwenImage21Transformer2DModel) -> None:
    """As `_strengthen`. This transformer's residual branches are scaled by hardly more than 0 at first."""
    vae.post_quant_conv.weight.mul_(5)
    transformer.proj_out.weight.mul_(5)
    transformer.modulation[1].weight.mul_(8)
    for block in transformer.transformer_blocks:
        for norm in (block.attn.norm_q, block.attn.norm_k):
            norm.weight.mul_(1.7)
        for projection in (block.attn.to_v, block.attn.to_out[0]):
            projection.weight.mul_(3)


def write_adapter(folder: Path, targets: list[str] | str) -> Path:
    """Write a LoRA of random weights for these layers of the model's transformer, as diffusers does."""
    transformer = build_random_model().transformer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(targets))
        config = LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False)
        transformer.add_adapter(config)
    weights = get_peft_model_state_dict(transformer)
    StepwiseQwenImageEditPipeline.save_lora_weights(folder, transformer_lora_layers=weights)
    return folder
