"""A replica whose steps take a given time: the real deployment and the real engine, around a model of arithmetic."""

import time
from typing import Any, ClassVar

from serve_app.deployments.replica import ImageEditor
from serve_app.engine.calibration import Calibration
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.sampling import SamplingDefaults
from serve_app.settings import AppSettings
from tests.fakes import ArithmeticLocal, ArithmeticModel, ArithmeticPipeline

# Tokens of one guided sample at the fake's native size: two rows of output and reference, 16 × 16 pixels a token.
TOKENS = 2 * 2 * 64 * 64 // 16**2


class SlowEditor(ImageEditor.func_or_class):  # type: ignore[name-defined,misc]
    """A replica that starts in a second, and whose every step takes `step_s`, whatever it holds."""

    step_s: ClassVar[float] = 0.05

    def _start(self, settings: AppSettings) -> Any:
        pipeline = ArithmeticPipeline(on_step=lambda states: time.sleep(self.step_s))
        engine = EditEngine(
            ServedModel(
                pipeline,
                Calibration({}, knee_tokens=TOKENS, seconds_per_token=self.step_s / TOKENS),
                max_samples=8 if settings.engine.max_samples == "auto" else settings.engine.max_samples,
                sampling=SamplingDefaults(4, 4.0),
            ),
            settings.engine,
            timeout_s=settings.limits.request_timeout_s,
        )
        engine.start()
        return ArithmeticLocal(ArithmeticModel(pipeline), engine)
