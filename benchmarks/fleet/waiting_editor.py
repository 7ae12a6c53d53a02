"""The real deployment and the real engine around the model that waits."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.fleet.sharing_router import ReplicaFacts
from benchmarks.fleet.waiting_model import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    MAX_SAMPLES,
    TOKENS,
    WaitingPipeline,
    Waits,
)
from serve_app.deployments.replica import ImageEditor
from serve_app.engine.calibration import Calibration
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import Sample
from serve_app.settings import AppSettings, EngineSettings


@dataclass(frozen=True, slots=True)
class _Model:
    """Stands in for models.loading.LoadedModel, which imports torch."""

    pipeline: WaitingPipeline
    prefix_stats: None = None
    license: None = None

    def memory(self) -> dict[str, int]:
        return {}


@dataclass(frozen=True, slots=True)
class _Local:
    """Stands in for models.runtime.LocalEditor."""

    model: _Model
    engine: EditEngine


class WaitingEditor(ImageEditor.func_or_class):  # type: ignore[name-defined,misc]
    """A replica whose forwards take `step_s` with up to `knee` samples, and proportionally longer with more."""

    def __init__(self, step_s: float, knee: int) -> None:
        self._knee_tokens = knee * TOKENS
        self._pipeline = WaitingPipeline(self._knee_tokens, step_s / self._knee_tokens)
        super().__init__(AppSettings())

    def _start(self, settings: AppSettings) -> Any:
        engine = EditEngine(
            ServedModel(
                self._pipeline,
                Calibration({}, self._knee_tokens, self._pipeline.seconds_per_token),
                max_samples=MAX_SAMPLES,
                sampling=SamplingDefaults(DEFAULT_STEPS, DEFAULT_GUIDANCE),
            ),
            EngineSettings(),
            timeout_s=math.inf,
            on_forward=self._forward_done,
        )
        engine.start()
        return _Local(_Model(self._pipeline), engine)

    def _forward_done(self, samples: Sequence[Sample], seconds: float) -> None:
        self._pipeline.waits.took_s += seconds
        self._metrics.record_forward(samples, seconds)

    def record_replica_metadata(self) -> dict[str, Any]:
        """Return the facts by which `SharingRouter` expands requests; Serve calls this."""
        geometry = self._geometry
        facts = ReplicaFacts(
            geometry.native_area, geometry.token_side, DEFAULT_STEPS, DEFAULT_GUIDANCE, self._knee_tokens
        )
        return asdict(facts)

    async def waits(self) -> Waits:
        return self._pipeline.waits
