"""The application that the commands and clients call: a model that inverts colours, without keys."""

import pytest
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.settings import AppSettings
from tests.editors import Inverter


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGE_EDITS_API_KEYS", raising=False)


@pytest.fixture
def editor() -> Inverter:
    return Inverter()


@pytest.fixture
def app(editor: Inverter) -> Starlette:
    return create_app(editor, AppSettings())
