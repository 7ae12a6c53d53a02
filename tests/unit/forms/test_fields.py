"""One model has every rule about text fields, whatever body they come in."""

import json
from contextlib import suppress
from typing import Any, get_args, get_type_hints

import pytest
from openai.types.image_edit_params import ImageEditParamsNonStreaming
from pydantic import ValidationError

from serve_app.errors import InvalidInput
from serve_app.forms.fields import EditFields, properties, validate
from serve_app.forms.values import from_json, from_text
from serve_app.settings import ModelSettings

MODEL = ModelSettings()
TYPES = {"string": str, "integer": int, "number": float, "boolean": bool}
NAMES = sorted(set(properties()) - {"prompt"})


def validated(**values: Any) -> EditFields:
    return validate({"prompt": ["x"], **{name: [value] for name, value in values.items()}}, MODEL)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_has_the_type_that_its_schema_says(name: str) -> None:
    wanted = TYPES[properties()[name]["type"]]
    values: list[Any] = ["1", True, 1, 1.5]
    taken = []
    for value in values:
        with suppress(InvalidInput):
            taken.append(from_json(name, value))
    assert {type(value) for value in taken} == ({int, float} if wanted is float else {wanted})
    assert type(from_text(name, "true" if wanted is bool else "1")) is wanted


@pytest.mark.parametrize(
    "fields",
    [{"n": "2"}, {"n": True}, {"stream": "true"}, {"true_cfg_scale": "4"}, {"size": {"width": 8, "height": 8}}],
)
def test_the_model_itself_converts_no_type(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EditFields(prompt="x", **fields)


def test_a_whole_float_of_json_is_an_integer_and_no_text_is() -> None:
    assert repr(from_json("n", 3.0)) == "3"
    for text in ("3.0", "3e0", "+3"):
        with pytest.raises(InvalidInput, match="in digits"):
            from_text("n", text)


def test_guidance_reaches_the_edit_by_either_name() -> None:
    assert validated(true_cfg_scale=2).params()["guidance_scale"] == 2.0
    assert validated(guidance_scale=2.5, true_cfg_scale=2.5).params()["guidance_scale"] == 2.5
    assert "guidance_scale" not in validated().params()


@pytest.mark.parametrize("name", NAMES)
def test_a_value_beyond_its_range_is_refused_with_the_range(name: str) -> None:
    schema = properties()[name]
    for bound, beyond in (("minimum", -1), ("maximum", 1)):
        if bound in schema:
            with pytest.raises(InvalidInput, match=f"from {schema['minimum']} to {schema['maximum']}") as caught:
                validated(**{name: schema[bound] + beyond})
            assert caught.value.param == name


def test_schemas_are_the_same_however_often_they_are_asked_for() -> None:
    before = json.dumps(properties())
    for fields in ({"n": 0}, {"quality": "best"}, {"user": "x" * 300}):
        with pytest.raises(InvalidInput):
            validated(**fields)
    assert json.dumps(properties()) == before


@pytest.mark.parametrize("name", ["background", "input_fidelity", "quality"])
def test_a_hint_may_have_any_value_that_openais_client_knows(name: str) -> None:
    (choices,) = [
        kind for kind in get_args(get_type_hints(ImageEditParamsNonStreaming)[name]) if kind is not type(None)
    ]
    for value in get_args(choices):
        assert getattr(validated(**{name: value}), name) == value


def test_a_hint_is_named_as_ignored_unless_it_leaves_the_choice_to_the_server_or_holds() -> None:
    assert validated(moderation="auto", quality="auto", background="opaque", response_format="b64_json").ignored == ()
    asked = validated(quality="high", moderation="low", input_fidelity="low", background="auto", n=2)
    assert asked.ignored == ("input_fidelity", "moderation", "quality")


def test_a_transparent_jpeg_is_refused() -> None:
    for output_format in ("png", "webp"):
        assert validated(background="transparent", output_format=output_format).background == "transparent"
    with pytest.raises(InvalidInput, match="JPEG has no transparency; send output_format=png or webp") as caught:
        validated(background="transparent", output_format="jpeg")
    assert caught.value.param == "background"


def test_a_choice_is_an_enum() -> None:
    choices = {name: schema["enum"] for name, schema in properties().items() if "enum" in schema}
    assert choices["response_format"] == ["b64_json", "url"]
    assert choices["background"] == ["auto", "opaque", "transparent"]
    assert not [name for name, schema in properties().items() if "const" in schema or "title" in schema]
