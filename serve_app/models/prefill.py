"""The packed forward of a QwenImage21Transformer2DModel: prefill once for each edit, then decode step by step.

The text and the references of an edit are its prefix. They are modulated for time 0, and attend to nothing behind them,
so their keys and values are the same in every step: prefill computes and keeps them. A step decodes the output's tokens
only. In both, the tokens of all rows lie end to end as in serve_app.models.packed, attention stays within a row, and
the modules are diffusers' own.

A long prefix is computed in pieces: through some of the blocks, and later through the next ones. Between them its
tokens wait, and the operations are the same in one piece or in many.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from types import MethodType
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21TransformerBlock, apply_rotary_emb_qwen
from torch.nn.attention.varlen import varlen_attn

from serve_app.engine.scheduler import StepCost
from serve_app.models.packed import Grid, Stream

Part = int | Grid
"""A part of a prefix: the tokens of a text, or the size of a picture in tokens."""


def _tokens_of(part: Part) -> int:
    return part if isinstance(part, int) else part[0] * part[1]


def _positions_of(part: Part) -> int:
    """Return how far a part moves the positions of what is behind it."""
    return part if isinstance(part, int) else max(part)


class Prefix:
    """Texts and pictures at the front of rows, and their keys and values, which all rows behind them may share.

    `contents`: of each part, the hidden states of a text (tokens × width of the text encoder) or the latents of a
    picture (tokens × 64). `blocks`: those of the transformer. `before`: what the parts follow, which must be complete
    before this one begins. `key`: as in Prepared. `keys`, `values`: of the parts, blocks × tokens × heads × width of a
    head; of the last `blocks_left` blocks not yet.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(
        self,
        parts: tuple[Part, ...],
        contents: tuple[torch.Tensor, ...],
        blocks: int,
        before: "Prefix | None" = None,
        key: Hashable | None = None,
    ) -> None:
        self.parts, self.before, self.key = parts, before, key
        self.blocks, self.blocks_left = blocks, blocks
        self.own_tokens = sum(map(_tokens_of, parts))
        self.unfinished: _Unfinished | None = _Unfinished(contents)

    @property
    def is_complete(self) -> bool:
        return self.unfinished is None

    @property
    def chain(self) -> "tuple[Prefix, ...]":
        """The prefixes of which this one is the last, in their order."""
        return (self,) if self.before is None else (*self.before.chain, self)

    @property
    def all_parts(self) -> tuple[Part, ...]:
        return tuple(part for each in self.chain for part in each.parts)

    @property
    def tokens(self) -> int:
        return sum(each.own_tokens for each in self.chain)

    @property
    def nbytes(self) -> int:
        """The bytes of its own keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def keep(self, block: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy the keys and values of a block. One that runs again after a failure writes the same."""
        if block == 0:
            self.keys, self.values = (each.new_empty(self.blocks, *each.shape) for each in (keys, values))
        self.keys[block], self.values[block] = keys, values

    def advance(self, blocks: int, tokens: torch.Tensor) -> None:
        """Count so many further blocks as done, and let the tokens behind them wait for the next."""
        self.blocks_left -= blocks
        if self.unfinished is not None:
            self.unfinished.tokens, self.unfinished.contents = tokens, ()
        if self.blocks_left == 0:
            self.unfinished = None


@dataclass(slots=True)
class _Unfinished:
    """What prefill still needs of a prefix: the contents of its parts or, once it has begun, its tokens.

    `positions`, `segments`: of its tokens, which all pieces share.
    """

    contents: tuple[torch.Tensor, ...]
    tokens: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    segments: "tuple[_Segment, ...]" = ()


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """The sizes of one row: the picture that is made, and the parts of its prefix."""

    output: Grid
    prefix: tuple[Part, ...]

    @property
    def output_tokens(self) -> int:
        return _tokens_of(self.output)

    @property
    def tokens(self) -> int:
        return self.output_tokens + sum(map(_tokens_of, self.prefix))


# --- positions ----------------------------------------------------------------------------------------------------


