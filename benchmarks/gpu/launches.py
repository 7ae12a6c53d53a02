"""What steps and stages ask of a GPU, counted without one: `python -m benchmarks.gpu --fake`."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import diffusers
import numpy as np
import torch
import transformers

from benchmarks.gpu.fake import CUDA, Counts, FakeCuda
from benchmarks.gpu.measure import GUIDANCE, Case, edit_request
from benchmarks.gpu.model import ModelSize, build_pipeline, build_transformer, on_device
from benchmarks.gpu.prompts import equal_prompts
from benchmarks.gpu.report import Row
from benchmarks.markdown import table
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import Sample, expand
from serve_app.images.geometry import Size
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.models.packed import VarlenAttention, pack
from serve_app.models.pipeline import Encoding, SampleState
from serve_app.models.vision import attend_at_once, merge_windows
from serve_app.request import EditRequest

_DTYPE = torch.bfloat16
_STEPS = 8
_MEMORY = "memory, GB"


@dataclass(frozen=True, slots=True)
class Edit:
    """One sample: the size of its picture and of its output, and the tokens of its texts, pictures included."""

    size: Size
    text_tokens: int
    negative_tokens: int | None = None


SQUARE = Size(1024, 1024)
EIGHT_SIZES = tuple(
    Size(*sides)
    for sides in (
        *((1024, 1024), (1184, 880), (880, 1184), (1248, 832)),
        *((832, 1248), (1360, 768), (768, 1360), (1456, 720)),
    )
)
"""Of one megapixel each, with the aspect ratios of phones, cameras and screens."""
# A picture of one megapixel is 1369 of them.
_TEXT_TOKENS = 1400

LONE = [Edit(SQUARE, _TEXT_TOKENS)]
EIGHT = [Edit(size, _TEXT_TOKENS + 10 * index) for index, size in enumerate(EIGHT_SIZES)]
"""Eight rows of eight shapes and eight text lengths."""
MIXES: Mapping[str, Sequence[Edit]] = {
    "one sample without guidance: one row": LONE,
    "one guided sample": [Edit(SQUARE, _TEXT_TOKENS, 1380)],
    "two rows, texts of one length": LONE * 2,
    "four guided samples, eight text lengths": [
        Edit(SQUARE, _TEXT_TOKENS + 10 * index, 1380 + index) for index in range(4)
    ],
    "eight rows, eight shapes, eight text lengths": EIGHT,
    "eight guided samples, eight shapes": [Edit(each.size, each.text_tokens, 1380) for each in EIGHT],
}


def build(cuda: FakeCuda, size: ModelSize) -> StepwiseQwenImageEditPipeline:
    """Return the pipeline as `serve_app.models.loading` tunes it for a GPU. Call it inside `cuda.counting()`."""
    pipeline = build_pipeline(size, CUDA, _DTYPE)
    pack(pipeline.transformer, VarlenAttention(cuda.varlen_attn))
    merge_windows(pipeline.text_encoder, partial(attend_at_once, varlen_attn=cuda.varlen_attn))
    return pipeline


def start(pipeline: StepwiseQwenImageEditPipeline, edits: Sequence[Edit]) -> list[SampleState]:
    """Return samples that are ready to step, with encodings of the right sizes."""
    return [pipeline.start(_encoding(pipeline, edit), _sample(pipeline, edit)) for edit in edits]


def _encoding(pipeline: StepwiseQwenImageEditPipeline, edit: Edit) -> Encoding:
    transformer = pipeline.transformer.config

    def empty(tokens: int, width: int) -> torch.Tensor:
        return torch.empty(tokens, width, device=CUDA, dtype=_DTYPE)

    texts = [
        empty(tokens, transformer.joint_attention_dim)
        for tokens in (edit.text_tokens, edit.negative_tokens)
        if tokens is not None
    ]
    tokens = edit.size.pixels // pipeline.geometry.token_side**2
    return Encoding(texts[0], texts[1] if len(texts) == 2 else None, empty(tokens, transformer.in_channels))


def _sample(pipeline: StepwiseQwenImageEditPipeline, edit: Edit) -> Sample:
    request = EditRequest(
        images=[np.zeros((edit.size.height, edit.size.width, 3), np.uint8)],
        prompt="x",
        size=edit.size,
        guidance_scale=1.0 if edit.negative_tokens is None else GUIDANCE,
        num_inference_steps=_STEPS,
    )
    return expand(request, pipeline.geometry, defaults=SamplingDefaults(_STEPS, GUIDANCE)).samples[0]


def computed_flop(size: ModelSize, states: Sequence[SampleState]) -> float:
    """Return the FLOP of a step by the formula of `floor.py`, with the modulation of each row."""
    flop = 0.0
    for state in states:
        image = sum(height * width for height, width in state.grids)
        for text in (state.encoding.positive, state.encoding.negative):
            if text is not None:
                flop += size.cost.forward_flop(image, len(text)) + size.cost.modulation_flop
    return flop


def count_step(
    cuda: FakeCuda, pipeline: StepwiseQwenImageEditPipeline, edits: Sequence[Edit]
) -> tuple[Counts, list[SampleState]]:
    """Return the counts of the first step of these edits together, and their states."""
    with cuda.counting():
        states = start(pipeline, edits)
    return cuda.count(lambda: pipeline.step(states)), states


def count_stages(cuda: FakeCuda, pipeline: StepwiseQwenImageEditPipeline, size: ModelSize) -> Mapping[str, Counts]:
    """Return the counts of each stage of one guided edit at the native size."""
    case = Case(size.native_side, size.native_side)
    request = edit_request(case, equal_prompts(1), guided=True, steps=_STEPS)
    queued = expand(request, pipeline.geometry, defaults=SamplingDefaults(_STEPS, GUIDANCE))
    with cuda.counting():
        prepared = [pipeline.prepare(condition) for condition in queued.conditions]
    encodings: list[Encoding] = []
    states: list[SampleState] = []
    stages: Mapping[str, Callable[[], object]] = {
        "encode": lambda: encodings.extend(pipeline.encode(prepared)),
        "start": lambda: states.extend(map(pipeline.start, encodings, queued.samples)),
        "step, new rows": lambda: pipeline.step(states),
        "step, same rows": lambda: pipeline.step(states),
        "preview": lambda: pipeline.preview(states),
        "decode": lambda: pipeline.decode(states),
    }
    return {name: cuda.count(stage) for name, stage in stages.items()}


def count_stock(cuda: FakeCuda, size: ModelSize, edit: Edit) -> Counts:
    """Return the counts of diffusers' own transformer for a step of a guided sample: a forward for each text."""
    with cuda.counting():
        with on_device(CUDA, _DTYPE):
            transformer = build_transformer(size)
        grid = (1, edit.size.height // 16, edit.size.width // 16)
        image = torch.empty(1, 2 * grid[1] * grid[2], transformer.config.in_channels, device=CUDA, dtype=_DTYPE)
        text = torch.empty(1, edit.text_tokens, transformer.config.joint_attention_dim, device=CUDA, dtype=_DTYPE)
        time = torch.full((1,), 0.5, device=CUDA, dtype=_DTYPE)

    @torch.no_grad()
    def step() -> None:
        for _ in range(2):
            transformer(image, text, timestep=time, img_shapes=[[grid, grid]])

    # The first one makes the tables of positions.
    cuda.count(step)
    return cuda.count(step)


def report(size: ModelSize) -> Iterator[str]:
    """Yield the lines of both tables, in Markdown."""
    cuda = FakeCuda()
    with cuda.counting():
        pipeline = build(cuda, size)
    yield (
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}, bf16"
    )
    yield ""
    columns = ["one step at one megapixel", "rows", "operations", "with new rows", "TFLOP", "÷ formula", _MEMORY]
    yield from table(columns, _step_rows(cuda, pipeline, size))
    yield ""
    columns = ["stage of one guided edit", "operations", "TFLOP", "waits", "copies to the GPU", "of them behind work"]
    columns.append(_MEMORY)
    yield from table(columns, (_stage_row(*each) for each in count_stages(cuda, pipeline, size).items()))


