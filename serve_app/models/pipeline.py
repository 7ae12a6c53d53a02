"""The stepwise pipeline: diffusers' pipelines for edits, split into encode, start, step, preview and decode.

Each stage takes any number of samples of any sizes. A row of the packed forward is one sample, or its unguided twin.
This module expands samples into rows itself, since diffusers 0.42 pairs variants with the wrong picture.
"""

import math
import threading
from collections.abc import Iterator, Sequence
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
from serve_app.models.adapters import Adapters, share_out
from serve_app.models.device import is_out_of_memory, translated_errors
from serve_app.models.packed import Grid, Layout, RowShape, Stream, pack, step_cost
from serve_app.models.patches import skip_absent_frames
from serve_app.models.text_encoder import SeenPicture, read_texts
from serve_app.models.vision import merge_windows
from serve_app.request import Mask, Pixels

_FIXED_SHIFT = {"use_dynamic_shifting": True, "time_shift_type": "exponential", "shift_terminal": None}

NATIVE_AREA = 1024 * 1024
"""Pixels of a picture at Qwen-Image-Edit's native size."""


PreparedReference = tuple[SeenPicture, torch.Tensor]
"""A reference for the text encoder, and for the VAE (1 × 3 × height × width)."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A condition as tensors on the CPU: the input of `encode`.

    `texts`: token ids of the prompt and, with guidance, of the negative prompt. `seen`: the references for the text
    encoder. `pixels` (each 1 × 3 × height × width): the references for the VAE. `mask`: as in Encoding.
    """

    texts: tuple[torch.Tensor, ...]
    seen: tuple[SeenPicture, ...]
    pixels: tuple[torch.Tensor, ...]
    mask: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoded condition that all variants of a picture share.

    `positive`, `negative`: texts (tokens × width). `references`: latents of the references end to end (tokens × 64).
    `mask`: which latents of the output may change (bool, tokens × 64); None: all.
    """

    positive: torch.Tensor
    negative: torch.Tensor | None
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
    """The stages of a pipeline for edits, for a class that inherits them and then a pipeline of diffusers.

    from_pretrained, save_pretrained, LoRA and offload work as in diffusers. model_index.json stores `native_area`,
    `grid_positions` and `text_area` beside the components. `grid_positions`: whether the text encoder places a
    picture's tokens on a grid. The published text encoder was trained so, that of `builtin:tiny` not. `text_area`:
    pixels of a picture for the text encoder; None: those that the transformer reads.
    """

    max_references: ClassVar[int] = 1
    """The most pictures that one edit looks at, its own among them."""
    default_steps: ClassVar[int] = 50
    default_guidance: ClassVar[float] = 4.0
    default_text_area: ClassVar[int | None] = None

    # With offload, the autoencoder stays on the GPU: it is small, and previews call it between steps.
    model_cpu_offload_seq = "text_encoder->transformer"
    _exclude_from_cpu_offload: ClassVar = ["vae"]

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        processor: Any,
        transformer: Any,
        native_area: int = NATIVE_AREA,
        grid_positions: bool = True,
        text_area: int | None = None,
    ) -> None:
        super().__init__(scheduler, vae, text_encoder, tokenizer, processor, transformer)
        text_area = text_area or self.default_text_area
        self.register_to_config(native_area=native_area, grid_positions=grid_positions, text_area=text_area)
        merge_windows(text_encoder)
        skip_absent_frames(vae)
        pack(transformer)
        self.adapters = Adapters()
        self._last_plan: _Plan | None = None
        # Diffusers has a constant 64, which is right for the published tokenizer only.
        self.prompt_template_encode_start_idx = len(tokenizer(self._instructions)["input_ids"])
        # A fast tokenizer raises "Already borrowed" in a second thread (tokenizers 0.23).
        self._tokenizer_lock = threading.Lock()

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep text encoder and transformer in host memory; the one that runs takes the place of the other on the GPU.

        Diffusers also empties the GPU at the end of every call. Here other samples are in flight when one ends.
        """
        super().enable_model_cpu_offload(gpu_id, device)
        text_encoder, transformer = self._all_hooks
        text_encoder.hook.prev_module_hook = transformer

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.config.native_area, 2 * self.vae_scale_factor, self.config.text_area)

    @property
    def step_cost(self) -> StepCost:
        return step_cost(self.transformer)

    @property
    def _instructions(self) -> str:
        """The template's text before the pictures and the caller's text, which the transformer does not see."""
        raise NotImplementedError

    def _template(self, pictures: int) -> str:
        """Return the template for so many pictures, with a picture token for each and `{}` for the caller's text."""
        raise NotImplementedError

    def check(self, condition: Condition) -> None:
        """Raise InvalidInput for more references than the model takes, and for a text with more tokens than positions.

        Fast, and safe on any thread.
        """
        references = len(condition.references)
        if references > self.max_references:
            raise InvalidInput(self._too_many(references), param="references")
        views = [reference.view for reference in condition.references]
        merge = self._patcher.merge_size
        patches = sum(
            self._patcher.get_number_of_image_patches(view.text_size.height, view.text_size.width, {}) for view in views
        )
        sizes = [condition.output, *(view.size for view in views)]
        sides = [side for size in sizes for side in (size.width, size.height)]
        # A picture lies around position 0, and the text behind the longest half of a side.
        half = max(sides) // self.geometry.multiple // 2
        positions = self.transformer.pos_embed.pos_freqs.shape[0] - half - patches // merge**2
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
        seen = tuple(each for each, _ in prepared)
        patches = [int(grid.prod()) // self._patcher.merge_size**2 for _, grid in seen]
        texts = (
            [condition.prompt] if condition.negative_prompt is None else [condition.prompt, condition.negative_prompt]
        )
        return Prepared(
            texts=tuple(torch.tensor(self._tokenize(text, patches)) for text in texts),
            seen=seen,
            pixels=tuple(pixels for _, pixels in prepared),
            mask=None if condition.mask is None else self._prepare_mask(condition, condition.mask),
        )

    def _prepare_reference(self, reference: Reference) -> PreparedReference:
        """Return a reference for the text encoder and for the VAE."""
        view = reference.view
        picture = lay_on_white(resize(reference.picture, view.size, view.crop))
        seen = (
            picture
            if view.text_size == view.size
            else lay_on_white(resize(reference.picture, view.text_size, view.crop))
        )
        cut = self._patcher(images=[PIL.Image.fromarray(seen)], return_tensors="pt")
        pixels = self.image_processor.preprocess([PIL.Image.fromarray(picture)], view.size.height, view.size.width)
        return (cut["pixel_values"], cut["image_grid_thw"]), pixels

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
            ids: list[int] = self.tokenizer(_interleave(parts, [pad * count for count in patches]))["input_ids"]
        return ids

    def count_tokens(self, text: str) -> int:
        """Return the tokens of `text` alone: in the template, special tokens around it keep it apart."""
        with self._tokenizer_lock:
            return len(self.tokenizer(text)["input_ids"])

    @torch.no_grad()
    def encode(self, prepared: Sequence[Prepared]) -> list[Encoding]:
        """Encode texts and pictures of any sizes, with one call of the VAE for each reference size.

        A reference that several of them share is encoded once.
        """
        with translated_errors():
            texts = self._encode_texts(prepared)
            references = self._encode_references(prepared)
            masks = [None if each.mask is None else each.mask.to(self._execution_device) for each in prepared]
            return [
                Encoding(*each, reference, mask) for each, reference, mask in zip(texts, references, masks, strict=True)
            ]

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
            device=self._execution_device,
            pad=self.tokenizer.pad_token_id,
            grid_positions=self.config.grid_positions,
        )
        # Without the template's prefix. Copies, since a view would keep the texts of the whole batch.
        rows = [row[self.prompt_template_encode_start_idx :].clone() for row in rows]
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
        # New tensors, since a view would keep the latents of the whole batch.
        return [torch.cat([packed[id(each)] for each in of_one.pixels]) for of_one in prepared]

    @property
    def _channels(self) -> int:
        return int(self.transformer.config.in_channels) // 4

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
            multiple, shape = self.geometry.multiple, sample.shape
            grids = tuple(
                (size.height // multiple, size.width // multiple) for size in (shape.output, *shape.references)
            )
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
        levels = np.linspace(1.0, 1 / steps, steps) if own.sigmas is None else np.array(own.sigmas)
        timesteps, _ = retrieve_timesteps(scheduler, sigmas=levels, mu=mu)
        return scheduler.sigmas.tolist(), timesteps.tolist()

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

    def _plan(self, states: Sequence[SampleState]) -> "_Plan":
        """Return the plan of these samples, which is that of the last step unless a sample has joined or left."""
        shapes = tuple(_row_shapes(state) for state in states)
        adapters = tuple(state.adapters for state in states)
        if self._last_plan is None or (self._last_plan.shapes, self._last_plan.adapters) != (shapes, adapters):
            self._last_plan = _Plan(shapes, adapters, self.transformer, self._execution_device)
        return self._last_plan

    def _predict(
        self, states: Sequence[SampleState], plan: "_Plan", times: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """Return the velocities of the samples end to end (tokens × 64), guided where there is a negative text."""
        image = torch.cat(
            [part for index, _ in plan.rows for part in (states[index].latents, states[index].encoding.references)]
        )
        text = torch.cat([_texts(states[index])[place] for index, place in plan.rows])
        with self.adapters.applied(plan.shares):
            predicted = self.transformer(image, text, times.flatten().to(image.dtype) / 1000, plan.layout)
        velocities = dict(zip(plan.rows, plan.layout.output.split(predicted), strict=True))
        if plan.guided:
            positive, negative = (torch.cat([velocities[index, place] for index in plan.guided]) for place in (0, 1))
            combined = _guide(positive, negative, plan.pairs.per_token(scales.to(positive.dtype)))
            for index, velocity in zip(plan.guided, plan.pairs.split(combined), strict=True):
                velocities[index, 0] = velocity
        return torch.cat([velocities[index, 0] for index in range(len(states))])

    @torch.no_grad()
    def preview(self, states: Sequence[SampleState]) -> list[Pixels]:
        """Decode the clean latents that each sample's last prediction implies. Raises the errors of `decode`."""
        with translated_errors():
            clean = [
                state.latents if state.velocity is None else state.latents - state.sigmas[state.step] * state.velocity
                for state in states
            ]
            return self._decode_latents(clean, [state.shape.output for state in states])

    @torch.no_grad()
    def decode(self, states: Sequence[SampleState]) -> list[Pixels]:
        """Decode finished samples. Raises NotFinite if latents hold NaN or infinity."""
        with translated_errors():
            sizes = [state.shape.output for state in states]
            return self._decode_latents([state.latents for state in states], sizes)

    def _decode_latents(self, latents: Sequence[torch.Tensor], sizes: Sequence[Size]) -> list[Pixels]:
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

    def _decode_by_size(self, latents: Sequence[torch.Tensor], sizes: Sequence[Size]) -> list[Pixels]:
        """Decode latents with one call of the VAE for each size."""
        pictures: dict[int, Pixels] = {}
        for size in dict.fromkeys(sizes):
            indices = [index for index, other in enumerate(sizes) if other == size]
            pictures.update(zip(indices, self._decode_one_size([latents[i] for i in indices], size), strict=True))
        return [pictures[index] for index in range(len(sizes))]

    def _decode_one_size(self, latents: Sequence[torch.Tensor], size: Size) -> list[Pixels]:
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


class _Plan:
    """How a set of samples is stepped: what stays the same until one of them leaves, or another joins.

    `shapes`: for each sample, that of its row and, if it is guided, of its unguided twin. `rows`: those of the forward
    in their order, by sample and place among its texts. `guided`: the samples with a twin. `samples`, `pairs`: the
    outputs' tokens of all samples, and of the guided ones. `shares`: those of the samples' adapters.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[RowShape, ...]],
        adapters: Sequence[AdapterScales],
        transformer: Any,
        device: torch.device,
    ) -> None:
        self.shapes, self.adapters = tuple(shapes), tuple(adapters)
        rows = [(index, place) for index, of_sample in enumerate(shapes) for place in range(len(of_sample))]
        # Neighbours with equally many tokens share an attention call.
        self.rows = sorted(rows, key=lambda row: shapes[row[0]][row[1]].tokens)
        self.guided = [index for index, of_sample in enumerate(shapes) if len(of_sample) == 2]
        self.layout = Layout([shapes[index][place] for index, place in self.rows], transformer, device)
        self.shares = share_out([adapters[index] for index, _ in self.rows], self.layout, transformer.zero_cond_t)
        lengths = [of_sample[0].output_tokens for of_sample in shapes]
        self.samples = Stream([(length, index) for index, length in enumerate(lengths)], device)
        self.pairs = Stream([(lengths[index], place) for place, index in enumerate(self.guided)], device)
        self._device = device

    def numbers(self, states: Sequence[SampleState]) -> tuple[torch.Tensor, ...]:
        """Return the timestep of each row, the guidance of each guided sample, and each sample's change of sigma.

        Columns of float32 on the device, in one copy to it.
        """
        times = [states[index].timesteps[states[index].step] for index, _ in self.rows]
        scales = [states[index].guidance for index in self.guided]
        moves = [state.sigmas[state.step + 1] - state.sigmas[state.step] for state in states]
        column = torch.tensor([*times, *scales, *moves], dtype=torch.float32, device=self._device).view(-1, 1)
        return torch.split(column, [len(times), len(scales), len(moves)])


def _interleave(texts: Sequence[str], between: Sequence[str]) -> str:
    """Return the texts with the others between them."""
    return "".join(part for pair in zip(texts, (*between, ""), strict=True) for part in pair)


def _texts(state: SampleState) -> list[torch.Tensor]:
    """Return the text of a sample's row and, if it is guided, of its twin (tokens × width)."""
    encoding = state.encoding
    return [encoding.positive] if encoding.negative is None else [encoding.positive, encoding.negative]


def _row_shapes(state: SampleState) -> tuple[RowShape, ...]:
    return tuple(RowShape(state.grids[0], state.grids[1:], len(text)) for text in _texts(state))


def _keep(state: SampleState, moved: torch.Tensor) -> torch.Tensor:
    """Return a copy of the latents after a step; outside a mask those of the picture, as noisy as the others."""
    mask, noise = state.encoding.mask, state.noise
    if mask is None or noise is None:
        return moved.clone()
    picture = state.encoding.references[: len(moved)].float()
    kept = torch.lerp(picture, noise.float(), state.sigmas[state.step + 1])
    return torch.where(mask, moved, kept.to(moved.dtype))


def _guide(positive: torch.Tensor, negative: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Apply classifier-free guidance and rescale to the positive prediction's norm, as QwenImageEditPipeline does."""
    combined = negative + scale * (positive - negative)
    wanted, got = (torch.linalg.vector_norm(tensor, dim=-1, keepdim=True) for tensor in (positive, combined))
    rescaled: torch.Tensor = combined * (wanted / got)
    return rescaled


@contextmanager
def _clearing_cache_on_failure(vae: Any) -> Iterator[None]:
    """Clear the cache of `vae` if a pass fails: it would keep the inputs of all convolutions (diffusers 0.42)."""
    try:
        yield
    except BaseException:
        vae.clear_cache()
        raise