def _indices(part: Part, start: int) -> torch.Tensor:
    """Return the positions of a part's tokens on the axes time, height and width (tokens × 3).

    As QwenImage21Rope has them: a text advances on all three, a picture lies around 0 and stays at one time.
    """
    if isinstance(part, int):
        return torch.arange(start, start + part)[:, None].expand(part, 3)
    height, width = part
    rows, columns = (torch.arange(side) - (side - side // 2) for side in part)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).view(-1, 2)
    return torch.cat([torch.full((height * width, 1), start), grid], -1)


def _rotations(transformer: Any, parts: Sequence[Part], before: Sequence[Part], device: torch.device) -> torch.Tensor:
    """Return the rotary positions of parts as complex numbers, tokens × half the head's width."""
    starts = accumulate(map(_positions_of, parts), initial=sum(map(_positions_of, before)))
    indices = torch.cat([_indices(part, start) for part, start in zip(parts, starts, strict=False)])
    tables = [table.cpu() for table in transformer.pos_embed.freqs]
    return torch.cat([table[axis] for table, axis in zip(tables, indices.T, strict=True)], -1).to(device)


# --- prefill ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Segment:
    """A part that attends at once: to all of its row up to its end, a text causally. Places are those of its row."""

    start: int
    end: int
    mask: torch.Tensor | None


class PrefillLayout:
    """Where the tokens of each prefix lie in one forward, and what they attend to."""

    def __init__(self, rows: Sequence[Prefix], transformer: Any, device: torch.device) -> None:
        self.rows = tuple(rows)
        self.lengths = [row.own_tokens for row in rows]
        # All of them are modulated for time 0.
        self.stream = Stream([(sum(self.lengths), 0)], device)
        works = [_unfinished(row) for row in rows]
        for row, work in zip(rows, works, strict=True):
            if work.positions is None:
                before = [part for each in _complete(row.chain[:-1]) for part in each.parts]
                work.positions = _rotations(transformer, row.parts, before, device)
                work.segments = tuple(_segments(row, device))
        self.positions = torch.cat([work.positions for work in works if work.positions is not None])
        self._segments = [work.segments for work in works]

    # A graph would hold the number of parts, and be compiled anew for each.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, backend: Any
    ) -> torch.Tensor:
        """Return what each token attends to, and keep the keys and values of this layer."""
        attended = []
        split = (torch.split(each, self.lengths) for each in (query, key, value))
        for row, segments, q, k, v in zip(self.rows, self._segments, *split, strict=True):
            row.keep(layer, k, v)
            keys = torch.cat([each.keys[layer] for each in row.chain])
            values = torch.cat([each.values[layer] for each in row.chain])
            before = len(keys) - row.own_tokens
            for segment in segments:
                seen = before + segment.end
                attended.append(
                    dispatch_attention_fn(
                        q[None, segment.start : segment.end],
                        keys[None, :seen],
                        values[None, :seen],
                        attn_mask=segment.mask,
                        backend=None,
                    )[0]
                )
        return torch.cat(attended)


def _unfinished(row: Prefix) -> _Unfinished:
    if row.unfinished is None:
        raise ValueError("this prefix is complete")
    return row.unfinished


def _complete(chain: tuple[Prefix, ...]) -> tuple[Prefix, ...]:
    """Return the chain. Raises ValueError if a prefix is not complete, since its memory holds anything yet."""
    if not all(each.is_complete for each in chain):
        raise ValueError("this prefix is not complete")
    return chain


def _order(rows: Sequence[Prefix]) -> torch.Tensor:
    """Return the places of the rows' tokens among all text tokens and then all picture tokens."""
    text, picture = 0, sum(part for row in rows for part in row.parts if isinstance(part, int))
    places = []
    for part in (part for row in rows for part in row.parts):
        if isinstance(part, int):
            places.append(torch.arange(text, text + part))
            text += part
        else:
            places.append(torch.arange(picture, picture + _tokens_of(part)))
            picture += _tokens_of(part)
    return torch.cat(places)


def _segments(row: Prefix, device: torch.device) -> Iterator[_Segment]:
    start, before = 0, row.tokens - row.own_tokens
    for part in row.parts:
        end = start + _tokens_of(part)
        mask = None
        if isinstance(part, int):
            # Each token sees itself and all before it; the mask's lower right corner is the text's own square.
            seen = before + end
            mask = torch.ones(part, seen, dtype=torch.bool, device=device).tril(seen - part)[None, None]
        yield _Segment(start, end, mask)
        start = end


# --- decode -------------------------------------------------------------------------------------------------------

DecodeAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "DecodeLayout", Any], torch.Tensor]
"""Attention of each row's output to its prefix and to itself, by a backend of diffusers; None: by PyTorch's choice.

From queries (output tokens × heads × width of a head), and from keys and values of prefix and output, row after row.
"""


