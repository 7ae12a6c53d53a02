"""`python -m benchmarks.engine.stages`: the cost of each stage per sample, by the number of samples that share it."""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.edits import Effort, plain
from benchmarks.markdown import table
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import expand
from serve_app.models import loading
from serve_app.models.loading import LoadedModel
from serve_app.settings import BUILTIN_TINY, ModelSettings

_ROUNDS = 7
_STEPS = 100
"""Of the schedule of the samples here: more than are taken, so that none ends."""
EDIT_STEPS = (4, 20, 50)


@dataclass(frozen=True, slots=True)
class Stages:
    """Milliseconds per sample of one call of each stage for all samples; a step is guided."""

    encode_ms: float
    step_ms: float
    decode_ms: float

    def edit_ms(self, steps: int) -> float:
        return self.encode_ms + steps * self.step_ms + self.decode_ms


def measure(model: LoadedModel, side: int, batches: Sequence[int], rounds: int = _ROUNDS) -> dict[int, Stages]:
    """Measure the stages by number of samples, of `side` × `side` pixels and with texts of several lengths.

    Numbers take turns, and the fastest of all rounds counts.
    """
    works = {batch: list(_works(model, side, batch)) for batch in batches}
    best = {batch: [float("inf")] * 3 for batch in batches}
    for _ in range(rounds):
        for batch in batches:
            best[batch] = [min(pair) for pair in zip(best[batch], map(_time_ms, works[batch]), strict=True)]
    return {batch: Stages(*(ms / batch for ms in best[batch])) for batch in batches}


def _works(model: LoadedModel, side: int, batch: int) -> Iterator[Callable[[], object]]:
    """Yield calls that encode, step and decode `batch` samples, each of a caller of its own."""
    pipeline, kinds = model.pipeline, plain(Effort(plain=_STEPS, side=side))
    entries = [
        expand(
            kinds[index % len(kinds)].request(),
            pipeline.geometry,
            defaults=SamplingDefaults(model.default_steps, model.default_guidance),
        )
        for index in range(batch)
    ]
    prepared = [pipeline.prepare(entry.conditions[0]) for entry in entries]
    encodings = pipeline.encode(prepared)
    pipeline.prefill(encodings)
    states = [pipeline.start(encoding, entry.samples[0]) for encoding, entry in zip(encodings, entries, strict=True)]
    yield lambda: pipeline.prefill(pipeline.encode(prepared))
    yield lambda: pipeline.step(states)
    yield lambda: pipeline.decode(states)


def _time_ms(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start_s)


def page(side: int, found: dict[int, Stages]) -> str:
    """Return a table in Markdown; the gain is that of whole edits over edits alone."""
    alone = next(iter(found.values()))
    gains = [f"{steps} steps: gain" for steps in EDIT_STEPS]
    header = [f"samples of {side} × {side}", "encode, ms each", "step, ms each", "decode, ms each", *gains]
    rows = [
        [
            str(batch),
            *(f"{ms:.1f}" for ms in (stages.encode_ms, stages.step_ms, stages.decode_ms)),
            *(f"{alone.edit_ms(steps) / stages.edit_ms(steps):.2f}×" for steps in EDIT_STEPS),
        ]
        for batch, stages in found.items()
    ]
    return "\n".join(table(header, rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.stages", description=__doc__)
    add = parser.add_argument
    add("--model", default=BUILTIN_TINY, help="builtin:tiny, a directory, or a hub id (%(default)s)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the model on a CPU (%(default)s)")
    add("--sides", type=int, nargs="+", default=[64, 128], help="of pictures and results, in pixels (%(default)s)")
    add("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="samples that share a stage (%(default)s)")
    arguments = parser.parse_args()
    for side in arguments.sides:
        settings = ModelSettings(source=arguments.model, native_area=side * side, cpu_threads=arguments.threads)
        print(page(side, measure(loading.load(settings), side, arguments.batches)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
