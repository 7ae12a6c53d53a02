"""The error tree: errors cross Ray by pickle and arrive whole."""

import pickle
from typing import Any

import pytest

from serve_app import errors
from serve_app.errors import EditError, GenerationError


def tree(root: Any) -> list[Any]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in tree(child))]


CLASSES = [cls for cls in tree(EditError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_pickle(cls: Any) -> None:
    options = {} if issubclass(cls, GenerationError) else {"param": "n", "retry_after_s": 3}
    error = cls("it went wrong", **options)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert vars(copy) == vars(error)
    assert str(copy) == copy.message == error.message


@pytest.mark.parametrize("cls", CLASSES)
def test_param_and_retry_after_are_no_class_attributes(cls: Any) -> None:
    assert not hasattr(cls, "param")
    assert not hasattr(cls, "retry_after_s")


@pytest.mark.parametrize("cls", CLASSES)
def test_the_docstring_draws_every_error(cls: Any) -> None:
    assert cls.__name__ in errors.__doc__
    if cls is not EditError:
        assert cls.status in (400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)
        assert cls.code in errors.__doc__


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if issubclass(cls, GenerationError)])
def test_generation_errors_say_so_once(cls: Any) -> None:
    error = pickle.loads(pickle.dumps(cls("CUDA out of memory")))
    assert error.message == "Image generation failed: CUDA out of memory"
    assert (error.status, error.code) == (500, "GENERATION_ERROR")
