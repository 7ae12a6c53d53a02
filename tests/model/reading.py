"""A text encoder with random weights, and texts with pictures for it."""

from collections.abc import Sequence
from typing import Any

import torch

from serve_app.models.text_encoder import SeenPicture, embed_for_qwen2_5, read_texts
from tests.random_model import _tokenizer
from training.parts import build_text_encoder

PAD = 0
# Patches of pictures whose last windows are whole, narrow, low, and both.
GRIDS = [(16, 16), (16, 22), (6, 24), (30, 18), (4, 4)]


def random_text_encoder() -> Any:
    """Build transformers' own, with two layers of text and two of vision, and with the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = build_text_encoder(_tokenizer(), width=64, heads=4, rope_section=(2, 3, 3))
        for weights in text_encoder.parameters():
            torch.nn.init.normal_(weights, std=0.3)
    return text_encoder


def text_with(text_encoder: Any, grid: tuple[int, int], before: int, after: int) -> torch.Tensor:
    """Return token ids: some of a text, those of the picture, and some of a text again."""
    picture = torch.full((grid[0] * grid[1] // 4,), text_encoder.config.image_token_id)
    return torch.cat([torch.randint(10, 200, (before,)), picture, torch.randint(10, 200, (after,))])


def picture_of(grid: tuple[int, int]) -> SeenPicture:
    return torch.randn(grid[0] * grid[1], 3 * 2 * 14 * 14), torch.tensor([[1, *grid]])


def read(
    text_encoder: Any,
    texts: Sequence[torch.Tensor],
    pictures: Sequence[SeenPicture],
    seen: Sequence[Sequence[int]],
    *,
    grid_positions: bool = True,
) -> list[torch.Tensor]:
    states: list[torch.Tensor] = read_texts(
        text_encoder,
        texts,
        pictures,
        seen,
        embed=embed_for_qwen2_5,
        device=torch.device("cpu"),
        pad=PAD,
        grid_positions=grid_positions,
    )
    return states
