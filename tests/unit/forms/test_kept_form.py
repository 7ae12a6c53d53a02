"""Forms kept for a later process."""

import pickle

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from serve_app.forms import kept_form
from serve_app.forms.form import EditForm
from serve_app.images.geometry import Size
from serve_app.request import EditRequest
from tests.scenes import scene

REQUEST = EditRequest(
    images=[scene(1, 64, 32), scene(2)],
    prompt=["make it night", "mirror it"],
    negative_prompt="blurry",
    n=3,
    size=Size(64, 32),
    fit="free",
    original_sizes=[Size(128, 64), Size(512, 512)],
    num_inference_steps=5,
    guidance_scale=2.5,
    seed=2**53 - 4,
    partial_images=1,
    caller="ann",
)
FORM = EditForm(REQUEST, "webp", 80, "ann's laptop", False, "1234")


def test_every_field_comes_back() -> None:
    found = kept_form.load(kept_form.dump(FORM))
    assert isinstance(found.request, EditRequest)
    for name in EditRequest.model_fields:
        if name != "images":
            assert getattr(found.request, name) == getattr(REQUEST, name)
    for picture, wanted in zip(found.request.images, REQUEST.images, strict=True):
        np.testing.assert_array_equal(picture, wanted)
    assert (found.output_format, found.output_compression, found.user) == ("webp", 80, "ann's laptop")
    assert (found.stream, found.fingerprint) == (False, "1234")


def test_masks_and_transparency_come_back_and_a_common_mask_is_kept_once() -> None:
    mask, image = scene(1)[:, :, 0] > 128, np.dstack([scene(1), scene(2)[:, :, 0]])
    request = EditRequest(images=[image, image], mask=mask, background="auto", prompt="x")
    dumped = kept_form.dump(EditForm(request, "png", 100, None, False))
    assert len(dumped) < image.nbytes + 2 * mask.nbytes
    found = kept_form.load(dumped).request
    for image_back, mask_back in zip(found.images, found.masks, strict=True):
        np.testing.assert_array_equal(image_back, image)
        np.testing.assert_array_equal(mask_back, mask)


def test_a_random_seed_is_kept() -> None:
    form = EditForm(EditRequest(images=[scene(1)], prompt="x"), "png", 100, None, False)
    assert kept_form.load(kept_form.dump(form)).request.seed == form.request.seed


def test_a_field_that_an_older_version_did_not_know_has_its_default() -> None:
    request, rest = pickle.loads(kept_form.dump(FORM))
    del request["partial_images"], request["fit"], request["original_sizes"], rest["fingerprint"]
    del request["mask"], request["background"], request["references"]
    found = kept_form.load(pickle.dumps((request, rest)))
    assert (found.request.partial_images, found.fingerprint) == (0, None)
    assert (found.request.fit, found.request.original_sizes) == ("cover", None)
    assert (found.request.masks, found.request.background) == ((None, None), "auto")


def test_a_field_of_another_version_is_refused() -> None:
    request, rest = pickle.loads(kept_form.dump(FORM))
    with pytest.raises(InvalidInput):
        kept_form.load(pickle.dumps(({**request, "strength": 0.5}, rest)))
    with pytest.raises(TypeError):
        kept_form.load(pickle.dumps((request, {**rest, "background": "auto"})))
