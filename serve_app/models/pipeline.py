"""The stepwise pipeline: diffusers' QwenImageEditPipeline with its call cut into encode, start, step, preview, decode.

Each stage takes any number of samples, which need share nothing but their shape. A row of the transformer's batch is
one sample (or its negative prompt), expanded by us: diffusers 0.42 pairs variants with the wrong picture.
"""

import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import QwenImageEditPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_shift, retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor
from torch.nn.utils.rnn import pad_sequence

from serve_app.engine.scheduler import Condition, Sample, Shape
from serve_app.errors import DeviceLost, InvalidInput, NotFinite, OutOfMemory
from serve_app.images import Geometry
from serve_app.models.patches import attend_by_text_length, place_on_grid, skip_absent_frames
from serve_app.request import Pixels

NATIVE_AREA = 1024 * 1024
"""Pixels that Qwen-Image-Edit was made for."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A condition as the model reads it, on the CPU: ids of the text and, with guidance, the negative text; the
    picture's patches with their grid (1 × 3) for the text encoder, and its pixels (1 × 3 × height × width) for the VAE.
    """

    texts: tuple[torch.Tensor, ...]
    patches: torch.Tensor
    grid: torch.Tensor
    pixels: torch.Tensor


@dataclass(frozen=True, slots=True)
class Encoding:
    """What the variants of one picture share: text (tokens × width), negative text, reference latents (tokens × 64)."""

    positive: torch.Tensor
    negative: torch.Tensor | None
    reference: torch.Tensor


@dataclass(slots=True, eq=False)
class SampleState:
    """One sample on its way: packed latents (tokens × 64), its own schedule, and the last prediction."""

    encoding: Encoding
    shape: Shape
    guidance: float
    sigmas: list[float]
    timesteps: list[float]
    latents: torch.Tensor
    velocity: torch.Tensor | None = None
    step: int = 0


