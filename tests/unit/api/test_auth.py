"""Keys and the application: failed attempts in the log, and whose edit it is. test_app.py has the headers."""

import asyncio
import base64
import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.api.keys import ApiKey
from serve_app.settings import AppSettings, AuthSettings
from tests.editors import Inverter
from tests.http_calls import basic, call, drive, edit, error_of, log_lines, never
from tests.pictures import png


@pytest.fixture
def editor() -> Inverter:
    return Inverter()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{ApiKey.of('alpha', 'ann').line}\n{ApiKey.of('beta', 'bob').line}\nplain\n")
    return path


@pytest.fixture
def app(editor: Inverter, key_file: Path) -> Starlette:
    return create_app(editor, AppSettings(auth=AuthSettings(keys_file=key_file)))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


SENT = "almost-alpha"


@pytest.mark.parametrize("authorization", [f"Bearer {SENT}", basic(f"ann:{SENT}"), f"Token {SENT}"])
def test_a_failed_attempt_leaves_a_line_without_what_was_sent(
    app: Starlette, authorization: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="ray.serve")
    headers = {"authorization": authorization, "x-request-id": "req-1"}
    assert call(app, "GET", "/v1/jobs/4f0f2f6e7c8f4d0f9f0a6a3b1c2d3e4f", headers=headers).status_code == 401
    (line,) = log_lines(caplog, "unauthorized")
    assert (line["levelname"], line["request_id"], line["client"]) == ("WARNING", "req-1", "127.0.0.1")
    assert line["with_key"] is (not authorization.startswith("Token"))
    everything = "".join(str(vars(record)) for record in caplog.records)
    for secret in (SENT, "4f0f2f6e", basic(f"ann:{SENT}")[6:], base64.b64encode(SENT.encode()).decode()):
        assert secret not in everything


def test_over_a_unix_socket_there_is_no_address(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(drive(app, never, path="/v1/models", method="GET"))
    (line,) = log_lines(caplog, "unauthorized")
    assert line["client"] is None


def test_a_request_with_a_key_leaves_no_such_line(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    assert edit(app, headers=bearer("alpha")).status_code == 200
    assert call(app, "GET", "/health/live").status_code == 200
    assert log_lines(caplog, "unauthorized") == []


@pytest.mark.parametrize("others", [("Bearer beta",), ("Bearer alpha",), ("Token x",), ("",), ("Bearer beta", "x")])
def test_of_several_keys_none_opens(app: Starlette, others: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    headers = [("authorization", value) for value in ("Bearer alpha", *others)]
    for sent in (headers, headers[::-1]):
        response = call(app, "GET", "/v1/models", headers=sent)
        assert (response.status_code, error_of(response)["code"]) == (401, "UNAUTHORIZED")
        assert error_of(response)["message"] == f"One Authorization header is expected, not {len(headers)}"
    assert [line["with_key"] for line in log_lines(caplog, "unauthorized")] == [True, True]


@pytest.mark.parametrize("query", ["", "?async=true"])
def test_an_edit_is_its_keys(app: Starlette, editor: Inverter, query: str) -> None:
    for key in ("alpha", "beta", "plain"):
        files = {"images": ("a.png", png(10)), "prompt": (None, "x")}
        response = call(app, "POST", f"/v1/images/edits{query}", files=files, headers=bearer(key))
        assert response.status_code == (202 if query else 200)
    assert [request.caller for request in editor.requests] == ["ann", "bob", ApiKey.of("plain").name]


def test_a_streamed_edit_and_one_in_json_are_their_keys(app: Starlette, editor: Inverter) -> None:
    assert edit(app, headers=bearer("beta"), stream="true").status_code == 200
    body = {"prompt": "x", "image": base64.b64encode(png(1)).decode()}
    assert call(app, "POST", "/v1/images/edits", json=body, headers=bearer("alpha")).status_code == 200
    assert [request.caller for request in editor.requests] == ["bob", "ann"]


def test_without_keys_an_edit_has_no_caller(editor: Inverter) -> None:
    assert edit(create_app(editor, AppSettings()), headers=bearer("alpha")).status_code == 200
    assert editor.requests[0].caller is None


def test_a_client_cannot_name_its_caller(app: Starlette, editor: Inverter) -> None:
    forms: list[dict[str, Any]] = [
        {"files": {"images": ("a.png", png(1)), "prompt": (None, "x"), "caller": (None, "bob")}},
        {"json": {"image": base64.b64encode(png(1)).decode(), "prompt": "x", "caller": "bob"}},
    ]
    for form in forms:
        response = call(app, "POST", "/v1/images/edits", headers=bearer("alpha"), **form)
        assert (response.status_code, error_of(response)["param"]) == (400, "caller")
    assert editor.requests == []
