"""Pictures made from a text alone, in the engine: their order and seeds, beside edits, and where none can be made."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from serve_app.engine.requests import RunOptions
from serve_app.errors import EditError, InvalidInput, NotFound
from serve_app.events import Completed, Done, Event, Preview, result_of
from tests.engines import TIMEOUT_S, assert_same, engine, submit
from tests.fakes import ArithmeticPipeline, edit_request, generation_request


class EditsOnly(ArithmeticPipeline):
    @property
    def generates(self) -> bool:
        return False


def test_variants_come_in_order_each_from_its_own_seed():
    with engine(ArithmeticPipeline()) as running:
        [together] = submit(running, generation_request(5, n=3))
        result = together.result(TIMEOUT_S)
        each = [generation_request(5 + k, prompt="prompt 5") for k in range(3)]
        alone = [future.result(TIMEOUT_S) for future in submit(running, *each)]
    assert result.seeds == ((5, 6, 7),)
    for variant, one in zip(result.pixels[0], alone, strict=True):
        np.testing.assert_array_equal(variant, one.pixels[0][0])
    assert result.tokens.reference == 0
    assert result.tokens.text == 2
    assert result.tokens.output == 3 * 16


def test_it_shares_forwards_with_edits_and_nothing_else():
    requests = [
        edit_request(1),
        generation_request(1),
        edit_request(2, n=2),
        generation_request(2, size="100x40", guidance_scale=1),
    ]
    with engine(ArithmeticPipeline()) as running:
        alone = [submit(running, each)[0].result(TIMEOUT_S) for each in requests]
        shared = running.stats().shared_forwards
        merged = [future.result(TIMEOUT_S) for future in submit(running, *requests)]
        assert running.stats().shared_forwards > shared
    for one, other in zip(alone, merged, strict=True):
        assert_same(other, one)
    assert merged[3].pixels[0][0].shape == (40, 100, 3)


@pytest.mark.parametrize(("size", "shape"), [("auto", (64, 64, 3)), ("48x80", (80, 48, 3)), ("50x33", (33, 50, 3))])
def test_it_has_the_size_that_was_asked_for_or_the_native_square(size, shape):
    with engine(ArithmeticPipeline()) as running:
        [future] = submit(running, generation_request(size=size))
        assert future.result(TIMEOUT_S).pixels[0][0].shape == shape


def test_its_events_make_its_result():
    events: list[Event] = []
    request = generation_request(3, n=2, partial_images=1)
    with engine(ArithmeticPipeline()) as running:
        [future] = running.submit([request], [RunOptions(listener=events.append)])
        assert not isinstance(future, EditError)
        result = future.result(TIMEOUT_S)
    places = [(event.image_index, event.variant_index) for event in events if isinstance(event, Preview)]
    assert sorted(places) == [(0, 0), (0, 1)]
    assert all(event.tokens.reference == 0 for event in events if isinstance(event, Completed))

    async def stream() -> AsyncIterator[Event]:
        for event in (*events, Done(result.timings, result.batch, result.tokens)):
            yield event

    again = asyncio.run(result_of(stream(), request))
    assert again.seeds == result.seeds
    assert_same(again, result)


@pytest.fixture
def edits_only() -> Iterator[Any]:
    with engine(EditsOnly()) as running:
        yield running


def test_a_model_that_only_edits_refuses_it_and_goes_on(edits_only):
    [refused] = edits_only.submit([generation_request()])
    assert isinstance(refused, NotFound)
    assert "Qwen/Qwen-Image-2.1" in refused.message
    [future] = submit(edits_only, edit_request(1))
    assert future.result(TIMEOUT_S).pixels


def test_a_text_that_the_model_cannot_take_is_refused():
    with engine(ArithmeticPipeline()) as running:
        [refused] = running.submit([generation_request(prompt="x" * 1001)])
    assert isinstance(refused, InvalidInput)
    assert refused.param == "prompt"
