"""The stepwise pipeline: diffusers' pipelines for edits, split into encode, start, step, preview and decode.

Each stage takes any number of samples of any sizes. What the families of models have in common is here; how they encode
an edit, and how the transformer steps its rows, is in serve_app.models.edit and serve_app.models.qwen_image_21.
"""

import math
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_shift, retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor

from serve_app.engine.sampling import AdapterScales, Sampling
from serve_app.engine.scheduler import Condition, Reference, Sample, Shape, StepCost
from serve_app.errors import InvalidInput, NotFinite
from serve_app.images.geometry import Geometry, Size
from serve_app.images.masks import resize_mask
from serve_app.images.pixels import lay_on_white, resize
from serve_app.models.adapters import Adapters
from serve_app.models.device import is_out_of_memory, translated_errors
from serve_app.models.packed import Grid
from serve_app.models.plan import Plan, Row
from serve_app.models.text_encoder import Embed, SeenPicture, read_texts
from serve_app.request import Mask, Picture

_FIXED_SHIFT = {"use_dynamic_shifting": True, "time_shift_type": "exponential", "shift_terminal": None}

NATIVE_AREA = 1024 * 1024
"""Pixels of a picture at the native size of the published models."""


PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
"""The place of one picture in a template, whose middle token stands for all of the picture's tokens."""


@dataclass(frozen=True, slots=True)
class PreparedReference:
    """A reference for the text encoder, and for the VAE (1 × channels × height × width).

    `digest`: of what both read, for families that take over prefixes; else empty.
    """

    seen: SeenPicture
    pixels: torch.Tensor
    digest: bytes


