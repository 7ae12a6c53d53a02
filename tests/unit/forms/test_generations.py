"""Bodies of generations, of both kinds: what they become, and fields that only an edit can have."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from serve_app.errors import EditError, InvalidInput, ModelNotFound
from serve_app.forms.fields import GenerationFields
from serve_app.forms.form import EditForm
from serve_app.images.geometry import Size
from serve_app.request import GenerationRequest
from serve_app.settings import AppSettings, LimitSettings, ModelSettings, PresetSettings
from tests.uploads import SETTINGS, Upload, form_of, picture, text

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="


def from_json(settings: AppSettings = SETTINGS, **fields: Any) -> EditForm:
    body = json.dumps({"prompt": "a red house", **fields}).encode()
    return Upload([body], "application/json").parse(settings, GenerationFields)


def from_form(settings: AppSettings = SETTINGS, **fields: Any) -> EditForm:
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()}
    parts = [text(name, value) for name, value in {"prompt": "a red house", **texts}.items()]
    return form_of(*parts, settings=settings, fields=GenerationFields)


Read = Callable[..., EditForm]
both = pytest.mark.parametrize("read", [from_json, from_form])


def refusal(read: Read, **fields: Any) -> EditError:
    with pytest.raises(EditError) as caught:
        read(**fields)
    return caught.value


@both
def test_every_field_arrives(read: Read) -> None:
    form = read(
        negative_prompt="blurry",
        n=2,
        size="640x480",
        num_inference_steps=30,
        guidance_scale=2.5,
        seed=9,
        background="opaque",
        output_format="webp",
        output_compression=80,
        response_format="b64_json",
        model="gpt-image-1",
        user="ann",
        stream=True,
        partial_images=2,
    )
    request = form.request
    assert type(request) is GenerationRequest
    assert (request.prompt, request.negative_prompt, request.n, request.size) == (
        *("a red house", "blurry", 2, Size(640, 480)),
    )
    assert (request.num_inference_steps, request.guidance_scale, request.seed) == (30, 2.5, 9)
    assert (request.background, request.partial_images, request.images) == ("opaque", 2, ())
    assert (form.output_format, form.output_compression, form.user, form.stream) == ("webp", 80, "ann", True)


@both
def test_a_prompt_is_enough(read: Read) -> None:
    request = read().request
    assert (request.prompts, request.n, request.size, request.outputs) == (("a red house",), 1, None, 1)


@both
@pytest.mark.parametrize("name", ["image", "image[]", "images", "images[]", "references", "mask", "mask[]"])
def test_a_picture_is_refused_with_the_way_to_edits(read: Read, name: str) -> None:
    error = refusal(read, **{name: PICTURE})
    assert isinstance(error, InvalidInput)
    assert error.param == name
    assert "/v1/images/edits" in error.message


@both
@pytest.mark.parametrize(("name", "value"), [("fit", "cover"), ("fit", "free"), ("input_fidelity", "high")])
def test_so_is_a_field_about_pictures(read: Read, name: str, value: str) -> None:
    error = refusal(read, **{name: value})
    assert error.param == name
    assert "/v1/images/edits" in error.message


def test_the_file_of_a_picture_is_refused_before_it_is_read() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    upload = Upload([body, b"x" * 1000, b"x" * 1000], "multipart/form-data; boundary=b")
    with pytest.raises(InvalidInput, match=r"image: .*/v1/images/edits"):
        upload.parse(SETTINGS, GenerationFields)
    assert upload.taken_bytes == len(body)
    with pytest.raises(InvalidInput, match="references"):
        form_of(text("prompt", "x"), picture("references"), fields=GenerationFields)


@pytest.mark.parametrize("value", [[], [PICTURE], {"image_url": PICTURE}, None])
def test_no_value_makes_a_picture_a_field_of_a_generation(value: Any) -> None:
    assert refusal(from_json, images=value).param == "images"


@both
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "original"}, "size"),
        ({"size": "0x9"}, "size"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "<|image_pad|>"}, "prompt"),
        ({"response_format": "file"}, "response_format"),
        ({"style": "loud"}, "style"),
        ({"background": "transparent", "output_format": "jpeg"}, "background"),
        ({"partial_images": 1}, "partial_images"),
        ({"size": "64x4096"}, "size"),
        ({"steps": 5}, "steps"),
    ],
)
def test_other_mistakes_are_refused_as_in_an_edit(read: Read, fields: dict[str, Any], param: str) -> None:
    error = refusal(read, **fields)
    assert isinstance(error, InvalidInput)
    assert error.param == param


def test_one_prompt_is_all_that_it_takes() -> None:
    assert from_json(prompt=["a red house"]).request.prompts == ("a red house",)
    assert "takes one text, not 2" in refusal(from_json, prompt=["x", "y"]).message
    assert refusal(from_json, prompt=None).param == "prompt"


def test_a_misspelled_field_is_answered_with_one_that_it_has() -> None:
    assert refusal(from_json, sytle="vivid").message.endswith("did you mean style?")
    assert "did you mean" not in refusal(from_json, mage="x").message
    # An edit has no style.
    with pytest.raises(InvalidInput, match="Unknown field 'style'"):
        form_of(text("prompt", "x"), picture(), text("style", "vivid"))


@both
def test_hints_without_effect_are_named(read: Read) -> None:
    assert read(style="vivid", quality="high", moderation="low").ignored == ("moderation", "quality", "style")
    assert read(quality="auto").ignored == ()


def test_quality_may_ask_for_a_preset() -> None:
    presets = {"fast": PresetSettings(steps=4)}
    model = ModelSettings(source="x/y", presets=presets, quality={"low": "fast"})
    form = from_json(AppSettings(model=model), quality="low")
    assert (form.request.preset, form.ignored) == ("fast", ())


def test_a_size_that_the_file_cannot_have_is_refused() -> None:
    wide = AppSettings(limits=LimitSettings(max_aspect_ratio=1000))
    assert from_json(wide, size="16384x64").request.size == Size(16384, 64)
    error = refusal(from_json, settings=wide, size="16384x64", output_format="webp")
    assert (error.param, "ask for png" in error.message) == ("size", True)


def test_limits_and_the_name_of_the_model_hold() -> None:
    few = AppSettings(limits=LimitSettings(max_outputs=2))
    assert refusal(from_json, settings=few, n=3).param == "n"
    assert isinstance(refusal(from_json, model="other"), ModelNotFound)
