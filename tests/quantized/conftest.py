"""Tests of quantised weights, in a process of their own, in which diffusers finds torchao, bitsandbytes and gguf."""

from importlib.util import find_spec

import pytest

PACKAGES = ("torchao", "bitsandbytes", "gguf")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip these tests where a package is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        reason = f"needs {', '.join(missing)}: `make quantization`, and PYTHONPATH=.venv/quantization"
        for item in items:
            if item.path.is_relative_to(__file__.rpartition("/")[0]):
                item.add_marker(pytest.mark.skip(reason=reason))
