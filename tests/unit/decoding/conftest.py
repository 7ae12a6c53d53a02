"""The state of a decoder process, for tests that decode in their own."""

import PIL.Image
import pytest


@pytest.fixture(autouse=True)
def _no_bound_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
