"""The effect of attention backends and of compilation on a step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.models.attention_dispatch import AttentionBackendName

from benchmarks.gpu.measure import Bench, Case, first_line
from benchmarks.gpu.prompts import equal_prompts
from benchmarks.gpu.report import Rows, ms, yes_no
from serve_app.errors import DeviceLost
from serve_app.models.pipeline import SampleState

_NATIVE = "native"
# The kernels of these backends are downloaded when the backend is chosen.
_DOWNLOADED = "_hub"


def attention_rows(bench: Bench) -> Rows:
    """Yield `native` first, for comparison, and then every other backend that diffusers names."""
    case = bench.whole
    others = sorted(backend.value for backend in AttentionBackendName if backend.value != _NATIVE)
    with bench.native(case):
        guided, plain = (bench.states(bench.entry(case, equal_prompts(1), guided=each)) for each in (True, False))
        with _backend(bench, _NATIVE):
            expected = _velocity(bench, case)
        # PyTorch's own first: a broken kernel of another may make the device unusable.
        for name in [_NATIVE, *sorted(others, key=lambda name: not name.startswith("_native"))]:
            try:
                with _backend(bench, name):
                    cells = [*_timed(bench, case, guided), *_checked(bench, case, plain, expected)]
            except DeviceLost:
                raise
            except Exception as error:  # backends raise errors of any type
                cells = [f"refuses: {first_line(error)}", "", "", "", ""]
            yield [f"`{name}`", *cells]


@contextmanager
def _backend(bench: Bench, name: str) -> Iterator[None]:
    transformer = bench.pipeline.transformer
    if name.endswith(_DOWNLOADED):
        raise ValueError("its kernel is a download, and this script uses no network")
    try:
        transformer.set_attention_backend(name)
        yield
    finally:
        transformer.set_attention_backend(_NATIVE)
        transformer.reset_attention_backend()


def _timed(bench: Bench, case: Case, states: Sequence[SampleState]) -> list[str]:
    """Return milliseconds and share, or the error."""
    try:
        step_s = bench.step_s(states)
    except DeviceLost:
        raise
    except Exception as error:  # backends raise errors of any type
        return [f"refuses: {first_line(error)}", ""]
    return [ms(step_s), f"{bench.floor_s(case, states) / step_s:.0%}"]


def _checked(bench: Bench, case: Case, states: Sequence[SampleState], expected: torch.Tensor) -> list[str]:
    """Return the same, and the deviation from the prediction of `native`."""
    timed = _timed(bench, case, states)
    if not timed[1]:
        return [*timed, ""]
    deviation = (_velocity(bench, case) - expected).norm() / expected.norm()
    return [*timed, f"{deviation.item():.1e}"]


def _velocity(bench: Bench, case: Case) -> torch.Tensor:
    """Return the first prediction for one unguided sample, in float32."""
    [state] = bench.states(bench.entry(case, equal_prompts(1), guided=False))
    bench.pipeline.step([state])
    assert state.velocity is not None
    return state.velocity.float()


def compile_rows(bench: Bench) -> Rows:
    """Yield eager and compiled times of the same samples. The model is left as it was."""
    blocks = bench.pipeline.transformer.transformer_blocks
    for case, guided, batch in ((bench.whole, True, 1), (bench.whole, False, 1), (bench.small, True, 4)):
        with bench.native(case):
            states = bench.states(bench.entry(case, equal_prompts(batch), guided=guided))
            eager_s = bench.step_s(states)
            # As in serve_app.models.loading.
            bench.pipeline.transformer.compile_repeated_blocks(dynamic=True)
            try:
                first_s = bench.watch.warm_up(lambda states=states: bench.pipeline.step(states))  # type: ignore[misc]
                compiled_s = bench.step_s(states)
            finally:
                for block in blocks:
                    block._compiled_call_impl = None
        yield [
            str(case),
            yes_no(guided),
            str(batch),
            ms(eager_s),
            ms(compiled_s),
            f"{eager_s / compiled_s:.2f}×",
            f"{bench.floor_s(case, states) / compiled_s:.0%}",
            f"{first_s:.1f}",
        ]
