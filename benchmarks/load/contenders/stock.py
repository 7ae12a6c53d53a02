"""The stock QwenImageEditPipeline of diffusers on the served weights, for the naive contenders."""

import multiprocessing
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

from benchmarks.load.measures import Counts
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import Condition, QueuedRequest, Sample, expand
from serve_app.images.geometry import Geometry, Size
from serve_app.images.pixels import resize
from serve_app.models import loading
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.request import EditRequest, EditResult, Pixels, Timings, arrange
from serve_app.settings import ModelSettings


class Counter:
    """Counts of forwards and samples, in shared memory since LitServe's model has a process of its own."""

    def __init__(self) -> None:
        self._values = multiprocessing.get_context("spawn").Array("q", 2)

    def watch(self, transformer: torch.nn.Module) -> None:
        """Count every forward of the transformer from now on."""
        transformer.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._values[0] += 1
        self._values[1] += kwargs["hidden_states"].shape[0]

    def counts(self) -> Counts:
        return Counts(*self._values[:])


class StockEditor:
    """An editor of several requests, with as few calls of the stock pipeline as sizes, steps and guidance allow."""

    def __init__(self, settings: ModelSettings, counter: Counter) -> None:
        model = loading.load(settings)
        self._expand = partial(
            expand,
            geometry=model.pipeline.geometry,
            defaults=SamplingDefaults(model.default_steps, model.default_guidance),
        )
        self._pipeline = stock_pipeline(model.pipeline)
        counter.watch(self._pipeline.transformer)

    def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        """Return one result for each request, in order."""
        entries = [self._expand(request) for request in requests]
        groups: dict[object, list[Sample]] = {}
        for entry in entries:
            for sample in entry.samples:
                key = (sample.shape, sample.steps, sample.guidance, negative_prompt(sample) is None)
                groups.setdefault(key, []).append(sample)
        pictures = {
            id(sample): pixels
            for samples in groups.values()
            for sample, pixels in zip(samples, self._call(samples), strict=True)
        }
        return [_result(request, entry, pictures) for request, entry in zip(requests, entries, strict=True)]

    def _call(self, samples: Sequence[Sample]) -> list[Pixels]:
        """Call the pipeline with one row for each sample: diffusers 0.42 pairs `num_images_per_prompt` wrongly."""
        first = samples[0]
        guided = negative_prompt(first) is not None
        conditions = [sample.request.conditions[sample.image_index] for sample in samples]
        images = self._pipeline(
            image=[self._resize(condition) for condition in conditions],
            prompt=[condition.prompt for condition in conditions],
            negative_prompt=[condition.negative_prompt for condition in conditions] if guided else None,
            true_cfg_scale=first.guidance,
            width=first.shape.output.width,
            height=first.shape.output.height,
            num_inference_steps=first.steps,
            generator=[torch.Generator().manual_seed(sample.seed) for sample in samples],
        ).images
        return [np.asarray(image) for image in images]

    def _resize(self, condition: Condition) -> PIL.Image.Image:
        """Resize a picture, as the pipeline does with a lone one but not with those of a list."""
        [reference] = condition.references
        return PIL.Image.fromarray(resize(reference.picture, reference.view.size, reference.view.crop))


def negative_prompt(sample: Sample) -> str | None:
    """Return the negative prompt, None if guidance is off."""
    return sample.request.conditions[sample.image_index].negative_prompt


def _result(request: EditRequest, entry: QueuedRequest, pictures: dict[int, Pixels]) -> EditResult:
    images, variants = len(request.images), request.n
    places = {(sample.image_index, sample.variant_index): sample for sample in entry.samples}
    return EditResult(
        pixels=arrange({place: pictures[id(sample)] for place, sample in places.items()}, images, variants),
        seeds=arrange({place: sample.seed for place, sample in places.items()}, images, variants),
        timings=Timings(0, 0, 0, 0),
    )


def stock_pipeline(served: StepwiseQwenImageEditPipeline) -> QwenImageEditPipeline:
    """Return the stock class with its own `__call__`, on the weights of `served`.

    Two changes make it fit a miniature model: the sizes of references, for which diffusers 0.42 has literals, and the
    length of the template in the model's own tokens. The transformer is diffusers', without our packed forward, and the
    autoencoder too, without our patch for lone frames.
    """
    transformer = _unpatched(QwenImageTransformer2DModel, served.transformer)
    vae = _unpatched(AutoencoderKLQwenImage, served.vae)
    stock = QwenImageEditPipeline(**{**served.components, "transformer": transformer, "vae": vae})
    stock.prompt_template_encode_start_idx = served.prompt_template_encode_start_idx
    stock.set_progress_bar_config(disable=True)
    _set_sizes(served.geometry)
    return cast(QwenImageEditPipeline, stock)


def _unpatched(kind: Any, patched: Any) -> Any:
    """Return a module of diffusers' class with the weights of the served one."""
    module = kind.from_config(patched.config)
    module.load_state_dict(patched.state_dict(), assign=True)
    return module.eval()


_FINE = 1_000_000
"""Pixels of a height, of which a ratio of two sides is exact enough."""


def _set_sizes(geometry: Geometry) -> None:
    """Set native area and grid for the whole process: `__call__` looks the function up in its module.

    With diffusers' grid of 32 pixels, the contenders' references would be up to a fifth larger than ours.
    """

    def calculate_dimensions(target_area: int, ratio: float) -> tuple[int, int, None]:
        size = geometry.auto(Size(round(_FINE * ratio), _FINE))
        return size.width, size.height, None

    pipeline_qwenimage_edit.calculate_dimensions = calculate_dimensions
