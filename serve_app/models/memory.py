"""How much memory a model takes of a GPU and of the host: its weights, as they are quantised, and its work.

The work was counted without a GPU, from PyTorch's shapes (`python -m benchmarks.gpu --fake`); no GPU has confirmed it.
"""

from dataclasses import dataclass

from serve_app.models.footprint import Weights
from serve_app.models.quantization import chosen, scheme
from serve_app.settings import AppSettings, ModelSettings

NATIVE_AREA = 1024 * 1024
"""Pixels of a picture at Qwen-Image-Edit's native size."""

# Values of the model's width that a step holds at most for each token, those of a text being a sixth of an edit's.
_VALUES_PER_TOKEN = 18.4
_TOKENS_WITH_TEXT = 1.18
_PIXELS_PER_TOKEN = 16 * 16
# Values that decoding, or encoding in tiles, holds at most for each pixel of an output.
_VALUES_PER_PIXEL = 1640
_TILED_VALUES_PER_PIXEL = 210
# An assumption: CUDA itself, what kernels take for themselves, weights made whole for one layer, and gaps.
RESERVE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a model with one guided edit of its native size, or as many tokens as `engine.batch_tokens` allows.

    `stored_bytes`: of all weights: in host memory if they are offloaded, or on a CPU. `weights_bytes`: of those that
    are on the GPU at once, at most. `prefix_bytes`: of the prefix of that edit, and of the cache of prefixes.
    """

    stored_bytes: int
    weights_bytes: int
    work_bytes: int
    prefix_bytes: int

    @property
    def gpu_bytes(self) -> int:
        return self.weights_bytes + self.work_bytes + self.prefix_bytes + RESERVE_BYTES


def estimate(settings: AppSettings, size: Weights, float_bytes: int) -> Memory:
    """Return the memory of a model on a GPU. `float_bytes`: those of a value that is not quantised."""
    stored = {part: _stored_bytes(part, size, settings.model, float_bytes) for part in size.parts}
    return Memory(
        stored_bytes=sum(stored.values()),
        weights_bytes=_on_gpu(stored, size, settings.model, float_bytes),
        work_bytes=_work_bytes(settings, size, float_bytes),
        prefix_bytes=_prefix_bytes(settings, size, float_bytes),
    )


def _stored_bytes(part: str, size: Weights, settings: ModelSettings, float_bytes: int) -> int:
    """Return the bytes of a part's weights."""
    one = size.parts[part]
    kind = chosen(settings).get(part)
    if kind is None:
        return one.parameters * float_bytes
    weight_bytes = scheme(kind).weight_bytes
    if weight_bytes is None:
        return one.file_bytes
    return round(one.of_blocks * weight_bytes + (one.parameters - one.of_blocks) * float_bytes)


def _on_gpu(stored: dict[str, int], size: Weights, settings: ModelSettings, float_bytes: int) -> int:
    """Return the bytes of the weights that are on the GPU at once, at most."""
    if settings.offload == "none":
        return sum(stored.values())
    taking_turns = {part: count for part, count in stored.items() if part != "vae"}
    stays = sum(stored.values()) - sum(taking_turns.values())
    if settings.offload == "model":
        return stays + max(taking_turns.values(), default=0)
    return stays + max((one.largest * float_bytes for one in size.parts.values()), default=0)


def _work_bytes(settings: AppSettings, size: Weights, float_bytes: int) -> int:
    """Return the bytes that the largest stage takes beside the weights."""
    area = settings.model.native_area or NATIVE_AREA
    # Output and reference, guided: two rows.
    tokens = 2 * 2 * area // _PIXELS_PER_TOKEN
    if settings.engine.batch_tokens != "auto":
        tokens = max(tokens, settings.engine.batch_tokens)
    step = tokens * _TOKENS_WITH_TEXT * _VALUES_PER_TOKEN * size.width
    stages = area * (_TILED_VALUES_PER_PIXEL if settings.model.vae_tiling else _VALUES_PER_PIXEL)
    return round(max(step, stages) * float_bytes)


def _prefix_bytes(settings: AppSettings, size: Weights, float_bytes: int) -> int:
    """Return the bytes of keys and values of an edit of one picture with its text, and those of the cache."""
    if not size.prefix_blocks:
        return 0
    tokens = (settings.model.native_area or NATIVE_AREA) // _PIXELS_PER_TOKEN * _TOKENS_WITH_TEXT
    return round(2 * size.prefix_blocks * tokens * size.width * float_bytes + settings.engine.prefix_cache_gb * 1e9)
