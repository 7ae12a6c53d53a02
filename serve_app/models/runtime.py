"""Start a warm model with its engine in this process, for a replica or for a batch job without a server."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from serve_app.engine.calibration import calibrate
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import Sample
from serve_app.models import loading
from serve_app.models.loading import LoadedModel
from serve_app.settings import AppSettings

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
    limit = model.max_samples if settings.engine.max_samples == "auto" else settings.engine.max_samples
    calibration = calibrate(
        model.pipeline,
        max_samples=limit,
        default_guidance=model.default_guidance,
        find_knee=settings.engine.batch_tokens == "auto",
    )
    logger.info("Loaded %s; measured %s", settings.model.source, asdict(calibration))
    engine = EditEngine(
        ServedModel(
            model.pipeline,
            calibration,
            max_samples=limit,
            sampling=SamplingDefaults.of(settings.model, model.default_steps, model.default_guidance),
        ),
        settings.engine,
        timeout_s=settings.limits.request_timeout_s,
        on_forward=on_forward,
    )
    engine.start()
    return LocalEditor(model, engine)
