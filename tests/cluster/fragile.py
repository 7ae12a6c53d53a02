"""A replica that some prompts kill: the real deployment and the real engine, around a model of arithmetic."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve_app.deployments.replica import ImageEditor
from serve_app.engine.calibration import Calibration
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import Condition
from serve_app.errors import DeviceLost
from serve_app.settings import AppSettings, EngineSettings
from tests.fakes import ArithmeticLocal, ArithmeticModel, ArithmeticPipeline

POISON, POISON_ONCE, LOSE_ONCE = "poison", "poison once", "lose the device once"


class FragileEditor(ImageEditor.func_or_class):  # type: ignore[name-defined,misc]
    """A replica that some prompts kill. `folder` records encoded prompts and single events beyond its processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__(AppSettings())

    def _start(self, settings: AppSettings) -> Any:
        pipeline = ArithmeticPipeline(on_encode=self._encode)
        engine = EditEngine(
            ServedModel(
                pipeline,
                Calibration({1: 0.01}, knee_tokens=1, seconds_per_token=1e-5),
                max_samples=8,
                sampling=SamplingDefaults(4, 4.0),
            ),
            EngineSettings(batch_tokens=10**9, order="fifo"),
            timeout_s=600,
        )
        engine.start()
        return ArithmeticLocal(ArithmeticModel(pipeline), engine)

    def _encode(self, conditions: Sequence[Condition]) -> None:
        prompts = [condition.prompt for condition in conditions]
        with (self._folder / "encoded").open("a") as file:
            file.write(json.dumps(prompts) + "\n")
        if POISON in prompts or (POISON_ONCE in prompts and self._first_time(POISON_ONCE)):
            os._exit(9)
        if LOSE_ONCE in prompts and self._first_time(LOSE_ONCE):
            raise DeviceLost("CUDA error: an illegal memory access was encountered")

    def _first_time(self, what: str) -> bool:
        try:
            (self._folder / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
