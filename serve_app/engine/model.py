"""What an engine knows of the model that it runs."""

from dataclasses import dataclass

from serve_app.engine.backend import Backend
from serve_app.engine.calibration import Calibration


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded backend, its limits and defaults, and what was measured of it on this machine.

    `max_samples`: in one forward. `default_steps`, `default_guidance`: for requests that name none.
    """

    backend: Backend
    calibration: Calibration
    max_samples: int
    default_steps: int
    default_guidance: float
