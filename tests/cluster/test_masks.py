"""Masks and transparency through the real server, with a real model."""

from typing import Any

import numpy as np
import pytest
import requests
from openai import OpenAI

from serve_app import EditRequest
from serve_app.request import Mask, Picture
from tests.cluster.client import TIMEOUT_S, picture_of, pictures_of, png
from tests.cluster.conftest import Served
from tests.pictures import mask_png
from tests.scenes import scene

# No multiple of anything, so that the model makes another size than the result has.
WIDTH, HEIGHT = 147, 91
EXTRA: dict[str, Any] = {"seed": 3, "num_inference_steps": 2}
PROMPT = "make the sky blue"


def round_mask(left: float) -> Mask:
    """Return a mask with a disc of 24 pixels around a place `left` of the middle."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.asarray((x - WIDTH / 2 + left) ** 2 + (y - HEIGHT / 2) ** 2 < 24**2)


@pytest.fixture(scope="module")
def picture() -> Picture:
    return scene(1, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def transparent(picture: Picture) -> Picture:
    """Return the picture with every alpha, rising from left to right."""
    alpha = np.linspace(0, 255, WIDTH).astype(np.uint8)
    return np.dstack([picture, np.broadcast_to(alpha, (HEIGHT, WIDTH))])


def edit(served: Served, pictures: list[Picture], masks: list[Mask], **fields: Any) -> list[Picture]:
    files = [("images", ("a.png", png(each))) for each in pictures] + [("mask", ("m.png", mask_png(m))) for m in masks]
    data = {"prompt": PROMPT, **EXTRA, **fields}
    url = f"{served.client.base}/v1/images/edits"
    return pictures_of(requests.post(url, files=files, data=data, timeout=TIMEOUT_S))


def check(result: Picture, picture: Picture, mask: Mask) -> None:
    """Raise AssertionError unless the bytes outside the mask are the picture's, and those inside are not."""
    assert result.shape == picture.shape
    np.testing.assert_array_equal(result[~mask], picture[~mask])
    assert (result[mask] != picture[mask]).any(axis=-1).mean() > 0.5


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_bytes_outside_of_each_mask_are_the_inputs_own(served: Served, picture: Picture, output_format: str):
    other = scene(2, WIDTH, HEIGHT)
    masks = [round_mask(30), round_mask(-30)]
    results = edit(served, [picture, other], masks, n=2, output_format=output_format)
    assert len(results) == 4
    for index, result in enumerate(results):
        check(result, [picture, other][index // 2], masks[index // 2])


def test_openais_client_and_a_handle_send_the_same_mask(served: Served, picture: Picture):
    mask = round_mask(0)
    [same] = edit(served, [picture], [mask])
    check(same, picture, mask)
    with OpenAI(base_url=f"{served.client.base}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
        answer = client.images.edit(image=png(picture), mask=mask_png(mask), prompt=PROMPT, extra_body=EXTRA)
    check(picture_of(answer.model_dump()["data"][0]), picture, mask)
    result = served.editor.edit.remote(EditRequest(images=[picture], mask=mask, prompt=PROMPT, **EXTRA)).result()
    check(np.asarray(result.images[0][0]), picture, mask)


def test_a_transparent_picture_keeps_its_transparency(served: Served, transparent: Picture):
    [result] = edit(served, [transparent], [], size="original")
    assert result.shape == transparent.shape
    np.testing.assert_array_equal(result[:, :, 3], transparent[:, :, 3])
    [native] = edit(served, [transparent], [])
    assert native.shape[2] == 4
    [opaque] = edit(served, [transparent], [], background="opaque")
    assert opaque.shape[2] == 3


def test_a_transparent_picture_is_opaque_inside_its_mask_and_unchanged_outside(served: Served, transparent: Picture):
    mask = round_mask(20)
    [result] = edit(served, [transparent], [mask])
    np.testing.assert_array_equal(result[~mask], transparent[~mask])
    assert result[HEIGHT // 2, WIDTH // 2 - 20, 3] == 255
