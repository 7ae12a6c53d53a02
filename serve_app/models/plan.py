"""The plan of a step: which rows the forward has, in which order, and what belongs to which sample."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from serve_app.engine.sampling import AdapterScales
from serve_app.models.packed import Stream


class Row(Protocol):
    """The sizes of one row, in tokens."""

    @property
    def tokens(self) -> int: ...

    @property
    def output_tokens(self) -> int: ...


class SteppedState(Protocol):
    """What a plan reads of a sample's state."""

    guidance: float
    adapters: AdapterScales
    sigmas: list[float]
    timesteps: list[float]
    step: int


class Plan:
    """How a set of samples is stepped: what stays the same until one of them leaves, or another joins.

    `shapes`: for each sample, that of its row and, if it is guided, of its unguided twin. `rows`: those of the forward
    in their order, by sample and place among its shapes. `guided`: the samples with a twin. `samples`, `pairs`: the
    outputs' tokens of all samples, and of the guided ones. `layout`: that of the rows, made by `lay_out` from their
    shapes and adapters; it has their outputs' tokens as `output`.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[Row, ...]],
        adapters: Sequence[AdapterScales],
        lay_out: Callable[[Sequence[Any], Sequence[AdapterScales]], Any],
        device: torch.device,
    ) -> None:
        self.shapes, self.adapters = tuple(shapes), tuple(adapters)
        rows = [(index, place) for index, of_sample in enumerate(shapes) for place in range(len(of_sample))]
        # Neighbours with equally many tokens share an attention call.
        self.rows = sorted(rows, key=lambda row: _sizes(shapes[row[0]][row[1]]))
        self.guided = [index for index, of_sample in enumerate(shapes) if len(of_sample) == 2]
        self.layout = lay_out(
            [shapes[index][place] for index, place in self.rows], [adapters[index] for index, _ in self.rows]
        )
        lengths = [of_sample[0].output_tokens for of_sample in shapes]
        self.samples = Stream([(length, index) for index, length in enumerate(lengths)], device)
        self.pairs = Stream([(lengths[index], place) for place, index in enumerate(self.guided)], device)
        self._device = device

    def is_of(self, shapes: Sequence[tuple[Row, ...]], adapters: Sequence[AdapterScales]) -> bool:
        """Return whether this plan is that of samples of these shapes and adapters."""
        return (self.shapes, self.adapters) == (tuple(shapes), tuple(adapters))

    def numbers(self, states: Sequence[SteppedState]) -> tuple[torch.Tensor, ...]:
        """Return the timestep of each row, the guidance of each guided sample, and each sample's change of sigma.

        Columns of float32 on the device, in one copy to it.
        """
        times = [states[index].timesteps[states[index].step] for index, _ in self.rows]
        scales = [states[index].guidance for index in self.guided]
        moves = [state.sigmas[state.step + 1] - state.sigmas[state.step] for state in states]
        column = torch.tensor([*times, *scales, *moves], dtype=torch.float32, device=self._device).view(-1, 1)
        return torch.split(column, [len(times), len(scales), len(moves)])


def _sizes(row: Row) -> tuple[int, int]:
    return row.tokens, row.output_tokens
