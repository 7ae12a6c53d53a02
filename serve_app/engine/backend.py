"""What engine and calibration need of a model. The seam behind which real and fake pipelines stand alike."""

from collections.abc import Sequence
from typing import Any, Protocol

from serve_app.engine.scheduler import Condition, Sample
from serve_app.images import Geometry
from serve_app.request import Pixels


class Backend(Protocol):
    """Stages over any number of samples of one shape. What is prepared, encodings
    and states are the pipeline's own, opaque elsewhere.

    A stage returns when its work on the device is done. It raises OutOfMemory, NotFinite or DeviceLost for what it can
    name, and then leaves its inputs as they were, so that it can be tried again with fewer of them.
    """

    @property
    def geometry(self) -> Geometry: ...

    def check(self, condition: Condition, /) -> None:
        """Raise InvalidInput for what this model cannot take. Called on callers' threads."""

    def prepare(self, condition: Condition, /) -> Any:
        """What `encode` takes: all that needs no device, done beside the steps. Called on any thread, many at once."""

    def encode(self, prepared: Sequence[Any], /) -> Sequence[Any]: ...

    def start(self, encoding: Any, sample: Sample, /) -> Any: ...

    def step(self, states: Sequence[Any], /) -> None: ...

    def preview(self, states: Sequence[Any], /) -> Sequence[Pixels]:
        """What each sample looks like so far. Leaves the states as they are."""

    def decode(self, states: Sequence[Any], /) -> Sequence[Pixels]: ...
