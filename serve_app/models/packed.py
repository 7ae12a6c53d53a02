"""The packed forward: one forward of a QwenImageTransformer2DModel for rows of any sizes and any text lengths.

The tokens of all rows lie end to end, without padding and without a mask. Every Linear, norm and feed-forward of the
model runs once over all tokens; modulation and rotary positions are each row's own, and attention stays within a row.
The modules are diffusers' own, so that weights, adapters, quantised layers and offloading hooks are, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from types import MethodType
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock, apply_rotary_emb_qwen
from torch.nn.attention.varlen import varlen_attn

from serve_app.engine.scheduler import StepCost

Grid = tuple[int, int]
"""Height and width of a picture in tokens."""


@dataclass(frozen=True, slots=True)
class RowShape:
    """The sizes of one row: the picture that is made, the references that it looks at, and its text in tokens."""

    output: Grid
    references: tuple[Grid, ...]
    text_tokens: int

    @property
    def output_tokens(self) -> int:
        return self.output[0] * self.output[1]

    @property
    def image_tokens(self) -> int:
        return self.output_tokens + sum(height * width for height, width in self.references)

    @property
    def tokens(self) -> int:
        return self.text_tokens + self.image_tokens


class Stream:
    """The tokens of one kind, image or text, of all rows end to end.

    `parts`: for each part, whose tokens lie together, its tokens and the row of the modulation that it takes.
    """

    def __init__(self, parts: Sequence[tuple[int, int]], device: torch.device) -> None:
        self._lengths = [tokens for tokens, _ in parts]
        self.tokens = sum(self._lengths)
        rows = [row for _, row in parts]
        lengths = torch.tensor(self._lengths, dtype=torch.long)
        self._rows = torch.tensor(rows, dtype=torch.long).repeat_interleave(lengths).to(device)
        is_even = len(set(self._lengths)) == 1 and rows == list(range(len(parts)))
        self._each = self._lengths[0] if is_even else None
        """The tokens of each row if all have equally many: a row's values then need not be repeated for each token."""

    def per_token(self, values: torch.Tensor) -> torch.Tensor:
        """Return the row's values for each token: tokens × width, from rows × width."""
        return values.index_select(0, self._rows)

    def split(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens of each part."""
        return list(torch.split(tokens, self._lengths))

    def modulate(self, tokens: torch.Tensor, shift_scale: torch.Tensor) -> torch.Tensor:
        """Return tokens × (1 + scale) + shift. `shift_scale`: of each row, side by side (rows × 2 width)."""
        if self._each is None:
            shift, scale = self.per_token(shift_scale).chunk(2, -1)
            return tokens * (1 + scale) + shift
        shift, scale = shift_scale[:, None].chunk(2, -1)
        return (self._by_row(tokens) * (1 + scale) + shift).view_as(tokens)

    def scale(self, tokens: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return tokens × (1 + scale), with the scale of each token's row (rows × width)."""
        if self._each is None:
            return tokens * (1 + self.per_token(scale))
        return (self._by_row(tokens) * (1 + scale[:, None])).view_as(tokens)

    def add_gated(self, residual: torch.Tensor, gate: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return residual + gate × tokens, with the gate of each token's row."""
        if self._each is None:
            return residual + self.per_token(gate) * tokens
        return residual + (gate[:, None] * self._by_row(tokens)).view_as(tokens)

    def _by_row(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.view(-1, self._each or 0, tokens.shape[-1])


class JointOrder:
    """The sequence that attention sees where there are several rows: row after row, in each first text, then image.

    `places`: for each of its places, the place among all text and then all image tokens, three times on end: of
    queries, keys and values. `inverse`: of one of them, the inverse.
    `starts`: where each row starts and the last one ends (rows + 1, int32). `longest`: the tokens of the longest row.
    """

    def __init__(self, rows: Sequence[RowShape], device: torch.device) -> None:
        pieces, text, image = [], 0, sum(row.text_tokens for row in rows)
        for row in rows:
            pieces += [torch.arange(text, text + row.text_tokens), torch.arange(image, image + row.image_tokens)]
            text, image = text + row.text_tokens, image + row.image_tokens
        places = torch.cat(pieces)
        self.places = torch.cat([places + index * len(places) for index in range(3)]).to(device)
        self.inverse = torch.empty_like(places).scatter_(0, places, torch.arange(len(places))).to(device)
        self.starts = torch.tensor([0, *accumulate(row.tokens for row in rows)], dtype=torch.int32).to(device)
        self.longest = max(row.tokens for row in rows)


class Layout:
    """Where the tokens of each row lie, and all that the blocks need to know of the rows. Made for one transformer.

    `rows`: neighbours with equally many tokens share an attention call, so sort them. `joint`: None for a single row.
    """

    def __init__(self, rows: Sequence[RowShape], transformer: Any, device: torch.device) -> None:
        self.rows = tuple(rows)
        self.image = Stream(_image_parts(rows, transformer.zero_cond_t), device)
        self.text = Stream([(row.text_tokens, index) for index, row in enumerate(rows)], device)
        self.output = Stream([(row.output_tokens, index) for index, row in enumerate(rows)], device)
        self.output_places = _output_places(rows).to(device)
        self.runs = [(len(list(run)), tokens) for tokens, run in groupby(row.tokens for row in rows)]
        """Neighbouring rows with equally many tokens: their number, and the tokens of each."""
        self.joint = JointOrder(rows, device) if len(rows) > 1 else None
        self.positions = _positions(rows, transformer, device)

    def join(self, projected: torch.Tensor) -> torch.Tensor:
        """Return queries, keys and values in the order of attention, 3 × tokens × heads × width.

        `projected` ((3 × tokens) × heads × width): those of all text and then of all image tokens.
        """
        joined = projected if self.joint is None else projected.index_select(0, self.joint.places)
        return joined.view(3, -1, *projected.shape[1:])

    def separate(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return text and image tokens; `tokens` (tokens × heads × width): in the order of attention."""
        parted = tokens if self.joint is None else tokens.index_select(0, self.joint.inverse)
        text, image = torch.split(parted, [self.text.tokens, self.image.tokens])
        return text, image


def _image_parts(rows: Sequence[RowShape], zero_cond_t: bool) -> list[tuple[int, int]]:
    if not zero_cond_t:
        return [(row.image_tokens, index) for index, row in enumerate(rows)]
    # References are modulated for time 0, whose rows come after those of the outputs.
    parts = []
    for index, row in enumerate(rows):
        parts += [(row.output_tokens, index), (row.image_tokens - row.output_tokens, len(rows) + index)]
    return parts


def _output_places(rows: Sequence[RowShape]) -> torch.Tensor:
    """Return the places of the output's tokens among the image tokens."""
    starts = accumulate((row.image_tokens for row in rows), initial=0)
    return torch.cat([torch.arange(start, start + row.output_tokens) for start, row in zip(starts, rows, strict=False)])


def _positions(rows: Sequence[RowShape], transformer: Any, device: torch.device) -> torch.Tensor:
    """Return the rotary positions in the order of attention as complex numbers, tokens × half the head's width."""
    positions = []
    for row in rows:
        grids = [(1, *grid) for grid in (row.output, *row.references)]
        image, text = transformer.pos_embed([grids], max_txt_seq_len=row.text_tokens, device=device)
        positions += [text, image]
    return torch.cat(positions)


# --- attention ----------------------------------------------------------------------------------------------------

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Layout, Any], torch.Tensor]
"""Attention within each row, from queries, keys and values (tokens × heads × width of a head, in the order of
attention), by a backend of diffusers; None: by PyTorch's choice."""


# A graph would hold the number of runs, and be compiled anew for each.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_by_runs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, backend: Any = None
) -> torch.Tensor:
    """Attend with one call for each run of rows with equally many tokens. For any device, type and backend."""
    lengths = [rows * tokens for rows, tokens in layout.runs]
    parts = zip(layout.runs, *(torch.split(each, lengths) for each in (query, key, value)), strict=True)
    attended = [
        dispatch_attention_fn(*(part.unflatten(0, run) for part in of_run), backend=backend).flatten(0, 1)
        for run, *of_run in parts
    ]
    return attended[0] if len(attended) == 1 else torch.cat(attended)


class VarlenAttention:
    """Attention of all rows in one call, however many differ. For CUDA and 16-bit types; a backend goes by runs.

    `varlen_attn`: as PyTorch's.
    """

    def __init__(self, varlen_attn: Callable[..., Any] = varlen_attn) -> None:
        self._varlen_attn = varlen_attn

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, backend: Any = None
    ) -> torch.Tensor:
        joint = layout.joint
        if backend is not None or joint is None or len(layout.runs) == 1:
            by_runs: torch.Tensor = attend_by_runs(query, key, value, layout, backend)
            return by_runs
        attended: torch.Tensor = self._varlen_attn(
            query, key, value, joint.starts, joint.starts, joint.longest, joint.longest
        )
        return attended


