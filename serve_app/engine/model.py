"""The model that an engine runs, as one value."""

from dataclasses import dataclass

from serve_app.engine.backend import Backend
from serve_app.engine.calibration import Calibration


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded backend with its limits, its defaults, and its calibration on this machine.

    `max_samples`: samples in one forward. `default_steps`, `default_guidance`: for requests that set none.
    """

    backend: Backend
    calibration: Calibration
    max_samples: int
    default_steps: int
    default_guidance: float