@dataclass(frozen=True, slots=True)
class Prepared:
    """A condition as tensors on the CPU: the input of `encode`.

    `texts`: token ids of the prompt and, with guidance, of the negative prompt. `seen`: the references for the text
    encoder. `pixels` (each 1 × channels × height × width): the references for the VAE. `mask`: as in Encoding. `key`:
    equal for conditions that may take over each other's prefix of their references; None: none may.
    """

    texts: tuple[torch.Tensor, ...]
    seen: tuple[SeenPicture, ...]
    pixels: tuple[torch.Tensor, ...]
    mask: torch.Tensor | None = None
    key: Hashable | None = None


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoded condition that all variants of a picture share.

    `positive`, `negative`: what the rows of a sample and of its unguided twin look at, as the family has it; None: no
    guidance. `references`: latents of the references end to end (tokens × 64).
    `mask`: which latents of the output may change (bool, tokens × 64); None: all.
    """

    positive: Any
    negative: Any
    references: torch.Tensor
    mask: torch.Tensor | None = None


@dataclass(slots=True, eq=False)
class SampleState:
    """The state of one sample: packed latents (tokens × 64), its own noise schedule, and the last prediction.

    `noise`: the first latents, with a mask: what it keeps is covered by this noise after every step but the last.
    """

    encoding: Encoding
    shape: Shape
    grids: tuple[Grid, ...]
    """The sizes in tokens of the output and of its references."""
    guidance: float
    adapters: AdapterScales
    sigmas: list[float]
    timesteps: list[float]
    latents: torch.Tensor
    noise: torch.Tensor | None = None
    velocity: torch.Tensor | None = None
    step: int = 0


class StepwisePipeline(DiffusionPipeline):  # type: ignore[misc]
    """The stages of a pipeline for edits, for a family's class and then a pipeline of diffusers to be inherited with.

    from_pretrained, save_pretrained, LoRA and offload work as in diffusers.
    """

    weights: ClassVar[dict[str, Any]]
    """The classes of the parts that have weights."""
    max_references: ClassVar[int] = 1
    """The most pictures that one edit looks at, its own among them."""
    default_guidance: ClassVar[float] = 4.0
    _cutting: ClassVar[dict[str, Any]] = {}
    """Options of the processor that cuts pictures into patches."""

    # With offload, the autoencoder stays on the GPU: it is small, and previews call it between steps.
    model_cpu_offload_seq = "text_encoder->transformer"
    _exclude_from_cpu_offload: ClassVar = ["vae"]

    def _set_up(self) -> None:
        """Prepare what the stages need. For the end of a family's constructor."""
        self.adapters = Adapters()
        self._last_plan: Plan | None = None
        # A fast tokenizer raises "Already borrowed" in a second thread (tokenizers 0.23).
        self._tokenizer_lock = threading.Lock()

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep text encoder and transformer in host memory; the one that runs takes the place of the other on the GPU.

        Diffusers also empties the GPU at the end of every call. Here other samples are in flight when one ends.
        """
        super().enable_model_cpu_offload(gpu_id, device)
        text_encoder, transformer = self._all_hooks
        text_encoder.hook.prev_module_hook = transformer

    # ---- what a family has of its own ----

    def attend_at_once(self) -> None:
        """Attend to the rows of a forward in one call, however many differ. For CUDA and 16-bit types."""
        raise NotImplementedError

    @property
    def default_steps(self) -> int:
        raise NotImplementedError

    @property
    def geometry(self) -> Geometry:
        raise NotImplementedError

    @property
    def step_cost(self) -> StepCost:
        raise NotImplementedError

    @property
    def makes_alpha(self) -> bool:
        """Whether decoded pictures are RGBA, with transparency that the model made."""
        return False

    @property
    def generates(self) -> bool:
        """Whether a picture can be made from a text alone, without a reference."""
        return False

    @property
    def _channels(self) -> int:
        """The channels of a latent."""
        raise NotImplementedError

    @property
    def _text_tokenizer(self) -> Any:
        raise NotImplementedError

    def _template(self, pictures: int) -> str:
        """Return the template for so many pictures, with a picture token for each and `{}` for the caller's text."""
        raise NotImplementedError

    def _text_positions(self, condition: Condition) -> int:
        """Return how many tokens a text may have beside the pictures, its template among them."""
        raise NotImplementedError

    def _for_vae(self, picture: Picture) -> Picture:
        """Return a picture (RGB or RGBA) with the channels that the VAE reads."""
        raise NotImplementedError

    @property
    def _instruction_tokens(self) -> int:
        """The tokens of the template's beginning, which the transformer does not see."""
        raise NotImplementedError

    @property
    def _embed(self) -> Embed:
        """What embeds pictures for the text encoder."""
        raise NotImplementedError

    @property
    def _grid_positions(self) -> bool:
        """Whether the text encoder places a picture's tokens on its grid."""
        return True

    def _digest(self, picture: PIL.Image.Image) -> bytes:
        """Return a digest of a picture as it is read."""
        return b""

    def _key(self, condition: Condition, digests: Sequence[bytes]) -> Hashable | None:
        """Return `key` of Prepared; `digests`: those of the references."""
        return None

    def _conditions(
        self,
        prepared: Sequence[Prepared],
        texts: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
        references: Sequence[torch.Tensor],
    ) -> Sequence[tuple[Any, Any]]:
        """Return `positive` and `negative` of each Encoding."""
        raise NotImplementedError

    def _rows_of(self, state: SampleState) -> tuple[Row, ...]:
        """Return the sizes of a sample's row and, if it is guided, of its twin, in the order of `looks_at`."""
        raise NotImplementedError

    def _lay_out(self, rows: Sequence[Any], adapters: Sequence[AdapterScales]) -> Any:
        """Return the layout of a forward with these rows of `_rows_of`, and their adapters."""
        raise NotImplementedError

    def _forward(self, states: Sequence[SampleState], plan: Plan, times: torch.Tensor) -> torch.Tensor:
        """Return the predicted velocities of the plan's rows (tokens × 64). `times`: rows, from 0 to 1."""
        raise NotImplementedError

    def _guide(self, positive: torch.Tensor, negative: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the guided velocities of tokens, by the scale of each (tokens × 1)."""
        raise NotImplementedError

    # ---- what all have ----

    def check(self, condition: Condition) -> None:
        """Raise InvalidInput for more references than the model takes, and for a text with more tokens than positions.

        Fast, and safe on any thread.
        """
        references = len(condition.references)
        if references > self.max_references:
            raise InvalidInput(self._too_many(references), param="references")
        positions = self._text_positions(condition)
        for param in ("prompt", "negative_prompt"):
            tokens = len(self._tokenize(getattr(condition, param) or "", [1] * references))
            if tokens > positions:
                raise InvalidInput(
                    f"{param}: the text has {tokens} tokens, more than the {max(0, positions)} that this model has for "
                    f"it beside an output of {condition.output}",
                    param=param,
                )

    def _too_many(self, references: int) -> str:
        if self.max_references == 1:
            return (
                "references: several pictures for one edit mean references, and this model takes one picture; to edit "
                "each picture on its own, send them as `images`"
            )
        return f"references: this model looks at {self.max_references - 1} beside each image, not {references - 1}"

    @property
    def _patcher(self) -> Any:
        """The processor that cuts pictures into patches for the text encoder."""
        return self.processor.image_processor

    def prepare(self, condition: Condition, shared: dict[Reference, PreparedReference] | None = None) -> Prepared:
        """Crop and resize the references, cut them into patches, and tokenize the texts: on the CPU.

        Takes up to 0.1 s for each reference. `shared`: the references that are prepared already; gets the others.
        """
        shared = {} if shared is None else shared
        for reference in condition.references:
            if reference not in shared:
                shared[reference] = self._prepare_reference(reference)
        prepared = [shared[reference] for reference in condition.references]
        seen = tuple(each.seen for each in prepared)
        patches = [int(grid.prod()) // self._patcher.merge_size**2 for _, grid in seen]
        return Prepared(
            texts=tuple(torch.tensor(self._tokenize(text, patches)) for text in condition.texts),
            seen=seen,
            pixels=tuple(each.pixels for each in prepared),
            mask=None if condition.mask is None else self._prepare_mask(condition, condition.mask),
            key=self._key(condition, [each.digest for each in prepared]),
        )

    def _prepare_reference(self, reference: Reference) -> PreparedReference:
        """Return a reference for the text encoder and for the VAE."""
        view = reference.view
        picture = resize(reference.picture, view.size, view.crop)
        seen = picture if view.text_size == view.size else resize(reference.picture, view.text_size, view.crop)
        cut = self._patcher(images=[PIL.Image.fromarray(lay_on_white(seen))], return_tensors="pt", **self._cutting)
        read = PIL.Image.fromarray(self._for_vae(picture))
        pixels = self.image_processor.preprocess([read], view.size.height, view.size.width)
        return PreparedReference((cut["pixel_values"], cut["image_grid_thw"]), pixels, self._digest(read))

    def _prepare_mask(self, condition: Condition, mask: Mask) -> torch.Tensor:
        """Return which latents may change: those that show any pixel that may."""
        width, height = (side // self.vae_scale_factor for side in (condition.output.width, condition.output.height))
        changes = resize_mask(mask, Size(width, height), condition.references[0].view.crop)
        latents = torch.from_numpy(changes.copy()).expand(1, self._channels, height, width)
        packed: torch.Tensor = self._pack_latents(latents.contiguous(), 1, self._channels, height, width)[0]
        return packed

    def _tokenize(self, text: str, patches: Sequence[int]) -> list[int]:
        """Tokenize the template with `text`, and with as many picture tokens as each picture has patches."""
        pad = self.processor.image_token
        parts = self._template(len(patches)).format(text).split(pad, len(patches))
        with self._tokenizer_lock:
            ids: list[int] = self._text_tokenizer(_interleave(parts, [pad * count for count in patches]))["input_ids"]
        return ids

    def count_tokens(self, text: str) -> int:
        """Return the tokens of `text` alone: in the template, special tokens around it keep it apart."""
        with self._tokenizer_lock:
            return len(self._text_tokenizer(text)["input_ids"])

    @torch.no_grad()
    def encode(self, prepared: Sequence[Prepared]) -> list[Encoding]:
        """Encode texts and pictures of any sizes, with one call of the VAE for each reference size.

        A reference that several of them share is encoded once.
        """
        with translated_errors():
            texts = self._encode_texts(prepared)
            references = self._encode_references(prepared)
            masks = [None if each.mask is None else each.mask.to(self._execution_device) for each in prepared]
            conditions = self._conditions(prepared, texts, references)
            return [
                Encoding(*each, reference, mask)
                for each, reference, mask in zip(conditions, references, masks, strict=True)
            ]

    def prefill(self, encodings: Sequence[Encoding], pieces: Sequence[int] | None = None) -> list[int]:
        """Compute so many further pieces of each encoding's prefix, or all of it. Return how many are left of each."""
        return [0] * len(encodings)

    def _encode_texts(self, prepared: Sequence[Prepared]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Encode the texts and negative texts, tokens × width. Both texts of a picture share its embedding."""
        guided = [index for index, each in enumerate(prepared) if len(each.texts) == 2]
        pictures = {id(picture): picture for each in prepared for picture in each.seen}
        places = {key: place for place, key in enumerate(pictures)}
        seen = [[places[id(picture)] for picture in each.seen] for each in prepared]
        rows = read_texts(
            self.text_encoder,
            [*(each.texts[0] for each in prepared), *(prepared[index].texts[1] for index in guided)],
            list(pictures.values()),
            [*seen, *(seen[index] for index in guided)],
            embed=self._embed,
            device=self._execution_device,
            pad=self._text_tokenizer.pad_token_id,
            grid_positions=self._grid_positions,
        )
        # Copies, since a view would keep the texts of the whole batch.
        rows = [row[self._instruction_tokens :].clone() for row in rows]
        negatives = dict(zip(guided, rows[len(prepared) :], strict=True))
        return [(row, negatives.get(index)) for index, row in enumerate(rows[: len(prepared)])]

    def _encode_references(self, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        """Encode the references of each, end to end (tokens × 64)."""
        pixels = {id(each): each for of_one in prepared for each in of_one.pixels}
        packed: dict[int, torch.Tensor] = {}
        for shape in dict.fromkeys(each.shape for each in pixels.values()):
            some = {key: each for key, each in pixels.items() if each.shape == shape}
            batch = torch.cat(list(some.values())).unsqueeze(2).to(self._execution_device, self.vae.dtype)
            with _clearing_cache_on_failure(self.vae):
                latents = self._encode_vae_image(batch, generator=None)
            rows = self._pack_latents(latents, len(some), self._channels, *latents.shape[3:])
            packed.update(zip(some, rows.to(self.transformer.dtype), strict=True))
        width = self.transformer.config.in_channels
        none = torch.zeros(0, width, device=self._execution_device, dtype=self.transformer.dtype)
        # New tensors, since a view would keep the latents of the whole batch.
        return [torch.cat([none, *(packed[id(each)] for each in of_one.pixels)]) for of_one in prepared]

    @torch.no_grad()
    def start(self, encoding: Encoding, sample: Sample) -> SampleState:
        """Draw a sample's noise and compute its schedule.

        The noise is drawn on the CPU, so that a seed gives the same noise on any device.
        """
        with translated_errors():
            height = sample.shape.output.height // self.vae_scale_factor
            width = sample.shape.output.width // self.vae_scale_factor
            drawn = randn_tensor(
                (1, 1, self._channels, height, width),
                generator=torch.Generator("cpu").manual_seed(sample.seed),
                device=encoding.references.device,
                dtype=encoding.references.dtype,
            )
            latents = self._pack_latents(drawn, 1, self._channels, height, width)[0]
            sampling = sample.sampling
            sigmas, timesteps = self._schedule(sampling, tokens=latents.shape[0])
            side, shape = self.geometry.token_side, sample.shape
            grids = tuple((size.height // side, size.width // side) for size in (shape.output, *shape.references))
            noise = None if encoding.mask is None else latents
            return SampleState(
                encoding, shape, grids, sampling.guidance, sampling.adapters, sigmas, timesteps, latents, noise
            )

    def _schedule(self, sampling: Sampling, tokens: int) -> tuple[list[float], list[float]]:
        """Return the noise levels, the last of them 0, and the timesteps of a sample with so many tokens."""
        steps, own = sampling.steps, sampling.schedule
        scheduler, config = self.scheduler, self.scheduler.config
        if steps == 1:
            # With a single sigma, diffusers 0.42 divides zero by zero when it stretches to `shift_terminal`.
            return [1.0, 0.0], [float(config.num_train_timesteps)]
        if own.shift is None:
            mu = calculate_shift(
                tokens,
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.15),
            )
        else:
            # The scheduler that distilled adapters are published with.
            mu = math.log(own.shift)
            scheduler = type(scheduler).from_config(config, **_FIXED_SHIFT)
        levels = self._levels(steps) if own.sigmas is None else own.sigmas
        timesteps, _ = retrieve_timesteps(scheduler, sigmas=np.array(levels), mu=mu)
        return scheduler.sigmas.tolist(), timesteps.tolist()

    def _levels(self, steps: int) -> Sequence[float]:
        """Return the noise levels of so many steps before the shift."""
        levels: list[float] = np.linspace(1.0, 1 / steps, steps).tolist()
        return levels

    @torch.no_grad()
    def step(self, states: Sequence[SampleState]) -> None:
        """Take one denoising step of every sample, in one forward. A step that raises leaves all states unchanged."""
        with translated_errors():
            plan = self._plan(states)
            # Before the forward, since a copy to the GPU waits for all that is queued there.
            times, scales, moves = plan.numbers(states)
            latents = torch.cat([state.latents for state in states])
            velocity = self._predict(states, plan, times, scales)
            # The Euler step of FlowMatchEulerDiscreteScheduler, with each row's own sigmas.
            steps = plan.samples.per_token(moves) * velocity.float()
            moved = (latents.float() + steps).to(latents.dtype)
            # Copies, since a sample that pauses would keep the latents of its whole batch.
            predictions = [row.clone() for row in plan.samples.split(velocity)]
            rows = [_keep(*pair) for pair in zip(states, plan.samples.split(moved), strict=True)]
            # Kernels run asynchronously: wait, so that errors and timings belong to this step.
            if moved.is_cuda:
                torch.cuda.synchronize(moved.device)
        for state, row, prediction in zip(states, rows, predictions, strict=True):
            state.latents, state.velocity, state.step = row, prediction, state.step + 1

    def _plan(self, states: Sequence[SampleState]) -> Plan:
        """Return the plan of these samples, which is that of the last step unless a sample has joined or left."""
        shapes, adapters = [self._rows_of(state) for state in states], [state.adapters for state in states]
        if self._last_plan is None or not self._last_plan.is_of(shapes, adapters):
            self._last_plan = Plan(shapes, adapters, self._lay_out, self._execution_device)
        return self._last_plan

    def _predict(
        self, states: Sequence[SampleState], plan: Plan, times: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """Return the velocities of the samples end to end (tokens × 64), guided where there is a negative text."""
        predicted = self._forward(states, plan, times.flatten().to(states[0].latents.dtype) / 1000)
        velocities = dict(zip(plan.rows, plan.layout.output.split(predicted), strict=True))
        if plan.guided:
            positive, negative = (torch.cat([velocities[index, place] for index in plan.guided]) for place in (0, 1))
            combined = self._guide(positive, negative, plan.pairs.per_token(scales.to(positive.dtype)))
            for index, velocity in zip(plan.guided, plan.pairs.split(combined), strict=True):
                velocities[index, 0] = velocity
        return torch.cat([velocities[index, 0] for index in range(len(states))])

    @torch.no_grad()
    def preview(self, states: Sequence[SampleState]) -> list[Picture]:
        """Decode the clean latents that each sample's last prediction implies. Raises the errors of `decode`."""
        with translated_errors():
            clean = [
                state.latents if state.velocity is None else state.latents - state.sigmas[state.step] * state.velocity
                for state in states
            ]
            return self._decode_latents(clean, [state.shape.output for state in states])

    @torch.no_grad()
    def decode(self, states: Sequence[SampleState]) -> list[Picture]:
        """Decode finished samples. Raises NotFinite if latents hold NaN or infinity."""
        with translated_errors():
            sizes = [state.shape.output for state in states]
            return self._decode_latents([state.latents for state in states], sizes)

    def _decode_latents(self, latents: Sequence[torch.Tensor], sizes: Sequence[Size]) -> list[Picture]:
        """Decode latents (tokens × 64) to pictures. If memory runs out, offloaded parts leave the GPU to the VAE."""
        hooks = getattr(self, "_all_hooks", [])
        try:
            return self._decode_by_size(latents, sizes)
        except RuntimeError as error:
            if not hooks or not is_out_of_memory(error):
                raise
        # Outside the clause, which would keep the tensors of the failed call.
        for hook in hooks:
            hook.offload()
        torch.cuda.empty_cache()
        return self._decode_by_size(latents, sizes)

    def _decode_by_size(self, latents: Sequence[torch.Tensor], sizes: Sequence[Size]) -> list[Picture]:
        """Decode latents with one call of the VAE for each size."""
        pictures: dict[int, Picture] = {}
        for size in dict.fromkeys(sizes):
            indices = [index for index, other in enumerate(sizes) if other == size]
            pictures.update(zip(indices, self._decode_one_size([latents[i] for i in indices], size), strict=True))
        return [pictures[index] for index in range(len(sizes))]

    def _decode_one_size(self, latents: Sequence[torch.Tensor], size: Size) -> list[Picture]:
        config, packed = self.vae.config, torch.stack(list(latents))
        if not packed.isfinite().all():
            raise NotFinite("the model produced values that are not numbers")
        batch = self._unpack_latents(packed, size.height, size.width, self.vae_scale_factor)
        batch = batch.to(self.vae.dtype)
        mean, std = (
            torch.tensor(values, device=batch.device, dtype=batch.dtype).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        with _clearing_cache_on_failure(self.vae):
            decoded = self.vae.decode(batch * std + mean, return_dict=False)[0][:, :, 0]
        pixels = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return list(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def looks_at(state: SampleState) -> list[Any]:
    """Return what the row of a sample looks at and, if it is guided, that of its twin."""
    encoding = state.encoding
    return [encoding.positive] if encoding.negative is None else [encoding.positive, encoding.negative]


def _interleave(texts: Sequence[str], between: Sequence[str]) -> str:
    """Return the texts with the others between them."""
    return "".join(part for pair in zip(texts, (*between, ""), strict=True) for part in pair)


def _keep(state: SampleState, moved: torch.Tensor) -> torch.Tensor:
    """Return a copy of the latents after a step; outside a mask those of the picture, as noisy as the others."""
    mask, noise = state.encoding.mask, state.noise
    if mask is None or noise is None:
        return moved.clone()
    picture = state.encoding.references[: len(moved)].float()
    kept = torch.lerp(picture, noise.float(), state.sigmas[state.step + 1])
    return torch.where(mask, moved, kept.to(moved.dtype))


@contextmanager
def _clearing_cache_on_failure(vae: Any) -> Iterator[None]:
    """Clear the cache of `vae` if a pass fails: it would keep the inputs of all convolutions (diffusers 0.42)."""
    try:
        yield
    except BaseException:
        vae.clear_cache()
        raise