def _step_rows(cuda: FakeCuda, pipeline: StepwiseQwenImageEditPipeline, size: ModelSize) -> Iterator[Row]:
    guided = MIXES["one guided sample"][0]
    stock = count_stock(cuda, size, guided)
    yield [
        "diffusers, one guided sample: two forwards",
        "1 + 1",
        str(stock.launches),
        "",
        f"{stock.flop / 1e12:.0f}",
        "",
        _gigabytes(stock),
    ]
    for name, edits in MIXES.items():
        first, states = count_step(cuda, pipeline, edits)
        second = cuda.count(lambda states=states: pipeline.step(states))  # type: ignore[misc]
        rows = sum(1 + (edit.negative_tokens is not None) for edit in edits)
        ratio = second.flop / computed_flop(size, states)
        tflop = f"{second.flop / 1e12:.0f}"
        launches = [str(second.launches), str(first.launches)]
        yield [name, str(rows), *launches, tflop, f"{ratio:.4f}", _gigabytes(second)]


def _stage_row(name: str, counts: Counts) -> Row:
    copies, late = str(counts.uploads.total()), str(counts.late_uploads.total())
    tflop, waits = f"{counts.flop / 1e12:.1f}", _places(counts.waits)
    return [name, str(counts.launches), tflop, waits, copies, late, _gigabytes(counts)]


def _gigabytes(counts: Counts) -> str:
    return f"{counts.peak_bytes / 1e9:.2f}"


def _places(places: Counter[str]) -> str:
    """Return functions and how often each waited, the most frequent first."""
    return ", ".join(f"{count} × `{place}`" for place, count in places.most_common()) or "none"