class DecodeLayout:
    """Where the output tokens of each row lie, and those that they see: made for one transformer.

    `rows`: neighbours with equally many tokens of both kinds share an attention call, so sort them.
    """

    def __init__(self, rows: Sequence[DecodeRow], transformer: Any, device: torch.device) -> None:
        self.rows = tuple(rows)
        self.output = self.stream = Stream([(row.output_tokens, index) for index, row in enumerate(rows)], device)
        self.positions = torch.cat([_rotations(transformer, [row.output], row.prefix, device) for row in rows])
        shapes = [(row.output_tokens, row.tokens) for row in rows]
        self.runs = [(len(list(run)), *shape) for shape, run in groupby(shapes)]
        """Neighbouring rows with equally many tokens: their number, the output tokens of each, and all of each."""
        self.starts, self.seen_starts = (
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
            for lengths in zip(*shapes, strict=True)
        )
        self.longest, self.longest_seen = (max(lengths) for lengths in zip(*shapes, strict=True))


# A graph would hold the number of runs, and be compiled anew for each.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def decode_by_runs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: DecodeLayout, backend: Any = None
) -> torch.Tensor:
    """Attend with one call for each run of rows with equally many tokens. For any device, type and backend."""
    outputs = [rows * output for rows, output, _ in layout.runs]
    seen = [rows * tokens for rows, _, tokens in layout.runs]
    attended = [
        dispatch_attention_fn(
            q.view(rows, output, *q.shape[1:]),
            k.view(rows, tokens, *k.shape[1:]),
            v.view(rows, tokens, *v.shape[1:]),
            backend=backend,
        ).flatten(0, 1)
        for (rows, output, tokens), q, k, v in zip(
            layout.runs, torch.split(query, outputs), torch.split(key, seen), torch.split(value, seen), strict=True
        )
    ]
    return torch.cat(attended)


class DecodeAtOnce:
    """Attention of all rows in one call, however many differ. For CUDA and 16-bit types; a backend goes by runs.

    `varlen_attn`: as PyTorch's.
    """

    def __init__(self, varlen_attn: Callable[..., Any] = varlen_attn) -> None:
        self._varlen_attn = varlen_attn

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: DecodeLayout, backend: Any = None
    ) -> torch.Tensor:
        if backend is not None or len(layout.runs) == 1:
            by_runs: torch.Tensor = decode_by_runs(query, key, value, layout, backend)
            return by_runs
        attended: torch.Tensor = self._varlen_attn(
            query, key, value, layout.starts, layout.seen_starts, layout.longest, layout.longest_seen
        )
        return attended


class _Decoding:
    """One forward of a layout, with the prefixes of its rows."""

    def __init__(self, layout: DecodeLayout, prefixes: Sequence[Prefix], attend: DecodeAttention) -> None:
        self.stream, self.positions = layout.stream, layout.positions
        self._layout = layout
        self._chains = [_complete(prefix.chain) for prefix in prefixes]
        self._lengths = [row.output_tokens for row in layout.rows]
        self._attend = attend

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, backend: Any
    ) -> torch.Tensor:
        keys, values = [], []
        rows = zip(self._chains, torch.split(key, self._lengths), torch.split(value, self._lengths), strict=True)
        for chain, k, v in rows:
            keys += [*(each.keys[layer] for each in chain), k]
            values += [*(each.values[layer] for each in chain), v]
        return self._attend(query, torch.cat(keys), torch.cat(values), self._layout, backend)


# --- the forward --------------------------------------------------------------------------------------------------


