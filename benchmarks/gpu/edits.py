"""Whole edits through the real engine, beside the sum of the stages."""

import time

from benchmarks.gpu.measure import GUIDANCE, Bench, Case, edit_request
from benchmarks.gpu.prompts import equal_prompts
from benchmarks.gpu.report import Rows, yes_no
from serve_app.engine.calibration import Calibration
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.sampling import SamplingDefaults
from serve_app.errors import EditError
from serve_app.settings import EngineSettings

_TIMEOUT_S = 3600.0
# More than any batch here, so that the engine merges all callers, whatever the knee.
_BATCH_TOKENS = 10**9


def edit_rows(bench: Bench) -> Rows:
    """Yield one caller and four at once, few steps first; the longest last, since it may not fit into the budget."""
    rows = [
        (bench.whole, True, 8, 1),
        (bench.whole, False, 4, 1),
        (bench.small, True, 8, 1),
        (bench.small, True, 8, 4),
        (bench.small, False, 4, 4),
        (bench.whole, True, 50, 1),
    ]
    for case, guided, steps, callers in rows:
        with bench.native(case):
            computed_s = _computed_s(bench, case, guided, steps, callers)
            if computed_s > bench.watch.left_s:
                raise TimeoutError(f"the next edit, of {steps} steps, takes {computed_s:.0f} s")
            measured_s, mean_batch = _measured(bench, case, guided, steps, callers)
        yield [
            str(case),
            yes_no(guided),
            str(steps),
            str(callers),
            f"{measured_s:.2f}",
            f"{computed_s:.2f}",
            f"{measured_s / computed_s:.2f}",
            f"{mean_batch:.2f}",
        ]


def _computed_s(bench: Bench, case: Case, guided: bool, steps: int, callers: int) -> float:
    entry = bench.entry(case, equal_prompts(callers), guided=guided)
    prepared = [bench.pipeline.prepare(condition) for condition in entry.conditions]
    encode_s = bench.watch.median(lambda: bench.pipeline.encode(prepared))
    states = bench.states(entry)
    step_s = bench.step_s(states)
    return encode_s + steps * step_s + bench.watch.median(lambda: bench.pipeline.decode(states))


def _measured(bench: Bench, case: Case, guided: bool, steps: int, callers: int) -> tuple[float, float]:
    """Return the seconds until the last caller has its picture, and the mean batch."""
    engine = EditEngine(
        ServedModel(
            bench.pipeline,
            Calibration({}, _BATCH_TOKENS, 0.0),
            max_samples=max(callers, bench.max_samples),
            sampling=SamplingDefaults(steps, GUIDANCE),
        ),
        EngineSettings(batch_tokens=_BATCH_TOKENS),
        timeout_s=_TIMEOUT_S,
    )
    requests = [edit_request(case, equal_prompts(1), guided=guided, steps=steps, seed=seed) for seed in range(callers)]
    engine.start()
    try:
        start_s = time.perf_counter()
        for future in engine.submit(requests):
            if isinstance(future, EditError):
                raise future
            future.result(_TIMEOUT_S)
        elapsed_s = time.perf_counter() - start_s
    finally:
        engine.stop()
    stats = engine.stats()
    return elapsed_s, stats.sample_steps / stats.forwards
