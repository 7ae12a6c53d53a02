"""What attention backends and compilation do to a step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.models.attention_dispatch import AttentionBackendName

from benchmarks.gpu_measure import Bench, Case, first_line
from benchmarks.gpu_prompts import equal_prompts
from benchmarks.gpu_report import Rows, ms, yes_no
from serve_app.errors import DeviceLost
from serve_app.models.pipeline import SampleState

_NATIVE = "native"
# Their kernels are downloaded when they are chosen.
_DOWNLOADED = "_hub"


def attention_rows(bench: Bench) -> Rows:
    """`native` first, to compare with; then every other backend that diffusers names."""
    case = bench.whole
    others = sorted(backend.value for backend in AttentionBackendName if backend.value != _NATIVE)
    with bench.native(case):
        guided, plain = (bench.states(bench.entry(case, equal_prompts(1), guided=each)) for each in (True, False))
        with _backend(bench, _NATIVE):
            expected = _velocity(bench, case)
        # PyTorch's own first: a broken kernel of another may take the device with it.
        for name in [_NATIVE, *sorted(others, key=lambda name: not name.startswith("_native"))]:
            try:
                with _backend(bench, name):
                    cells = [*_timed(bench, case, guided), *_checked(bench, case, plain, expected)]
            except DeviceLost:
                raise
            except Exception as error:  # whatever it refuses with
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
    """Milliseconds and share, or why not."""
    try:
        step_s = bench.step_s(states)
    except DeviceLost:
        raise
    except Exception as error:  # whatever it refuses with
        return [f"refuses: {first_line(error)}", ""]
    return [ms(step_s), f"{bench.floor_s(case, states) / step_s:.0%}"]


def _checked(bench: Bench, case: Case, states: Sequence[SampleState], expected: torch.Tensor) -> list[str]:
    """The same with the deviation from what `native` predicts."""
    timed = _timed(bench, case, states)
    if not timed[1]:
        return [*timed, ""]
    deviation = (_velocity(bench, case) - expected).norm() / expected.norm()
    return [*timed, f"{deviation.item():.1e}"]


def _velocity(bench: Bench, case: Case) -> torch.Tensor:
    """The first prediction for one unguided sample, in float32."""
    [state] = bench.states(bench.entry(case, equal_prompts(1), guided=False))
    bench.pipeline.step([state])
    assert state.velocity is not None
    return state.velocity.float()


def compile_rows(bench: Bench) -> Rows:
    """Eager and compiled by turns, on the same samples. Leaves the model as it was."""
    blocks = bench.pipeline.transformer.transformer_blocks
    for case, guided, batch in ((bench.whole, True, 1), (bench.whole, False, 1), (bench.small, True, 4)):
        with bench.native(case):
            states = bench.states(bench.entry(case, equal_prompts(batch), guided=guided))
            eager_s = bench.step_s(states)
            # As serve_app.models.loading does it.
            bench.pipeline.masks_texts = True
            bench.pipeline.transformer.compile_repeated_blocks(dynamic=True)
            try:
                first_s = bench.watch.warm_up(lambda states=states: bench.pipeline.step(states))  # type: ignore[misc]
                compiled_s = bench.step_s(states)
            finally:
                bench.pipeline.masks_texts = False
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
