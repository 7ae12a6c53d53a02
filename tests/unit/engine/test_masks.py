"""Masks and transparency at the delivery: what the caller gets of a picture that the model made."""

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.engine.requests import RunOptions
from serve_app.errors import EditError, InvalidInput
from serve_app.events import Completed, Event, Preview
from serve_app.images.geometry import Size, center_crop
from serve_app.images.pixels import resize
from serve_app.request import EditRequest, EditResult, Picture
from tests.engines import TIMEOUT_S, alone, assert_same, engine, start, submit
from tests.fakes import ArithmeticPipeline, edit_request, picture
from tests.scenes import difference

WIDTH, HEIGHT = 90, 70
LEFT = np.arange(WIDTH) < np.full((HEIGHT, WIDTH), WIDTH // 2)


def masked(seed: int, mask: NDArray[np.bool_] = LEFT, **fields) -> EditRequest:
    return edit_request(seed, images=[picture(seed, WIDTH, HEIGHT)], mask=mask, **fields)


def clear(seed: int) -> Picture:
    """Return a picture that is less and less transparent from the left to the right."""
    alpha = np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, WIDTH))
    return np.dstack([picture(seed, WIDTH, HEIGHT), alpha])


def assert_kept(result: Picture, image: Picture, mask: NDArray[np.bool_]) -> None:
    """Assert that the bytes outside the mask, and only these, are the image's own."""
    assert result.shape == image.shape
    np.testing.assert_array_equal(result[~mask], image[~mask])
    assert difference(result[mask], image[mask]) > 20


def results(*requests: EditRequest) -> list[EditResult]:
    """Return the results of requests that share all their steps."""
    with engine(ArithmeticPipeline(), start=False) as running:
        futures = submit(running, *requests)
        start(running)
        return [future.result(TIMEOUT_S) for future in futures]


def test_outputs_keep_the_inputs_bytes_outside_their_own_mask():
    both = [picture(4, WIDTH, HEIGHT), picture(5, HEIGHT, WIDTH)]
    requests = [
        masked(1, n=2),
        edit_request(2, images=[picture(2, WIDTH, HEIGHT)], size="original"),
        masked(3, ~LEFT, guidance_scale=1.0),
        edit_request(4, images=both, mask=[LEFT, LEFT.T], n=2),
    ]
    merged = results(*requests)
    for result, request in zip(merged, requests, strict=True):
        assert_same(result, alone(request))
        for variants, image, mask in zip(result.pixels, request.images, request.masks, strict=True):
            for pixels in variants:
                if mask is not None:
                    assert_kept(pixels, image, mask)


def test_previews_keep_them_too():
    events: list[Event] = []
    request = masked(1, partial_images=2, num_inference_steps=6)
    with engine(ArithmeticPipeline()) as running:
        [future] = running.submit([request], [RunOptions(events.append)])
        assert not isinstance(future, EditError)
        future.result(TIMEOUT_S)
    shown = [event.pixels for event in events if isinstance(event, (Preview, Completed))]
    assert len(shown) == 3
    for pixels in shown:
        assert_kept(pixels, request.images[0], LEFT)


def test_in_another_size_they_keep_the_image_as_it_is_cropped_and_resized():
    request = masked(1, np.arange(WIDTH) < np.full((HEIGHT, WIDTH), 30), size="50x50")
    [[pixels]] = alone(request).pixels
    kept = resize(request.images[0], Size(50, 50), center_crop(Size(WIDTH, HEIGHT), Size(50, 50)))
    # 70 columns are shown, from the tenth on.
    assert_kept(pixels, kept, np.arange(50) < np.full((50, 50), 14))


@pytest.mark.parametrize("size", ["50x50", "original", "auto"])
def test_an_output_is_as_transparent_as_its_image(size: str):
    [[pixels]] = alone(edit_request(1, images=[clear(1)], size=size)).pixels
    height, width, channels = pixels.shape
    assert channels == 4
    crop = center_crop(Size(WIDTH, HEIGHT), Size(width, height)) if size == "50x50" else (0.0, 0.0, 1.0, 1.0)
    np.testing.assert_array_equal(pixels[:, :, 3], resize(clear(1), Size(width, height), crop)[:, :, 3])


def test_inside_a_mask_it_is_opaque_and_outside_all_its_channels_are_the_images():
    [[pixels]] = alone(edit_request(1, images=[clear(1)], mask=LEFT)).pixels
    np.testing.assert_array_equal(pixels[~LEFT], clear(1)[~LEFT])
    assert (pixels[LEFT][:, 3] == 255).all()


def test_a_recomposed_image_has_no_transparency_and_neither_has_an_opaque_one():
    for fields in ({"size": "50x50", "fit": "free"}, {"background": "opaque"}, {"mask": np.ones_like(LEFT)}):
        [[pixels]] = alone(edit_request(1, images=[clear(1)], **fields)).pixels
        assert pixels.shape[2] == 3


def test_a_mask_with_nothing_to_edit_in_the_part_that_is_shown_is_refused_before_it_costs_anything():
    pipeline = ArithmeticPipeline()
    edge = np.arange(WIDTH) < np.full((HEIGHT, WIDTH), 10)
    images = [picture(1, WIDTH, HEIGHT)] * 2
    with engine(pipeline) as running:
        [error] = running.submit([edit_request(1, images=images, mask=[LEFT, edge], size="50x50")])
        assert isinstance(error, InvalidInput)
        assert error.param == "mask"
        assert "mask at index 1 has nothing to edit" in error.message
        assert running.stats().requests == 0
    assert pipeline.encoded == []
    alone(edit_request(1, images=images, mask=[LEFT, edge]))
