"""The field `adapters`: names of this server's adapters, each with its strength."""

from typing import Any

import pytest

from serve_app.errors import InvalidInput
from serve_app.forms.fields import EditFields, validate
from serve_app.settings import AdapterSettings, AdapterUse, ModelSettings

MODEL = ModelSettings(adapters={name: AdapterSettings(source="x") for name in ("cinematic", "sketch")})


def validated(adapters: Any, model: ModelSettings = MODEL) -> EditFields:
    return validate({"prompt": ["x"], "adapters": [adapters]}, model)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("cinematic", [("cinematic", None)]),
        ("cinematic:0.8, sketch", [("cinematic", 0.8), ("sketch", None)]),
        ("sketch:-1,cinematic:0", [("sketch", -1.0), ("cinematic", 0.0)]),
    ],
)
def test_they_are_named_with_commas_between_and_a_strength_behind_a_colon(text: str, expected: Any) -> None:
    assert validated(text).params()["adapters"] == tuple(AdapterUse(*each) for each in expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cinema", "no adapter 'cinema'; there are cinematic, sketch"),
        ("cinematic:4.5", "the strength of cinematic must be from -4 to 4, not 4.5"),
        ("cinematic:nan", "must be from -4 to 4"),
        ("cinematic:strong", "must be names, each with a number at most"),
        ("cinematic,,sketch", "no adapter ''"),
        ("cinematic,cinematic:2", "names an adapter twice"),
        (",".join(f"a{k}" for k in range(9)), "must be at most 8, not 9"),
    ],
)
def test_bad_ones_are_refused_with_what_there_is(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        validated(text)
    assert caught.value.param == "adapters"


def test_a_server_without_adapters_says_so() -> None:
    with pytest.raises(InvalidInput, match="no adapter 'sketch'; it has none"):
        validated("sketch", ModelSettings())
