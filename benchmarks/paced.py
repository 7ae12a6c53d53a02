"""`python -m benchmarks.paced`: who waits by `engine.order` and `engine.join`, where every stage takes what it should.

The engine is the product's, the traffic that of benchmarks/mixed.py, and both run in real time; the pipeline sleeps as
long as a machine of known prices would compute. So nothing depends on what else this machine does, and the runs go on
beside each other. Prints a table.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from benchmarks import joining, mixed
from benchmarks.edits import Effort
from benchmarks.joining import Machine, Stage
from benchmarks.markdown import table
from serve_app.engine.calibration import Calibration
from serve_app.engine.scheduler import Condition, Sample, Shape
from serve_app.images import Geometry, Size
from serve_app.request import Pixels

_GUIDANCE = 4.0
_ROWS = 2  # of a guided sample
_GEOMETRY = Geometry(native_area=Effort().side ** 2, multiple=8)
_NATIVE = Size(Effort().side, Effort().side)
_TOKENS = _ROWS * Shape(_NATIVE, _NATIVE).tokens(_GEOMETRY.multiple)

# Of a large picture on any GPU: the second of a forward costs as much as the first. Five times as fast as one would
# be, so that a minute holds many edits.
FULL = Machine("one sample fills it", Stage(0.0, 0.004), Stage(0.0, 0.02), Stage(0.0, 0.004), knee=1)
MACHINES = (*joining.MACHINES, FULL)


@dataclass(frozen=True, slots=True)
class PacedPipeline:
    """Implements protocol.Backend; pictures are black. Smaller samples take less of a step, by their tokens."""

    machine: Machine
    geometry: Geometry = _GEOMETRY

    def check(self, condition: Condition) -> None:
        pass

    def prepare(self, condition: Condition) -> Condition:
        return condition

    def encode(self, prepared: Sequence[Condition]) -> Sequence[Condition]:
        time.sleep(self.machine.encode.seconds(len(prepared)))
        return prepared

    def start(self, encoding: Condition, sample: Sample) -> Sample:
        return sample

    def step(self, states: Sequence[Sample]) -> None:
        time.sleep(self.machine.step.seconds(sum(sample.tokens for sample in states) / _TOKENS))

    def preview(self, states: Sequence[Sample]) -> list[Pixels]:
        return [_black(sample.shape.output) for sample in states]

    def decode(self, states: Sequence[Sample]) -> list[Pixels]:
        time.sleep(self.machine.decode.seconds(len(states)))
        return self.preview(states)


def _black(size: Size) -> Pixels:
    return np.zeros((size.height, size.width, 3), np.uint8)


def paced(machine: Machine) -> mixed.Engines:
    """What calibration would find there is known beforehand."""
    calibration = Calibration(
        seconds_by_samples={},
        knee_tokens=machine.knee * _TOKENS,
        seconds_per_token=machine.step.seconds(machine.knee) / (machine.knee * _TOKENS),
        join_s=machine.encode.fixed_s + machine.decode.fixed_s,
    )
    return mixed.Engines(PacedPipeline(machine), calibration, max_samples=8, guidance=_GUIDANCE)


def rows(machine: Machine, seconds: float, rounds: int) -> list[tuple[str, ...]]:
    with ThreadPoolExecutor(rounds * len(mixed.RULES)) as pool:
        return [(machine.name, *row) for row in mixed.rows(paced(machine), seconds, rounds, in_turn=pool.map)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paced", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of traffic in a run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="runs of each rule, each of other traffic (%(default)s)")
    arguments = parser.parse_args()
    found = [row for machine in MACHINES for row in rows(machine, arguments.seconds, arguments.rounds)]
    print("\n".join(table(("machine", *mixed.HEADER), found)))


if __name__ == "__main__":
    main()
