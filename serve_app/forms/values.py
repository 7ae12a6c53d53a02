"""Values of the types that the fields have, from JSON or from the texts of a form."""

import re
import reprlib
from collections.abc import Callable
from typing import Any, get_args

from serve_app.errors import InvalidInput
from serve_app.forms.fields import GenerationFields
from serve_app.forms.names import SYNONYMS

WORDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

# How a text has to look, how it is read, and what it should have been. Digits are ASCII.
_NOTATIONS: dict[type, tuple[re.Pattern[str], Callable[[str], Any], str]] = {
    bool: (re.compile("true|false", re.ASCII | re.IGNORECASE), lambda text: text.lower() == "true", "true or false"),
    int: (re.compile(r"-?[0-9]{1,20}"), int, "a whole number in digits"),
    float: (re.compile(r"-?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})"), float, "a number such as 4 or 4.5"),
}


def from_json(name: str, value: Any) -> Any:
    """Return a value of JSON; a whole float is an integer. Raise InvalidInput for another type than the field's."""
    wanted = _kind(name)
    if wanted is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not wanted and (wanted, type(value)) != (float, int):
        raise InvalidInput(f"{name} must be {WORDS[wanted]}, not {WORDS[type(value)]}", param=name)
    return value


def from_text(name: str, text: str) -> Any:
    """Return the value that a text of a form stands for. Raise InvalidInput for a text that is no such value."""
    wanted = _kind(name)
    if wanted is str:
        return text
    pattern, read, words = _NOTATIONS[wanted]
    if pattern.fullmatch(text) is None:
        raise InvalidInput(f"{name} must be {words}, not {reprlib.repr(text)}", param=name)
    return read(text)


def _kind(name: str) -> type:
    """Return the type of one value of a field: bool, int, float; str for all others, which are read from text."""
    # It has the fields of edits too.
    annotation = GenerationFields.model_fields[SYNONYMS.get(name, name)].annotation
    return next((kind for kind in (bool, int, float) if kind in (annotation, *get_args(annotation))), str)
