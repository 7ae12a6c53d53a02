"""Start a warm model with its engine in this process, for a replica or for a batch job without a server."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from serve_app.engine.calibration import calibrate
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import Sample
from serve_app.models import loading
from serve_app.models.loading import LoadedModel
from serve_app.models.prefix_cache import PrefixCache
from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from serve_app.settings import AppSettings, EngineSettings

# Of the memory that calibration left: forwards of other sizes than those that it measured need some.
_KEPT_SHARE = 0.8

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class LocalEditor:
    """A loaded model with its running engine. Stop the engine unless the process ends with it.

    The engine does not enforce `settings.limits`.
    """

    model: LoadedModel
    engine: EditEngine


def start(
    settings: AppSettings, on_forward: Callable[[Sequence[Sample], float], None] = lambda samples, seconds: None
) -> LocalEditor:
    """Load the model, calibrate it, and start the engine. Raises the errors of `loading.load`.

    `on_forward`: as in EditEngine.
    """
    model = loading.load(settings.model)
    prefixes = model.pipeline if isinstance(model.pipeline, StepwiseQwenImage21Pipeline) else None
    cache = None if prefixes is None else _prefix_cache(model, settings.engine)
    limit = model.max_samples if settings.engine.max_samples == "auto" else settings.engine.max_samples
    calibration = calibrate(
        model.pipeline,
        max_samples=limit,
        default_guidance=model.default_guidance,
        find_knee=settings.engine.batch_tokens == "auto",
    )
    # Not before: calibration encodes one picture again and again.
    if prefixes is not None and cache is not None:
        prefixes.share_prefixes, prefixes.prefixes = settings.engine.share_prefixes, cache
    logger.info("Loaded %s; measured %s", settings.model.source, asdict(calibration))
    engine = EditEngine(
        ServedModel(
            model.pipeline,
            calibration,
            max_samples=limit,
            sampling=SamplingDefaults.of(settings.model, model.default_steps, model.default_guidance),
            kept_bytes=_kept_bytes(model, settings.engine),
        ),
        settings.engine,
        timeout_s=settings.limits.request_timeout_s,
        on_forward=on_forward,
    )
    engine.start()
    return LocalEditor(model, engine)


def _prefix_cache(model: LoadedModel, settings: EngineSettings) -> PrefixCache:
    """Return an empty cache. Raises ValueError for one that is larger than the model's device."""
    size, total = round(settings.prefix_cache_gb * 1e9), model.total_bytes()
    if size > total:
        raise ValueError(
            f"engine.prefix_cache_gb: {settings.prefix_cache_gb:g} GB are more than the {total / 1e9:.1f} GB that the "
            f"model's device ({model.device.type}) has"
        )
    return PrefixCache(size)


def _kept_bytes(model: LoadedModel, settings: EngineSettings) -> float:
    """Return the memory for prefixes of samples: on a GPU what calibration left, without the cache; else no limit."""
    free = model.memory_left()
    return math.inf if free is None else max(0.0, _KEPT_SHARE * free - settings.prefix_cache_gb * 1e9)