class StepwiseQwenImageEditPipeline(QwenImageEditPipeline):  # type: ignore[misc]
    """Still the diffusers pipeline: from_pretrained, save_pretrained, LoRA and offload work as there.

    `native_area` and `grid_positions` are kept in model_index.json beside the components. `grid_positions`: whether the
    text encoder has a picture's tokens on a grid, as the published one was trained; that of `builtin:tiny` was not.
    """

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
    ) -> None:
        super().__init__(scheduler, vae, text_encoder, tokenizer, processor, transformer)
        self.register_to_config(native_area=native_area, grid_positions=grid_positions)
        if grid_positions:
            place_on_grid(text_encoder)
        skip_absent_frames(vae)
        attend_by_text_length(transformer)
        self.masks_texts = False
        """Whether texts of unequal lengths meet in one masked attention, which is one shape to compile, or in runs."""
        # 64 in diffusers, which is right for the published tokenizer only.
        prefix = self.prompt_template_encode.split("<|vision_start|>")[0]
        self.prompt_template_encode_start_idx = len(tokenizer(prefix)["input_ids"])
        # A fast tokenizer refuses a second thread ("Already borrowed", tokenizers 0.23).
        self._tokenizer_lock = threading.Lock()

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.config.native_area, 2 * self.vae_scale_factor)

    def check(self, condition: Condition) -> None:
        """Raise InvalidInput for a text longer than the model's positions. Cheap, and safe on any thread."""
        reference, merge = condition.reference, self._patcher.merge_size
        patches = self._patcher.get_number_of_image_patches(reference.height, reference.width, {})
        longest_side = max(reference.width, reference.height) // self.geometry.multiple
        positions = self.transformer.pos_embed.pos_freqs.shape[0] - longest_side - patches // merge**2
        for param in ("prompt", "negative_prompt"):
            tokens = len(self._tokenize(getattr(condition, param) or "", patches=1))
            if tokens > positions:
                raise InvalidInput(f"{param}: {tokens} tokens; this model takes at most {positions}", param=param)

    @property
    def _patcher(self) -> Any:
        """What cuts pictures into patches for the text encoder."""
        return self.processor.image_processor

    def prepare(self, condition: Condition) -> Prepared:
        """Resize, cut into patches and tokenize, on the CPU: a tenth of a second for a large picture."""
        size = condition.reference
        picture = self.image_processor.resize(PIL.Image.fromarray(condition.picture), size.height, size.width)
        cut = self._patcher(images=[picture], return_tensors="pt")
        grid = cut["image_grid_thw"]
        patches = int(grid.prod()) // self._patcher.merge_size**2
        texts = (
            [condition.prompt] if condition.negative_prompt is None else [condition.prompt, condition.negative_prompt]
        )
        return Prepared(
            texts=tuple(torch.tensor(self._tokenize(text, patches)) for text in texts),
            patches=cut["pixel_values"],
            grid=grid,
            pixels=self.image_processor.preprocess([picture], size.height, size.width),
        )

    def _tokenize(self, text: str, patches: int) -> list[int]:
        """The template with the text, and the picture's place as wide as its patches: as Qwen2VLProcessor does it."""
        pad = self.processor.image_token
        with self._tokenizer_lock:
            ids: list[int] = self.tokenizer(self.prompt_template_encode.replace(pad, pad * patches).format(text))[
                "input_ids"
            ]
        return ids

    @torch.no_grad()
    def encode(self, prepared: Sequence[Prepared]) -> list[Encoding]:
        """Texts and pictures of any sizes, in as few calls as there are reference sizes."""
        with _translated_errors():
            texts = self._encode_texts(prepared)
            references = self._encode_references(prepared)
            return [Encoding(*text, reference) for text, reference in zip(texts, references, strict=True)]

    def _encode_texts(self, prepared: Sequence[Prepared]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Text and negative text of each, tokens × width: as `_get_qwen_prompt_embeds` of QwenImageEditPipeline."""
        guided = [index for index, each in enumerate(prepared) if len(each.texts) == 2]
        pictures = [*prepared, *(prepared[index] for index in guided)]
        texts = [*(each.texts[0] for each in prepared), *(prepared[index].texts[1] for index in guided)]
        rows = self._read(texts, pictures)
        negatives = dict(zip(guided, rows[len(prepared) :], strict=True))
        return [(row, negatives.get(index)) for index, row in enumerate(rows[: len(prepared)])]

    def _read(self, texts: Sequence[torch.Tensor], pictures: Sequence[Prepared]) -> list[torch.Tensor]:
        """The text encoder's last hidden states, without the template's beginning. Each text sees its own picture."""
        device, lengths = self._execution_device, [len(text) for text in texts]
        mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        outputs = self.text_encoder(
            input_ids=pad_sequence(list(texts), batch_first=True, padding_value=self.tokenizer.pad_token_id).to(device),
            attention_mask=mask.long().to(device),
            pixel_values=torch.cat([picture.patches for picture in pictures]).to(device),
            image_grid_thw=torch.cat([picture.grid for picture in pictures]).to(device),
            output_hidden_states=True,
            # Nobody reads the logits.
            logits_to_keep=1,
        )
        hidden, first = outputs.hidden_states[-1].to(self.text_encoder.dtype), self.prompt_template_encode_start_idx
        return [row[first:length] for row, length in zip(hidden, lengths, strict=True)]

    def _encode_references(self, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        packed: dict[int, torch.Tensor] = {}
        for shape in {each.pixels.shape for each in prepared}:
            indices = [index for index, each in enumerate(prepared) if each.pixels.shape == shape]
            pixels = torch.cat([prepared[index].pixels for index in indices])
            pixels = pixels.unsqueeze(2).to(self._execution_device, self.vae.dtype)
            with _forgetting(self.vae):
                latents = self._encode_vae_image(pixels, generator=None)
            rows = self._pack_latents(latents, len(indices), self._channels, *latents.shape[3:])
            packed.update(zip(indices, rows.to(self.transformer.dtype), strict=True))
        return [packed[index] for index in range(len(prepared))]

    @property
    def _channels(self) -> int:
        return int(self.transformer.config.in_channels) // 4

    @torch.no_grad()
    def start(self, encoding: Encoding, sample: Sample) -> SampleState:
        """A sample's noise and schedule. The noise is drawn on the CPU: the same seed, the same on any device."""
        with _translated_errors():
            height = sample.shape.output.height // self.vae_scale_factor
            width = sample.shape.output.width // self.vae_scale_factor
            noise = randn_tensor(
                (1, 1, self._channels, height, width),
                generator=torch.Generator("cpu").manual_seed(sample.seed),
                device=encoding.reference.device,
                dtype=encoding.reference.dtype,
            )
            latents = self._pack_latents(noise, 1, self._channels, height, width)[0]
            sigmas, timesteps = self._schedule(sample.steps, tokens=latents.shape[0])
            return SampleState(encoding, sample.shape, sample.guidance, sigmas, timesteps, latents)

    def _schedule(self, steps: int, tokens: int) -> tuple[list[float], list[float]]:
        config = self.scheduler.config
        if steps == 1:
            # Stretching a single sigma to `shift_terminal` divides zero by zero (diffusers 0.42).
            return [1.0, 0.0], [float(config.num_train_timesteps)]
        mu = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        timesteps, _ = retrieve_timesteps(self.scheduler, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        return self.scheduler.sigmas.tolist(), timesteps.tolist()

    @torch.no_grad()
    def step(self, states: Sequence[SampleState]) -> None:
        """One denoising step of every sample, in one forward. A step that raises leaves all states as they were."""
        with _translated_errors():
            velocity = self._predict(states)
            moves = [state.sigmas[state.step + 1] - state.sigmas[state.step] for state in states]
            latents = torch.stack([state.latents for state in states])
            # The Euler step of FlowMatchEulerDiscreteScheduler, each row with its own sigmas.
            moved = (latents.float() + _column(moves, latents) * velocity.float()).to(latents.dtype)
            # Kernels run behind Python's back: wait, so that errors and timings belong to this step.
            if moved.is_cuda:
                torch.cuda.synchronize(moved.device)
        for state, row, prediction in zip(states, moved, velocity, strict=True):
            state.latents, state.velocity, state.step = row, prediction, state.step + 1

    def _predict(self, states: Sequence[SampleState]) -> torch.Tensor:
        """The velocity of each sample (samples × tokens × 64), guided where its scale asks for it."""
        guided = [index for index, state in enumerate(states) if state.encoding.negative is not None]
        rows = [*states, *(states[index] for index in guided)]
        texts = [state.encoding.positive for state in states]
        texts += [negative for state in states if (negative := state.encoding.negative) is not None]
        # Neighbours with texts of one length share an attention.
        order = sorted(range(len(rows)), key=lambda index: texts[index].shape[0])
        ordered = self._forward([rows[index] for index in order], [texts[index] for index in order])
        predicted = torch.empty_like(ordered)
        predicted[order] = ordered
        velocity, negative = predicted[: len(states)], predicted[len(states) :]
        if guided:
            scale = _column([states[index].guidance for index in guided], velocity).to(velocity.dtype)
            velocity[guided] = _guide(velocity[guided], negative, scale)
        return velocity

    def _forward(self, rows: Sequence[SampleState], texts: Sequence[torch.Tensor]) -> torch.Tensor:
        shape, multiple = rows[0].shape, self.geometry.multiple
        grid = [(1, size.height // multiple, size.width // multiple) for size in (shape.output, shape.reference)]
        hidden = torch.stack([torch.cat([row.latents, row.encoding.reference]) for row in rows])
        timesteps = _column([row.timesteps[row.step] for row in rows], hidden).flatten()
        with self.transformer.cache_context("edit"):
            predicted: torch.Tensor = self.transformer(
                hidden_states=hidden,
                timestep=timesteps.to(hidden.dtype) / 1000,
                **self._as_batch(texts),
                img_shapes=[grid] * len(rows),
                return_dict=False,
            )[0]
        return predicted[:, : rows[0].latents.shape[0]]

    def _as_batch(self, texts: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Texts (tokens × width) of any lengths as arguments of the transformer, which must not see the padding."""
        lengths = [text.shape[0] for text in texts]
        padded = pad_sequence(list(texts), batch_first=True)
        if len(set(lengths)) == 1:
            return {"encoder_hidden_states": padded}
        if self.masks_texts:
            ends = torch.tensor(lengths, device=padded.device)[:, None]
            mask = torch.arange(max(lengths), device=padded.device)[None] < ends
            return {"encoder_hidden_states": padded, "encoder_hidden_states_mask": mask}
        runs = [(len(list(run)), length) for length, run in groupby(lengths)]
        return {"encoder_hidden_states": padded, "attention_kwargs": {"text_runs": runs}}

    @torch.no_grad()
    def preview(self, states: Sequence[SampleState]) -> list[Pixels]:
        """What each sample would be if its last prediction were exact: the clean latents, decoded. As `decode`."""
        with _translated_errors():
            clean = [
                state.latents if state.velocity is None else state.latents - state.sigmas[state.step] * state.velocity
                for state in states
            ]
            return self._decode_latents(clean, states[0].shape)

    @torch.no_grad()
    def decode(self, states: Sequence[SampleState]) -> list[Pixels]:
        """The pictures of finished samples of one shape. Raises NotFinite where one of them is not a number."""
        with _translated_errors():
            pictures = self._decode_latents([state.latents for state in states], states[0].shape)
            self.maybe_free_model_hooks()
            return pictures

    def _decode_latents(self, latents: Sequence[torch.Tensor], shape: Shape) -> list[Pixels]:
        size, config, packed = shape.output, self.vae.config, torch.stack(list(latents))
        if not packed.isfinite().all():
            raise NotFinite("the model produced values that are not numbers")
        batch = self._unpack_latents(packed, size.height, size.width, self.vae_scale_factor)
        batch = batch.to(self.vae.dtype)
        mean, std = (
            torch.tensor(values, device=batch.device, dtype=batch.dtype).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        with _forgetting(self.vae):
            decoded = self.vae.decode(batch * std + mean, return_dict=False)[0][:, :, 0]
        pixels = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return list(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One value a row, float32, where `like` is: the pipeline's own device is found by a walk through all modules."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1)


def _guide(positive: torch.Tensor, negative: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance, rescaled to the norm of the conditional prediction, as QwenImageEditPipeline does."""
    combined = negative + scale * (positive - negative)
    wanted, got = (torch.linalg.vector_norm(tensor, dim=-1, keepdim=True) for tensor in (positive, combined))
    rescaled: torch.Tensor = combined * (wanted / got)
    return rescaled


@contextmanager
def _forgetting(vae: Any) -> Iterator[None]:
    """Where it fails: diffusers (0.42) keeps the inputs of all its convolutions until a pass ends well."""
    try:
        yield
    except BaseException:
        vae.clear_cache()
        raise


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn what torch raises into our tree, so that the engine need not know torch."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            if any(sign in str(error) for sign in _LOST):
                raise DeviceLost("the GPU failed") from error
            raise
        # The frames of the stage hold what it had made, and the error holds them, for as long as anybody keeps it.
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        raise OutOfMemory("out of memory" if _NO_CPU_MEMORY in str(error) else "CUDA out of memory") from error


_LOST = ("CUDA error", "cuDNN error", "CUBLAS_STATUS_")
_NO_CPU_MEMORY = "DefaultCPUAllocator"
# What is not allocated by torch's own allocator says so in words only.
_NO_MEMORY = (_NO_CPU_MEMORY, "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _NO_MEMORY)
