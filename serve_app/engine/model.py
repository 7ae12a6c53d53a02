"""The model that an engine runs, as one value."""

import math
from dataclasses import dataclass

from serve_app.engine.backend import Backend
from serve_app.engine.calibration import Calibration
from serve_app.engine.sampling import SamplingDefaults


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded backend with its limits, its defaults, and its calibration on this machine.

    `max_samples`: samples in one forward. `sampling`: what it offers its requests. `kept_bytes`: as in Policy.
    """

    backend: Backend
    calibration: Calibration
    max_samples: int
    sampling: SamplingDefaults
    kept_bytes: float = math.inf
