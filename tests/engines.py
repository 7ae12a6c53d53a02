"""Engines for tests: started and stopped, with requests that join at a known step."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from serve_app.engine.backend import Backend
from serve_app.engine.calibration import Calibration, calibrate
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.requests import EditFuture
from serve_app.engine.sampling import SamplingDefaults
from serve_app.errors import EditError
from serve_app.request import EditRequest, EditResult, Pixels
from serve_app.settings import EngineSettings
from tests.fakes import ArithmeticPipeline

TIMEOUT_S = 20
MODEL_TIMEOUT_S = 120
CALIBRATION = Calibration({1: 0.01}, knee_tokens=1, seconds_per_token=1e-5)


@contextmanager
def engine(
    pipeline: ArithmeticPipeline,
    *,
    max_samples: int = 8,
    timeout_s: float = 600,
    start: bool = True,
    calibration: Calibration = CALIBRATION,
    clock: Callable[[], float] = time.monotonic,
    adapters: Mapping[str, float] | None = None,
    kept_bytes: float = math.inf,
    **settings: Any,
) -> Iterator[EditEngine]:
    """Yield an engine. With `start=False` it takes requests, which `start` then begins in one step."""
    running = EditEngine(
        ServedModel(
            pipeline,
            calibration,
            max_samples=max_samples,
            sampling=SamplingDefaults(4, 4.0, adapters or {}),
            kept_bytes=kept_bytes,
        ),
        EngineSettings(**{"batch_tokens": 10**9, **settings}),
        timeout_s=timeout_s,
        clock=clock,
    )
    if start:
        running.start()
    try:
        yield running
    finally:
        pipeline.gate.set()
        running.stop()


def submit(running: EditEngine, *requests: EditRequest) -> list[EditFuture]:
    """Return the futures of requests whose pictures are prepared, so that all of them join at the next step."""
    futures = [answer for answer in running.submit(requests) if not isinstance(answer, EditError)]
    assert len(futures) == len(requests)
    wait_until_prepared(running)
    return futures


def wait_until_prepared(running: EditEngine) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while running.stats().preparing:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def start(running: EditEngine) -> None:
    """Start the engine, so that all that was submitted begins in one step."""
    wait_until_prepared(running)
    running.start()


def alone(request: EditRequest) -> EditResult:
    with engine(ArithmeticPipeline()) as running:
        return submit(running, request)[0].result(TIMEOUT_S)


def assert_same(result: EditResult, reference: EditResult) -> None:
    for row, expected in zip(result.pixels, reference.pixels, strict=True):
        for pixels, wanted in zip(row, expected, strict=True):
            np.testing.assert_array_equal(pixels, wanted)


SAMPLING = SamplingDefaults(3, 4.0)


@contextmanager
def calibrated_engine(
    pipeline: Backend, *, start: bool = True, sampling: SamplingDefaults = SAMPLING
) -> Iterator[EditEngine]:
    running = EditEngine(
        ServedModel(
            pipeline,
            calibrate(pipeline, max_samples=1, default_guidance=4.0),
            max_samples=8,
            sampling=sampling,
        ),
        EngineSettings(batch_tokens=10**9),
        timeout_s=MODEL_TIMEOUT_S,
    )
    if start:
        running.start()
    try:
        yield running
    finally:
        running.stop()


def outcome(future: EditFuture | EditError) -> Pixels | EditError:
    """Return the first picture, or the error that the edit ended with."""
    assert not isinstance(future, EditError)
    try:
        return future.result(MODEL_TIMEOUT_S).pixels[0][0]
    except EditError as error:
        return error