class PrefixBlock(QwenImage21TransformerBlock):  # type: ignore[misc]
    """A block over packed tokens. `pack` turns diffusers' blocks into it."""

    layer: int

    def forward(self, tokens: torch.Tensor, modulation: torch.Tensor, run: PrefillLayout | _Decoding) -> torch.Tensor:
        """Return the tokens behind this block (tokens × width). `modulation`: rows × 4 width."""
        scale, gate, scale2, gate2 = modulation.chunk(4, -1)
        attended = self._attend(run.stream.scale(self.img_norm1(tokens), scale), run)
        tokens = run.stream.add_gated(tokens, gate.tanh(), attended)
        fed = self.img_mlp(run.stream.scale(self.img_norm2(tokens), scale2))
        tokens = run.stream.add_gated(tokens, gate2.tanh(), fed)
        # As diffusers does, against overflow.
        return tokens.clip(-65504, 65504) if tokens.dtype == torch.float16 else tokens

    def _attend(self, tokens: torch.Tensor, run: PrefillLayout | _Decoding) -> torch.Tensor:
        attn = self.attn
        width = attn.inner_dim // attn.heads
        query, key, value = (
            project(tokens).view(len(tokens), -1, width) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        normed = torch.stack([attn.norm_q(query), attn.norm_k(key)]).to(value.dtype)
        query, key = apply_rotary_emb_qwen(normed, run.positions, use_real=False)
        attended = run.attend(query, key, value, self.layer, attn.processor._attention_backend)
        result: torch.Tensor = attn.to_out[0](attended.flatten(1))
        return result


def _prefill(transformer: Any, rows: Sequence[Prefix], blocks: int) -> None:
    first = rows[0].blocks - rows[0].blocks_left
    tokens = _tokens_at(transformer, rows, first)
    device = tokens.device
    layout = PrefillLayout(rows, transformer, device)
    _, modulation = _embed_times(transformer, torch.zeros(1, device=device), tokens)
    for block in transformer.transformer_blocks[first : first + blocks]:
        tokens = block(tokens, modulation, layout)
    for row, own in zip(rows, torch.split(tokens, layout.lengths), strict=True):
        # A copy, since a view would keep the tokens of all rows.
        row.advance(blocks, own.clone() if len(rows) > 1 else own)


def _tokens_at(transformer: Any, rows: Sequence[Prefix], first: int) -> torch.Tensor:
    """Return the tokens of the rows end to end, as they enter the block `first`."""
    works = [_unfinished(row) for row in rows]
    if first:
        return torch.cat([work.tokens for work in works if work.tokens is not None])
    pairs = [pair for row, work in zip(rows, works, strict=True) for pair in zip(row.parts, work.contents, strict=True)]
    texts = [content for part, content in pairs if isinstance(part, int)]
    pictures = [content for part, content in pairs if not isinstance(part, int)]
    embedded = [transformer.txt_in(torch.cat(texts))] if texts else []
    embedded += [transformer.img_in(torch.cat(pictures))] if pictures else []
    joined = torch.cat(embedded)
    return joined.index_select(0, _order(rows).to(joined.device))


def _decode(
    transformer: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    layout: DecodeLayout,
    prefixes: Sequence[Prefix],
) -> torch.Tensor:
    tokens = transformer.img_in(latents)
    temb, modulation = _embed_times(transformer, timesteps, tokens)
    run = _Decoding(layout, prefixes, transformer.attend)
    for block in transformer.transformer_blocks:
        tokens = block(tokens, modulation, run)
    norm = transformer.norm_out
    scale = norm.linear(norm.silu(temb).to(tokens.dtype))
    velocity: torch.Tensor = transformer.proj_out(layout.output.scale(norm.norm(tokens), scale))
    return velocity


def _embed_times(transformer: Any, times: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embedded times (rows × width), and what they modulate all blocks with (rows × 4 width)."""
    temb = transformer.time_text_embed(times.to(tokens.dtype), tokens)
    return temb, transformer.modulation(temb)


def _forward(transformer: Any, *inputs: Any) -> Any:
    return _prefill(transformer, *inputs) if len(inputs) == 2 else _decode(transformer, *inputs)


def prefill(transformer: Any, rows: Sequence[Prefix], blocks: int | None = None) -> None:
    """Compute so many further blocks of each prefix, or all that are left, in one forward.

    `rows`: with equally many blocks left. `transformer`: one of `pack`. A call that raises may be repeated.
    """
    left = rows[0].blocks_left
    transformer(rows, left if blocks is None else min(blocks, left))


def decode(
    transformer: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    layout: DecodeLayout,
    prefixes: Sequence[Prefix],
) -> torch.Tensor:
    """Return the predicted velocity of the output's tokens (tokens × 64), row after row. `transformer`: one of `pack`.

    `latents` (tokens × 64): of all rows end to end. `timesteps`: one for each row, from 0 to 1.
    """
    velocity: torch.Tensor = transformer(latents, timesteps, layout, prefixes)
    return velocity


def step_cost(transformer: Any) -> StepCost:
    """Return the operations of the blocks: a multiplication and an addition for each weight, and the attention.

    A token passes 13 × width² weights of each block: four projections, and a feed-forward of nine.
    """
    width, blocks = transformer.inner_dim, len(transformer.transformer_blocks)
    weights = sum(
        each.weight.numel() for each in transformer.transformer_blocks[0].modules() if isinstance(each, torch.nn.Linear)
    )
    return StepCost(
        per_token=2 * weights * blocks,
        per_pair=4 * width * blocks,
        # Keys and values.
        kept_per_token=2 * width * blocks * transformer.dtype.itemsize,
        pieces=blocks,
    )


def pack(transformer: Any, attend: DecodeAttention = decode_by_runs) -> None:
    """Make prefill and decode the forward of a QwenImage21Transformer2DModel (diffusers 0.42), in place.

    It stays a component of its own class, which diffusers loads, saves, offloads and compiles block by block.
    """
    transformer.forward = MethodType(_forward, transformer)
    transformer.attend = attend
    for layer, block in enumerate(transformer.transformer_blocks):
        block.__class__ = PrefixBlock
        block.layer = layer
    # `compile_repeated_blocks` finds blocks by the name of their class.
    transformer._repeated_blocks = [PrefixBlock.__name__]
