"""A replica whose steps take a given time: the real deployment and the real engine, around a model of arithmetic."""

import math
import time
from typing import Any

from serve_app.deployments.replica import ImageEditor
from serve_app.engine.calibration import Calibration
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.settings import AppSettings, EngineSettings
from tests.fakes import ArithmeticLocal, ArithmeticModel, ArithmeticPipeline


class SlowEditor(ImageEditor.func_or_class):  # type: ignore[name-defined,misc]
    """Every forward takes `step_s`, whatever it holds."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        super().__init__(AppSettings())

    def _start(self, settings: AppSettings) -> Any:
        pipeline = ArithmeticPipeline(on_step=lambda states: time.sleep(self._step_s))
        engine = EditEngine(
            ServedModel(
                pipeline,
                Calibration({}, knee_tokens=1, seconds_per_token=self._step_s),
                max_samples=8,
                default_steps=4,
                default_guidance=4.0,
            ),
            EngineSettings(batch_tokens=10**9),
            timeout_s=math.inf,
        )
        engine.start()
        return ArithmeticLocal(ArithmeticModel(pipeline), engine)
