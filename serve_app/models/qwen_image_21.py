"""The stages of Qwen-Image-2.1: texts and references are prefilled once, and a step decodes the output's tokens."""

import time
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Pipeline, QwenImage21Transformer2DModel
from transformers import Qwen3VLForConditionalGeneration

from serve_app.engine.sampling import AdapterScales
from serve_app.engine.scheduler import Condition, StepCost
from serve_app.errors import OutOfMemory
from serve_app.images.geometry import Geometry
from serve_app.models.device import translated_errors
from serve_app.models.packed import Grid
from serve_app.models.pipeline import NATIVE_AREA, PICTURE, Encoding, Prepared, SampleState, StepwisePipeline, looks_at
from serve_app.models.plan import Plan
from serve_app.models.prefill import (
    DecodeAtOnce,
    DecodeLayout,
    DecodeRow,
    Part,
    Prefix,
    decode,
    pack,
    prefill,
    step_cost,
)
from serve_app.models.prefix_cache import CachedPictures, PrefixCache
from serve_app.models.text_encoder import Embed, embed_for_qwen3
from serve_app.models.vision import merge_windows
from serve_app.request import Picture
from serve_app.settings import Sharing

_OPAQUE = 255


class StepwiseQwenImage21Pipeline(StepwisePipeline, QwenImage21Pipeline):  # type: ignore[misc]
    """Qwen-Image-2.1: up to ten pictures for each edit, with transparency, and without guidance by default.

    model_index.json stores `sample_sigmas`, as diffusers has it, and `native_area` beside the components.
    """

    weights: ClassVar[dict[str, Any]] = {
        "text_encoder": Qwen3VLForConditionalGeneration,
        "transformer": QwenImage21Transformer2DModel,
        "vae": AutoencoderKLQwenImage21,
    }
    max_references: ClassVar[int] = 10
    default_guidance: ClassVar[float] = 1.0
    # A slot of the text stands for 2 × 2 tokens of a picture, so the processor may not resize it.
    _cutting: ClassVar[dict[str, Any]] = {"do_resize": False}

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        processor: Any,
        transformer: Any,
        sample_sigmas: list[float] | None = None,
        native_area: int = NATIVE_AREA,
    ) -> None:
        super().__init__(scheduler, vae, text_encoder, processor, transformer, sample_sigmas)
        self.register_to_config(native_area=native_area)
        merge_windows(text_encoder)
        # The transformer was trained on the states before the final norm.
        text_encoder.model.language_model.norm.register_forward_hook(lambda module, inputs, output: inputs[0])
        pack(transformer)
        self.share_prefixes: Sharing = "caller"
        self.prefixes = PrefixCache(0)
        # Those that edits in flight use, complete or not, for further edits of the same pictures.
        self._in_use: WeakValueDictionary[Hashable, Prefix] = WeakValueDictionary()
        # Seconds of prefill for each token, as last measured.
        self._prefill_s = 0.0
        self._set_up()

    def attend_at_once(self) -> None:
        pack(self.transformer, DecodeAtOnce())

    @property
    def default_steps(self) -> int:
        return len(self.config.sample_sigmas or ()) or 40

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.config.native_area, self.vae_scale_factor, has_slots=True)

    @property
    def step_cost(self) -> StepCost:
        return step_cost(self.transformer)

    @property
    def makes_alpha(self) -> bool:
        return True

    @property
    def generates(self) -> bool:
        return True

    @property
    def _channels(self) -> int:
        return int(self.transformer.config.in_channels)

    @property
    def _text_tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def _instruction_tokens(self) -> int:
        return int(self._drop_idx)

    def _template(self, pictures: int) -> str:
        if not pictures:
            return str(self.prompt_template_t2i)
        seen = " ".join(f"<image{number}>{PICTURE}" for number in range(1, pictures + 1))
        return str(self.prompt_template_ti2i.replace(f"<image1>{PICTURE}", seen))

    def _text_positions(self, condition: Condition) -> int:
        # Those of time; a picture takes as many as its longer side has tokens.
        sides = (max(each.view.size.width, each.view.size.height) for each in condition.references)
        taken = sum(side // self.geometry.token_side for side in sides)
        # The last rows of the table are for the negative positions of height and width.
        return 8192 - taken - 1

    def _for_vae(self, picture: Picture) -> Picture:
        if picture.shape[2] == 4:
            return picture
        opaque = np.full((*picture.shape[:2], 1), _OPAQUE, np.uint8)
        return np.concatenate([picture, opaque], axis=-1)

    @property
    def _embed(self) -> Embed:
        return embed_for_qwen3

    def _digest(self, picture: PIL.Image.Image) -> bytes:
        return blake2b(picture.tobytes(), digest_size=16).digest() + repr(picture.size).encode()

    def _key(self, condition: Condition, digests: Sequence[bytes]) -> Hashable | None:
        if self.share_prefixes == "none" or not digests:
            return None
        return (tuple(digests), condition.caller if self.share_prefixes == "caller" else None)

    def encode(self, prepared: Sequence[Prepared]) -> list[Encoding]:
        """Encode as other families do. If memory runs out, the prefixes that no sample uses give way first."""
        try:
            return super().encode(prepared)
        except OutOfMemory:
            self.prefixes.clear()
            raise

    def step(self, states: Sequence[SampleState]) -> None:
        """Take a step as other families do. If memory runs out, the prefixes that no sample uses give way first."""
        try:
            super().step(states)
        except OutOfMemory:
            self.prefixes.clear()
            raise

    def _encode_references(self, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        known = [self.prefixes.get(each.key) for each in prepared]
        new = iter(
            super()._encode_references([each for each, kept in zip(prepared, known, strict=True) if kept is None])
        )
        return [next(new) if kept is None else kept.references for kept in known]

    def _conditions(
        self,
        prepared: Sequence[Prepared],
        texts: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
        references: Sequence[torch.Tensor],
    ) -> Sequence[tuple[Any, Any]]:
        """Return the prefixes of the texts, which `prefill` computes behind that of the pictures."""
        blocks, found = len(self.transformer.transformer_blocks), []
        for each, (positive, negative), latents in zip(prepared, texts, references, strict=True):
            cut = _Cut(each, self._instruction_tokens, self.vae_scale_factor, self._img_token_id, blocks)
            head = self._head(each.key, cut, positive, latents) if cut.pictures else None
            found.append((cut.tail(positive, head), None if negative is None else cut.tail(negative, head)))
        return found

    def _head(self, key: Hashable | None, cut: "_Cut", text: torch.Tensor, references: torch.Tensor) -> Prefix:
        """Return the prefix of an edit's pictures: one that is kept, or that another edit uses, or a new one."""
        kept, stats = self.prefixes.get(key), self.prefixes.stats
        head = self._in_use.get(key) if kept is None else kept.prefix
        if head is not None:
            stats.hits, stats.saved_s = stats.hits + 1, stats.saved_s + head.own_tokens * self._prefill_s
            self._keep(head, references)
            return head
        head = cut.head(text, references, key)
        if key is not None:
            stats.misses += 1
            self._in_use[key] = head
        return head

    @torch.no_grad()
    def prefill(self, encodings: Sequence[Encoding], pieces: Sequence[int] | None = None) -> list[int]:
        """Compute pieces of the prefixes, a block of the transformer each. The texts are a part of the last piece."""
        try:
            with translated_errors():
                self._advance_heads(encodings, pieces or [len(self.transformer.transformer_blocks)] * len(encodings))
                self._complete_tails(encodings)
                self._wait()
        except OutOfMemory:
            self.prefixes.clear()
            raise
        return [0 if each.positive.is_complete else each.positive.before.blocks_left for each in encodings]

    def _advance_heads(self, encodings: Sequence[Encoding], pieces: Sequence[int]) -> None:
        """Compute pieces of the pictures' prefixes, one forward for those that are equally far; keep complete ones."""
        latents = {each.positive.before: each.references for each in encodings}
        shares: dict[Prefix, int] = {}
        for each, count in zip(encodings, pieces, strict=True):
            head = each.positive.before
            if head is not None and not head.is_complete:
                shares[head] = max(shares.get(head, 0), min(count, head.blocks_left))
        for left, count in dict.fromkeys((head.blocks_left, count) for head, count in shares.items()):
            some = [head for head, share in shares.items() if (head.blocks_left, share) == (left, count)]
            self._advance(some, count)
            for head in some:
                self._keep(head, latents[head])

    def _keep(self, head: Prefix, references: torch.Tensor) -> None:
        """Keep a complete prefix for later edits, if it may be shared."""
        if head.is_complete and head.key is not None:
            self.prefixes.put(head.key, CachedPictures(head, references))

    def _advance(self, heads: Sequence[Prefix], blocks: int) -> None:
        """Compute so many blocks of prefixes that are equally far, and measure them."""
        start_s = time.perf_counter()
        prefill(self.transformer, heads, blocks)
        self._wait()
        tokens = sum(head.own_tokens for head in heads)
        self._prefill_s = (time.perf_counter() - start_s) / tokens * heads[0].blocks / blocks

    def _complete_tails(self, encodings: Sequence[Encoding]) -> None:
        """Compute the texts behind complete prefixes of pictures, in one forward."""
        ready = [each for each in encodings if each.positive.before is None or each.positive.before.is_complete]
        tails = [tail for each in ready for tail in (each.positive, each.negative) if tail is not None]
        unfinished = [tail for tail in tails if not tail.is_complete]
        if unfinished:
            prefill(self.transformer, unfinished)

    def _wait(self) -> None:
        """Wait for the device, so that a time is that of its work."""
        if self._execution_device.type == "cuda":
            torch.cuda.synchronize(self._execution_device)

    def _rows_of(self, state: SampleState) -> tuple[DecodeRow, ...]:
        return tuple(DecodeRow(state.grids[0], prefix.all_parts) for prefix in looks_at(state))

    def _lay_out(self, rows: Sequence[DecodeRow], adapters: Sequence[AdapterScales]) -> DecodeLayout:
        return DecodeLayout(rows, self.transformer, self._execution_device)

    def _forward(self, states: Sequence[SampleState], plan: Plan, times: torch.Tensor) -> torch.Tensor:
        latents = torch.cat([states[index].latents for index, _ in plan.rows])
        # Not in the plan, which would keep those of samples that have left.
        prefixes = [looks_at(states[index])[place] for index, place in plan.rows]
        return decode(self.transformer, latents, times, plan.layout, prefixes)

    def _guide(self, positive: torch.Tensor, negative: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        guided: torch.Tensor = negative + scale * (positive - negative)
        return guided

    def _levels(self, steps: int) -> Sequence[float]:
        own = self.config.sample_sigmas
        return own if own is not None and len(own) == steps else super()._levels(steps)


class _Cut:
    """The texts of an edit, cut at its pictures: the head ends with the last picture, and the tail follows it.

    The head is the same for every prompt, since nothing in it attends to what follows. Without pictures it is empty.
    """

    def __init__(
        self, prepared: Prepared, dropped: int, pixels_per_token: int, picture_token: int, blocks: int
    ) -> None:
        self.pictures: tuple[Grid, ...] = tuple(
            (pixels.shape[-2] // pixels_per_token, pixels.shape[-1] // pixels_per_token) for pixels in prepared.pixels
        )
        slots = (prepared.texts[0][dropped:] == picture_token).nonzero().flatten().tolist()
        counts = [height * width // 4 for height, width in self.pictures]
        self._blocks = blocks
        self._texts: list[tuple[int, int]] = []
        """Where the text before each picture begins and ends."""
        self._end = 0
        for count in counts:
            start = slots[0]
            self._texts.append((self._end, start))
            self._end = start + count
            slots = slots[count:]

    def head(self, text: torch.Tensor, references: torch.Tensor, key: Hashable | None) -> Prefix:
        """Return what is the same for all texts. `text`: states (tokens × width); `references`: latents end to end."""
        latents = torch.split(references, [height * width for height, width in self.pictures])
        parts: list[Part] = []
        contents: list[torch.Tensor] = []
        for (start, end), grid, picture in zip(self._texts, self.pictures, latents, strict=True):
            parts += [end - start, grid]
            contents += [text[start:end], picture]
        return Prefix(tuple(parts), tuple(contents), self._blocks, key=key)

    def tail(self, text: torch.Tensor, head: Prefix | None) -> Prefix:
        """Return the text behind the pictures."""
        rest = text[self._end :]
        return Prefix((len(rest),), (rest,), self._blocks, head)