# --- the forward --------------------------------------------------------------------------------------------------


class PackedBlock(QwenImageTransformerBlock):  # type: ignore[misc]
    """A block over packed tokens. `pack` turns diffusers' blocks into it."""

    attend: Attention

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, temb: torch.Tensor, layout: Layout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image and the text tokens behind this block (each tokens × width).

        `temb`: the embedded times, rows × width; with `zero_cond_t`, those of time 0 follow.
        """
        # Each row's shift and scale (side by side) and gate of the attention, then those of the feed-forward.
        parts = [2 * image.shape[-1], image.shape[-1]] * 2
        image_enter, image_gate, image_enter2, image_gate2 = self.img_mod(temb).split(parts, -1)
        times = temb.chunk(2)[0] if self.zero_cond_t else temb
        text_enter, text_gate, text_enter2, text_gate2 = self.txt_mod(times).split(parts, -1)
        attended, text_attended = self._attend(
            layout.image.modulate(self.img_norm1(image), image_enter),
            layout.text.modulate(self.txt_norm1(text), text_enter),
            layout,
        )
        image = layout.image.add_gated(image, image_gate, attended)
        text = layout.text.add_gated(text, text_gate, text_attended)
        fed = self.img_mlp(layout.image.modulate(self.img_norm2(image), image_enter2))
        image = layout.image.add_gated(image, image_gate2, fed)
        text_fed = self.txt_mlp(layout.text.modulate(self.txt_norm2(text), text_enter2))
        text = layout.text.add_gated(text, text_gate2, text_fed)
        if image.dtype == torch.float16:
            # As diffusers does, against overflow.
            image, text = image.clip(-65504, 65504), text.clip(-65504, 65504)
        return image, text

    def _attend(self, image: torch.Tensor, text: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        attn = self.attn
        width = attn.inner_dim // attn.heads

        def heads(tokens: torch.Tensor) -> torch.Tensor:
            return tokens.view(len(tokens), -1, width)

        # In one tensor, since launches cost: queries, keys and values, each of all text and then all image tokens.
        projected = torch.cat(
            [
                attn.norm_added_q(heads(attn.add_q_proj(text))),
                attn.norm_q(heads(attn.to_q(image))),
                attn.norm_added_k(heads(attn.add_k_proj(text))),
                attn.norm_k(heads(attn.to_k(image))),
                heads(attn.add_v_proj(text)),
                heads(attn.to_v(image)),
            ]
        )
        joint = layout.join(projected)
        query, key = apply_rotary_emb_qwen(joint[:2], layout.positions, use_real=False)
        attended = self.attend(query, key, joint[2], layout, attn.processor._attention_backend)
        text_attended, image_attended = layout.separate(attended)
        return attn.to_out[0](image_attended.flatten(1)), attn.to_add_out(text_attended.flatten(1))


def _forward(
    transformer: Any, image: torch.Tensor, text: torch.Tensor, timesteps: torch.Tensor, layout: Layout
) -> torch.Tensor:
    """Return the predicted velocity of the output's tokens (tokens × 64), row after row.

    `image` (tokens × 64), `text` (tokens × width): of all rows end to end; in a row's image tokens the references
    follow the output. `timesteps`: one for each row, from 0 to 1.
    """
    image = transformer.img_in(image)
    text = transformer.txt_in(transformer.txt_norm(text))
    times = timesteps.to(image.dtype)
    if transformer.zero_cond_t:
        times = torch.cat([times, times * 0])
    temb = transformer.time_text_embed(times, image)
    for block in transformer.transformer_blocks:
        image, text = block(image, text, temb, layout)
    image = image.index_select(0, layout.output_places)
    norm = transformer.norm_out
    scale, shift = norm.linear(norm.silu(temb[: len(layout.rows)]).to(image.dtype)).chunk(2, dim=1)
    modulated = layout.output.modulate(norm.norm(image), torch.cat([shift, scale], dim=1))
    velocity: torch.Tensor = transformer.proj_out(modulated)
    return velocity


def step_cost(transformer: Any) -> StepCost:
    """Return the operations of the blocks: a multiplication and an addition for each weight, and the attention.

    A token passes 12 × width² weights of each block: four projections, and a feed-forward of eight. The modulation is
    per row, and small.
    """
    width, blocks = transformer.inner_dim, len(transformer.transformer_blocks)
    return StepCost(per_token=24 * width**2 * blocks, per_pair=4 * width * blocks)


def pack(transformer: Any, attend: Attention = attend_by_runs) -> None:
    """Make the packed forward that of a QwenImageTransformer2DModel (diffusers 0.42), in place.

    It stays a component of its own class, which diffusers loads, saves, offloads and compiles block by block.
    """
    transformer.forward = MethodType(_forward, transformer)
    for block in transformer.transformer_blocks:
        block.__class__ = PackedBlock
        block.attend = attend
    # `compile_repeated_blocks` finds blocks by the name of their class.
    transformer._repeated_blocks = [PackedBlock.__name__]
