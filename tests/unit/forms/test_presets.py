"""The fields `preset` and `quality`: a name for steps, guidance, adapters and noise schedule."""

from typing import Any

import jsonschema
import pytest

from serve_app.api import openapi
from serve_app.api.app import create_app
from serve_app.engine.sampling import NoiseSchedule, Sampling, SamplingDefaults
from serve_app.errors import InvalidInput
from serve_app.forms.fields import EditFields, validate
from serve_app.request import EditParams
from serve_app.settings import AppSettings, ModelSettings
from tests.editors import Inverter
from tests.http_calls import call

SIGMAS = (1.0, 0.75, 0.5, 0.25)
MODEL = ModelSettings.model_validate(
    {
        "adapters": {"lightning": {"source": "x"}, "sketch": {"source": "y", "scale": 0.5}},
        "presets": {
            "fast": {"steps": 4, "guidance": 1, "adapter": "lightning:0.9", "shift": 3},
            "listed": {"sigmas": SIGMAS},
            "draft": {"steps": 8},
        },
        "quality": {"low": "fast", "medium": "draft"},
    }
)
DEFAULTS = SamplingDefaults.of(MODEL, 50, 4.0)


def validated(**fields: Any) -> EditFields:
    return validate({"prompt": ["x"], **{name: [value] for name, value in fields.items()}}, MODEL)


def sampling(**fields: Any) -> Sampling:
    return DEFAULTS.choose(EditParams(**validated(**fields).params()))


FAST = Sampling(4, 1.0, (("lightning", 0.9),), NoiseSchedule(3.0, None))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Sampling(50, 4.0)),
        ({"preset": "fast"}, FAST),
        ({"preset": "draft"}, Sampling(8, 4.0)),
        ({"preset": "listed"}, Sampling(4, 4.0, (), NoiseSchedule(None, SIGMAS))),
        ({"quality": "low"}, FAST),
        ({"quality": "medium", "preset": "fast"}, FAST),
        ({"quality": "high"}, Sampling(50, 4.0)),
    ],
)
def test_a_preset_stands_for_what_its_settings_say(fields: dict[str, Any], expected: Sampling) -> None:
    assert sampling(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_inference_steps": 6}, Sampling(6, 1.0, (("lightning", 0.9),), NoiseSchedule(3.0, None))),
        ({"guidance_scale": 2.0}, Sampling(4, 2.0, (("lightning", 0.9),), NoiseSchedule(3.0, None))),
        ({"adapters": "sketch"}, Sampling(4, 1.0, (("sketch", 0.5),), NoiseSchedule(3.0, None))),
        ({"preset": "listed", "num_inference_steps": 3}, Sampling(3, 4.0)),
    ],
)
def test_a_field_of_the_request_goes_before_its_preset(fields: dict[str, Any], expected: Sampling) -> None:
    assert sampling(**{"preset": "fast", **fields}) == expected


def test_the_list_of_models_names_what_requests_can_ask_for() -> None:
    app = create_app(Inverter(), AppSettings(model=MODEL))
    [first, *_] = call(app, "GET", "/v1/models").json()["data"]
    assert (first["adapters"], first["presets"]) == (["lightning", "sketch"], ["fast", "listed", "draft"])


def test_an_unknown_preset_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidInput, match="no preset 'faster'; there are fast, listed, draft") as caught:
        validated(preset="faster")
    assert caught.value.param == "preset"


def test_quality_is_a_hint_without_effect_only_where_it_names_no_preset() -> None:
    assert validated(quality="low").ignored == ()
    assert validated(quality="high").ignored == ("quality",)
    assert validated(quality="low", preset="draft").ignored == ("quality",)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"presets": {"fast": {"adapter": "lightning"}}}, "no 'lightning' in model.adapters"),
        ({"quality": {"low": "fast"}}, "no 'fast' in model.presets"),
        ({"presets": {"fast": {"sigmas": [1, 0.5], "steps": 4}}}, "2 sigmas for 4 steps"),
        ({"presets": {"fast": {"sigmas": [1, 0.5, 0.6]}}}, "sigmas must begin with 1 and fall"),
        ({"presets": {"fast": {"sigmas": [0.9, 0.5]}}}, "sigmas must begin with 1 and fall"),
        ({"presets": {"Fast": {}}}, "pattern"),
        (
            {"presets": {"fast": {"adapter": "lightning:x"}}},
            "model.presets.fast.adapter: must be names, each with a number",
        ),
    ],
)
def test_presets_that_contradict_the_settings_stop_the_start(model: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelSettings.model_validate(model)


def test_the_document_offers_what_this_server_has_and_no_more() -> None:
    described = openapi.document(AppSettings(model=MODEL), needs_key=False)
    for kind in ("EditJson", "EditForm"):
        schema = {"$ref": f"#/components/schemas/{kind}", "components": described["components"]}
        check = jsonschema.Draft202012Validator(schema)
        for name, value, is_taken in (
            ("preset", "fast", True),
            ("preset", "faster", False),
            ("adapters", "sketch:-0.5, lightning", True),
            ("adapters", "other", False),
            ("adapters", "sketch:5", False),
        ):
            body = {"prompt": "x", "images": ["eA=="], name: value}
            assert check.is_valid(body) is is_taken, (kind, name, value)
            try:
                validated(**{name: value})
            except InvalidInput:
                assert not is_taken
    plain = openapi.document(AppSettings(), needs_key=False)
    assert not {"preset", "adapters"} & plain["components"]["schemas"]["EditForm"]["properties"].keys()
