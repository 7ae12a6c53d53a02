"""References: pictures that edits look at beside their own, in bodies of both kinds."""

import base64
import json
from typing import Any

import pytest

from serve_app.errors import InvalidInput, PayloadTooLarge
from serve_app.forms.form import EditForm
from serve_app.settings import AppSettings, LimitSettings
from tests.pictures import png
from tests.uploads import PROMPT, SETTINGS, Part, Upload, form_of, picture

FEW = AppSettings(limits=LimitSettings(max_references=2))
BROKEN: Part = ("references", ("notes.png", b"hello", "image/png"))


def b64(value: int = 0) -> str:
    return base64.b64encode(png(value, 8, 8)).decode()


def form_of_json(settings: AppSettings = SETTINGS, **fields: Any) -> EditForm:
    return Upload([json.dumps({"prompt": "x", **fields}).encode()], "application/json").parse(settings)


def levels(form: EditForm) -> tuple[list[int], list[list[int]]]:
    """Return the first values of the images, and of the references of each."""
    request = form.request
    return (
        [int(image[0, 0, 0]) for image in request.images],
        [[int(reference[0, 0, 0]) for reference in of_one] for of_one in request.references_by_image],
    )


@pytest.mark.parametrize("names", [("image", "image", "image"), ("image[]",) * 3, ("image", "image[]", "image")])
def test_of_several_image_fields_the_first_is_edited(names: tuple[str, ...]) -> None:
    parts = [picture(name, value) for name, value in zip(names, (5, 6, 7), strict=True)]
    assert levels(form_of(PROMPT, *parts)) == ([5], [[6, 7]])


@pytest.mark.parametrize("name", ["references", "references[]"])
def test_references_belong_to_every_image_of_the_batch(name: str) -> None:
    form = form_of(PROMPT, picture(name, 1), picture("images", 5), picture(name, 2), picture("images", 6))
    assert levels(form) == ([5, 6], [[1, 2], [1, 2]])
    # They are kept once.
    first, second = form.request.references
    assert first[0] is second[0]


def test_one_image_may_have_references_by_either_name() -> None:
    assert levels(form_of(PROMPT, picture("image", 5), picture("references", 6))) == ([5], [[6]])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image": [b64(5), b64(6)]}, ([5], [[6]])),
        ({"image": [{"url": b64(5)}, b64(6)]}, ([5], [[6]])),
        ({"images": [{"image_url": b64(5)}, {"image_url": b64(6)}]}, ([5], [[6]])),
        ({"images": [b64(5), b64(6)]}, ([5, 6], [[], []])),
        ({"images": [b64(5), b64(6)], "references": [b64(7)]}, ([5, 6], [[7], [7]])),
        ({"references": {"url": b64(7)}, "images": [b64(5)]}, ([5], [[7]])),
        ({"images": [b64(5), b64(6)], "references": [[b64(7), b64(8)], []]}, ([5, 6], [[7, 8], []])),
        ({"images": b64(5), "references": []}, ([5], [[]])),
        ({"images": b64(5), "references": None}, ([5], [[]])),
    ],
)
def test_json_has_them_in_openais_form_for_all_images_or_for_each(fields: dict[str, Any], expected: Any) -> None:
    assert levels(form_of_json(**fields)) == expected


@pytest.mark.parametrize(
    ("parts", "param", "words"),
    [
        ([picture("image")] * 4, "image", "2 references beside its own picture at most"),
        ([picture("images"), *[picture("references[]")] * 3], "references[]", "2 references beside"),
        ([*[picture("image")] * 2, picture("references")], "references", "send them all as `references`"),
        ([picture("references"), *[picture("image[]")] * 2], "image[]", "send them all as `references`"),
        (
            [picture("images"), picture("references"), BROKEN],
            "references",
            "references: Invalid image format at index 1",
        ),
    ],
)
def test_a_form_is_refused_by_the_name_of_the_field(parts: list[Part], param: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        form_of(PROMPT, *parts, settings=FEW)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"image": [b64()] * 4}, "image", "2 references beside its own picture at most; .* as `images`"),
        ({"images": [{"url": b64()}] * 4}, "image", "2 references"),
        ({"images": b64(), "references": [b64()] * 3}, "references", "2 references"),
        ({"images": b64(), "references": [[b64()] * 3]}, "references", "2 references"),
        ({"images": b64(), "references": [[b64()], [b64()]]}, "references", "2 lists for 1 images"),
        ({"images": b64(), "references": [[b64()], b64()]}, "references", "not both"),
        ({"images": b64(), "references": [7]}, "references", "must be base64 text"),
        ({"images": b64(), "references": [b64(), "!"]}, "references", "Invalid image format at index 1"),
        ({"image": [b64(), b64()], "references": [b64()]}, "references", "send them all as `references`"),
        ({"references": [b64()]}, "images", "At least one image is required"),
    ],
)
def test_json_is_refused_by_the_name_of_the_field(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        form_of_json(FEW, **fields)
    assert caught.value.param == param


def test_a_reference_counts_as_any_picture_against_the_limits() -> None:
    small = AppSettings(limits=LimitSettings(max_file_bytes=1000))
    with pytest.raises(PayloadTooLarge, match="Reference at index 0 is larger than 1000 bytes") as caught:
        form_of(PROMPT, picture(), ("references", ("a.png", b"x" * 2000, "image/png")), settings=small)
    assert caught.value.param == "references"
    with pytest.raises(InvalidInput, match="references: Image at index 0 is too long") as too_long:
        form_of(PROMPT, picture(), ("references", ("a.png", png(0, 90, 10), "image/png")))
    assert too_long.value.param == "references"
