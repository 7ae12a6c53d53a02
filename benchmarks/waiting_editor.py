"""The real deployment and the real engine around a model whose forward is a wait, as long as a GPU's would be.

So many replicas fit on one core. The pictures are those of tests/fakes.py: arithmetic.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.sharing_router import ReplicaFacts
from serve_app.deployments.replica import ImageEditor
from serve_app.engine.calibration import Calibration
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.scheduler import Sample
from serve_app.settings import AppSettings, EngineSettings
from tests.fakes import ArithmeticLocal, ArithmeticModel, ArithmeticPipeline, State

# Of one step of one sample at the fakes' native size: two rows of 2 × 64² pixels, 16² a token.
TOKENS = 2 * 2 * 64 * 64 // 16**2
_STEPS, _GUIDANCE, _MAX_SAMPLES = 4, 4.0, 10


@dataclass
class Waits:
    """Seconds of all forwards: as they should have been, and as they were."""

    due_s: float = 0.0
    took_s: float = 0.0


class WaitingPipeline(ArithmeticPipeline):
    """A forward of T tokens takes max(`knee_tokens`, T) × `seconds_per_token`, and no CPU."""

    def __init__(self, knee_tokens: int, seconds_per_token: float) -> None:
        super().__init__(on_step=self._wait)
        self.waits = Waits()
        self.knee_tokens, self.seconds_per_token = knee_tokens, seconds_per_token

    def _wait(self, states: Sequence[State]) -> None:
        # What the fakes keep for tests to look at would grow for as long as the benchmark runs.
        self.batches.clear()
        self.encoded.clear()
        tokens = max(self.knee_tokens, sum(state.sample.tokens for state in states))
        self.waits.due_s += tokens * self.seconds_per_token
        time.sleep(tokens * self.seconds_per_token)


class WaitingEditor(ImageEditor.func_or_class):  # type: ignore[name-defined,misc]
    """A forward takes `step_s` with up to `knee` samples, and beyond as much longer as it has more."""

    def __init__(self, step_s: float, knee: int) -> None:
        self._knee_tokens = knee * TOKENS
        self._pipeline = WaitingPipeline(self._knee_tokens, step_s / self._knee_tokens)
        super().__init__(AppSettings())

    def _start(self, settings: AppSettings) -> Any:
        engine = EditEngine(
            ServedModel(
                self._pipeline,
                Calibration({}, self._knee_tokens, self._pipeline.seconds_per_token),
                max_samples=_MAX_SAMPLES,
                default_steps=_STEPS,
                default_guidance=_GUIDANCE,
            ),
            EngineSettings(),
            timeout_s=math.inf,
            on_forward=self._forward_done,
        )
        engine.start()
        return ArithmeticLocal(ArithmeticModel(self._pipeline), engine)

    def _forward_done(self, samples: Sequence[Sample], seconds: float) -> None:
        self._pipeline.waits.took_s += seconds
        self._metrics.forward(samples, seconds)

    def record_replica_metadata(self) -> dict[str, Any]:
        """What `SharingRouter` expands requests by; Serve asks for it."""
        geometry = self._geometry
        facts = ReplicaFacts(geometry.native_area, geometry.multiple, _STEPS, _GUIDANCE, self._knee_tokens)
        return asdict(facts)

    async def waits(self) -> Waits:
        return self._pipeline.waits
