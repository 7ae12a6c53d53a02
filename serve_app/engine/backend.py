"""The backend protocol: what engine and calibration need of a model. Real and fake pipelines implement it."""

from collections.abc import Sequence
from typing import Any, Protocol

from serve_app.engine.scheduler import Condition, Sample, StepCost
from serve_app.images.geometry import Geometry
from serve_app.request import Picture


class Backend(Protocol):
    """The stages of a model, each over any number of samples of any sizes.

    The values that `prepare`, `encode` and `start` return are opaque to the engine. A stage returns once its work on
    the device is done, and raises OutOfMemory, NotFinite or DeviceLost for failures of these kinds. A failed stage
    leaves its inputs unchanged, so that the engine can retry with fewer samples.
    """

    @property
    def geometry(self) -> Geometry: ...

    @property
    def step_cost(self) -> StepCost: ...

    @property
    def makes_alpha(self) -> bool:
        """Whether decoded pictures are RGBA, with transparency that the model made."""

    @property
    def generates(self) -> bool:
        """Whether conditions may have no reference: pictures are made from their text alone."""

    def check(self, condition: Condition, /) -> None:
        """Raise InvalidInput for inputs that this model cannot process. Called on callers' threads."""

    def prepare(self, condition: Condition, shared: dict[Any, Any], /) -> Any:
        """Return the input of `encode`: all work that needs no device. Called on several threads at once.

        `shared`: kept from one condition of a request to the next, for what they have in common; empty at first.
        """

    def count_tokens(self, text: str, /) -> int:
        """Return the tokens of a caller's text, without those of a template. Called on several threads at once."""

    def encode(self, prepared: Sequence[Any], /) -> Sequence[Any]: ...

    def prefill(self, encodings: Sequence[Any], pieces: Sequence[int] | None = None, /) -> Sequence[int]:
        """Compute so many further pieces of each encoding's prefix, or all of it. Return how many are left of each.

        Samples may start before, and step once it is complete. A model without prefixes has nothing to do.
        """

    def start(self, encoding: Any, sample: Sample, /) -> Any: ...

    def step(self, states: Sequence[Any], /) -> None: ...

    def preview(self, states: Sequence[Any], /) -> Sequence[Picture]:
        """Return a preview of each sample. Leaves the states unchanged."""

    def decode(self, states: Sequence[Any], /) -> Sequence[Picture]: ...
