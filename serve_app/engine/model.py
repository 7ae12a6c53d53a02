"""The model that an engine runs, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.engine.backend import Backend
from serve_app.engine.calibration import Calibration


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded backend with its limits, its defaults, and its calibration on this machine.

    `max_samples`: samples in one forward. `default_steps`, `default_guidance`: for requests that set none. `adapters`:
    the adapters that requests may name, with the strength of each where a request sets none.
    """

    backend: Backend
    calibration: Calibration
    max_samples: int
    default_steps: int
    default_guidance: float
    adapters: Mapping[str, float] = field(default_factory=dict)
