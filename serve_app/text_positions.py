"""Positions in the text encoder: a picture's tokens on their grid, as Qwen2.5-VL was trained.

transformers 5 makes them only where it is told which tokens are a picture's. Its processors tell, and diffusers 0.42
does not pass it on (huggingface/diffusers#14194): the picture is then read like a line of text, without an error, and
the transformer is given other values than those it was trained with.
"""

from typing import Any


def place_on_grid(text_encoder: Any) -> None:
    """Have every call of it know its picture tokens, whoever calls."""
    text_encoder.register_forward_pre_hook(_tell_picture_tokens, with_kwargs=True)


def _tell_picture_tokens(
    text_encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    is_picture = kwargs["input_ids"] == text_encoder.config.image_token_id
    return args, {"mm_token_type_ids": is_picture.int(), **kwargs}
