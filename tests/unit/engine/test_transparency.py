"""Transparency that a model makes: what a caller gets of it, by `background`."""

from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.engine.requests import RunOptions
from serve_app.errors import EditError, InvalidInput
from serve_app.events import Preview
from serve_app.images.pixels import lay_on_white
from serve_app.request import Picture
from tests.engines import TIMEOUT_S, engine, submit
from tests.fakes import ArithmeticPipeline, State, edit_request, picture

HALF = np.repeat([[255, 0]], 64, axis=0).repeat(32, axis=1).astype(np.uint8)


class ClearPipeline(ArithmeticPipeline):
    """A model that makes pictures with this alpha channel."""

    alpha = HALF

    @property
    def makes_alpha(self) -> bool:
        return True

    def preview(self, states: Sequence[State]) -> list[Picture]:
        return [np.dstack([made, self.alpha]) for made in super().preview(states)]

    def decode(self, states: Sequence[State]) -> list[Picture]:
        return [np.dstack([made, self.alpha]) for made in super().decode(states)]


class NearlyOpaquePipeline(ClearPipeline):
    alpha = np.full_like(HALF, 250)


def edited(pipeline: ArithmeticPipeline, **fields) -> Picture:
    with engine(pipeline) as running:
        [future] = submit(running, edit_request(1, **fields))
        [[pixels]] = future.result(TIMEOUT_S).pixels
    return pixels


COLOURS = edited(ArithmeticPipeline())
MADE = np.dstack([COLOURS, HALF])


@pytest.mark.parametrize("background", ["auto", "transparent"])
def test_an_output_is_as_transparent_as_the_model_made_it(background):
    np.testing.assert_array_equal(edited(ClearPipeline(), background=background), MADE)


def test_the_transparency_of_the_image_is_not_added():
    clear = np.dstack([picture(1), np.full((64, 64), 9, np.uint8)])
    assert (edited(ClearPipeline(), images=[clear])[:, :, 3] == HALF).all()


def test_with_an_opaque_background_it_lies_on_white():
    opaque = edited(ClearPipeline(), background="opaque")
    np.testing.assert_array_equal(opaque, lay_on_white(MADE))
    assert (opaque[:, 32:] == 255).all()


def test_one_that_is_nowhere_clearly_transparent_is_opaque_unless_asked_otherwise():
    np.testing.assert_array_equal(edited(NearlyOpaquePipeline()), COLOURS)
    assert (edited(NearlyOpaquePipeline(), background="transparent")[:, :, 3] == 250).all()


def test_inside_a_mask_it_lies_on_white():
    mask = np.ones((64, 64), bool)
    made = np.dstack([edited(ArithmeticPipeline(), mask=mask), HALF])
    np.testing.assert_array_equal(edited(ClearPipeline(), mask=mask), lay_on_white(made))


def test_previews_are_transparent_too():
    events: list[object] = []
    with engine(ClearPipeline()) as running:
        [future] = running.submit([edit_request(1, partial_images=1)], [RunOptions(listener=events.append)])
        assert not isinstance(future, EditError)
        future.result(TIMEOUT_S)
    [preview] = [event for event in events if isinstance(event, Preview)]
    assert (preview.pixels[:, :, 3] == HALF).all()


def test_a_model_that_makes_none_refuses_to_before_it_costs_anything():
    pipeline = ArithmeticPipeline()
    with engine(pipeline) as running:
        [error] = running.submit([edit_request(1, background="transparent")])
        assert isinstance(error, InvalidInput)
        assert error.param == "background"
        assert running.stats().requests == 0
    assert pipeline.encoded == []
