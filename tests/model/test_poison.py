"""Failing samples in the real model: their neighbours get the same pictures as alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.engine.backend import Backend
from serve_app.engine.requests import RunOptions
from serve_app.engine.scheduler import Condition, Sample, StepCost
from serve_app.engine.stats import EngineStats
from serve_app.errors import EditError, GenerationError, NotFinite, OutOfMemory
from serve_app.events import Event, Preview
from serve_app.images.geometry import Geometry
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.models.pipeline import SampleState
from serve_app.request import EditRequest, Pixels
from tests.engines import calibrated_engine, outcome, start
from tests.scenes import difference, scene

POISON = 666
"""The seed of the sample that misbehaves."""


class Poisoned:
    """The real pipeline, in which the poisoned seed fails in the way of `kind`."""

    def __init__(self, real: StepwiseQwenImageEditPipeline, kind: str) -> None:
        self._real = real
        self._kind = kind
        self._poisoned: list[SampleState] = []

    @property
    def geometry(self) -> Geometry:
        return self._real.geometry

    @property
    def makes_alpha(self) -> bool:
        return False

    @property
    def generates(self) -> bool:
        return False

    @property
    def step_cost(self) -> StepCost:
        return self._real.step_cost

    def check(self, condition: Condition) -> None:
        self._real.check(condition)

    def prepare(self, condition: Condition, shared: dict[Any, Any]) -> Any:
        return self._real.prepare(condition, shared)

    def count_tokens(self, text: str) -> int:
        return self._real.count_tokens(text)

    def encode(self, prepared: Sequence[Any]) -> list[Any]:
        return self._real.encode(prepared)

    def prefill(self, encodings: Sequence[Any], pieces: Sequence[int] | None = None) -> list[int]:
        return self._real.prefill(encodings, pieces)

    def start(self, encoding: Any, sample: Sample) -> SampleState:
        state = self._real.start(encoding, sample)
        if sample.seed == POISON:
            self._poisoned.append(state)
        return state

    def step(self, states: Sequence[SampleState]) -> None:
        poisoned = [state for state in states if any(state is known for known in self._poisoned)]
        if self._kind == "exception" and any(state.step == 1 for state in poisoned):
            raise RuntimeError("something broke in /secret/place")
        if self._kind == "memory" and poisoned:
            raise OutOfMemory("CUDA out of memory")
        if self._kind == "crowd" and len(states) > 2:
            raise OutOfMemory("CUDA out of memory")
        self._real.step(states)
        for state in poisoned if self._kind == "nan" else []:
            state.latents = torch.full_like(state.latents, float("nan"))

    def preview(self, states: Sequence[SampleState]) -> list[Pixels]:
        return self._real.preview(states)

    def decode(self, states: Sequence[SampleState]) -> list[Pixels]:
        return self._real.decode(states)


def requests() -> list[EditRequest]:
    """Return the requests of five callers; the third one's sample is poisoned."""
    seeds = (1, 2, POISON, 4, 5)
    return [EditRequest(images=[scene(seed)], prompt=f"prompt {seed}", seed=seed, size="64x64") for seed in seeds]


def run(pipeline: Backend) -> tuple[list[Pixels | EditError], EngineStats]:
    with calibrated_engine(pipeline) as running:
        answers = [outcome(future) for future in running.submit(requests())]
        return answers, running.stats()


@pytest.fixture(scope="module")
def alone(random_model) -> list[Pixels]:
    pictures = []
    for request in requests():
        with calibrated_engine(random_model) as running:
            [future] = running.submit([request])
            picture = outcome(future)
            assert not isinstance(picture, EditError)
            pictures.append(picture)
    return pictures


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("exception", GenerationError, "Image generation failed: internal error"),
        ("memory", OutOfMemory, "Image generation failed: CUDA out of memory"),
        ("nan", NotFinite, "Image generation failed: the model produced values that are not numbers"),
    ],
)
def test_one_poisoned_sample_fails_its_own_request_only(random_model, alone, kind, error, message):
    answers, stats = run(Poisoned(random_model, kind))
    failure = answers.pop(2)
    assert type(failure) is error
    assert str(failure) == message
    for answer, reference in zip(answers, alone[:2] + alone[3:], strict=True):
        assert not isinstance(answer, EditError)
        assert difference(answer, reference) <= 1
    assert (stats.failed, stats.finished) == (1, 4)


def test_a_batch_too_large_for_the_memory_is_halved_and_changes_no_result(random_model, alone):
    answers, stats = run(Poisoned(random_model, "crowd"))
    for answer, reference in zip(answers, alone, strict=True):
        assert not isinstance(answer, EditError)
        assert difference(answer, reference) <= 1
    assert (stats.failed, stats.finished) == (0, 5)


def test_merged_neighbours_get_the_same_bits_whether_somebody_looks_or_not(random_model):
    """Somebody: the third. All three are in every forward, so that even the float noise is the same."""
    looked_at: list[Event] = []
    results = []
    for terms in ([RunOptions(), RunOptions(), RunOptions(looked_at.append)], None):
        with calibrated_engine(random_model, start=False) as running:
            some = [EditRequest(**{**dict(each), "partial_images": 3}) for each in requests()[:3]]
            futures = running.submit(some, terms)
            start(running)
            results.append([outcome(future) for future in futures])
    assert sum(isinstance(event, Preview) for event in looked_at) == 2
    for watched, unwatched in zip(*results, strict=True):
        np.testing.assert_array_equal(watched, unwatched)
