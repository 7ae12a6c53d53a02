"""A miniature of Qwen-Image-2.1, of the real classes, with fresh weights: it is not trained."""

from diffusers import AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from training.parts import picture_token_ids

_CHANNELS = 64
_HEAD = 32
_TEXT_HEADS = 4
_CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>\n{% endfor %}"


def build_miniature(
    tokenizer: Qwen2Tokenizer,
    *,
    layers: int,
    heads: int,
    text_width: int,
    native_area: int,
    sample_sigmas: list[float] | None = None,
) -> StepwiseQwenImage21Pipeline:
    """Return a pipeline on the CPU in float32, with PyTorch's initial weights.

    `layers`, `heads`: of the transformer, whose heads are 32 wide. `text_width`: of the text encoder.
    """
    vae = AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=_CHANNELS,
        dim_mult=[1, 2, 2, 4, 4],
        num_res_blocks=1,
        latents_mean=[0.0] * _CHANNELS,
        latents_std=[0.1] * _CHANNELS,
    )
    transformer = QwenImage21Transformer2DModel(
        num_layers=layers,
        attention_head_dim=_HEAD,
        num_attention_heads=heads,
        context_in_dim=text_width,
        axes_dims_rope=(8, 12, 12),
    )
    images = Qwen2VLImageProcessor(patch_size=16, merge_size=2)
    return StepwiseQwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=_text_encoder(tokenizer, text_width),
        processor=Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=_CHAT),
        transformer=transformer.eval(),
        sample_sigmas=sample_sigmas,
        native_area=native_area,
    )


def _text_encoder(tokenizer: Qwen2Tokenizer, width: int) -> Qwen3VLForConditionalGeneration:
    """Return a Qwen3-VL with three layers of text and three of vision, two of which the text's layers see."""
    section = (width // _TEXT_HEADS // 8, 3 * width // _TEXT_HEADS // 16)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 3,
            "num_attention_heads": _TEXT_HEADS,
            "num_key_value_heads": 2,
            "head_dim": width // _TEXT_HEADS,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [section[0], section[1], section[1]],
            },
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 3,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 4,
            "out_hidden_size": width,
            "patch_size": 16,
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 64,
        },
        **picture_token_ids(tokenizer),
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
