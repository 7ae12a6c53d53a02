"""Requests from pages of other origins: the headers for browsers, and none if CORS is off."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.errors import Overloaded
from serve_app.settings import AppSettings, AuthSettings, CorsSettings
from tests.editors import Inverter
from tests.http_calls import call, edit, error_of

LAB = "https://lab.example"
EDITS = "/v1/images/edits"


def app_for(*origins: str, editor: Inverter | None = None, keys_file: Path | None = None) -> Starlette:
    settings = AppSettings(cors=CorsSettings(origins=origins), auth=AuthSettings(keys_file=keys_file))
    return create_app(editor or Inverter(), settings)


def preflight(app: Starlette, origin: str = LAB, method: str = "POST") -> httpx.Response:
    asked = {"access-control-request-method": method, "access-control-request-headers": "authorization,x-stainless-os"}
    return call(app, "OPTIONS", EDITS, headers={"origin": origin, **asked})


def cors_headers(response: httpx.Response) -> set[str]:
    return {name for name in response.headers if name.startswith("access-control-")}


def test_off_there_are_no_headers() -> None:
    app = app_for()
    assert cors_headers(edit(app, headers={"origin": LAB})) == set()
    response = preflight(app)
    assert (response.status_code, cors_headers(response)) == (405, set())


def test_a_page_of_a_named_origin_may_ask_and_read() -> None:
    app = app_for("https://other.example", LAB)
    asked = preflight(app)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == LAB
    assert asked.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert {"POST", "DELETE"} <= set(asked.headers["access-control-allow-methods"].split(", "))
    assert "access-control-allow-credentials" not in asked.headers
    response = edit(app, headers={"origin": LAB})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == LAB
    exposed = "x-request-id, Retry-After, Server-Timing, Idempotency-Replayed, x-edit-ignored"
    assert response.headers["access-control-expose-headers"] == exposed
    assert "Origin" in response.headers["vary"]


def test_a_stream_is_readable_too() -> None:
    response = edit(app_for(LAB), headers={"origin": LAB}, stream="true")
    assert "[DONE]" in response.text
    assert response.headers["access-control-allow-origin"] == LAB


@pytest.mark.parametrize("origin", ["https://evil.example", f"{LAB}.evil.example", "http://lab.example", "null"])
def test_other_origins_get_no_headers(origin: str) -> None:
    app = app_for(LAB)
    assert "access-control-allow-origin" not in edit(app, headers={"origin": origin}).headers
    asked = preflight(app, origin)
    assert asked.status_code == 400
    assert "origin" in error_of(asked)["message"]
    assert "access-control-allow-origin" not in asked.headers


def test_a_method_that_no_route_has_is_refused_before_it_is_sent() -> None:
    asked = preflight(app_for(LAB), method="PUT")
    assert asked.status_code == 400
    assert "method" in error_of(asked)["message"]
    assert asked.headers["access-control-allow-origin"] == LAB


def test_every_origin() -> None:
    assert edit(app_for("*"), headers={"origin": "https://any.example"}).headers["access-control-allow-origin"] == "*"


def test_errors_can_be_read_by_pages(tmp_path: Path) -> None:
    editor, keys = Inverter(), tmp_path / "keys"
    keys.write_text("alpha\n")
    headers: dict[str, Any] = {"origin": LAB}
    editor.error = Overloaded("full", retry_after_s=3)
    open_app, closed_app = app_for(LAB, editor=editor), app_for(LAB, keys_file=keys)
    answers = [
        # An application of its own: for a moment after a full queue, all requests are refused.
        edit(app_for(LAB, editor=editor), headers=headers),
        edit(open_app, headers=headers, n="0"),
        call(open_app, "GET", "/nothing", headers=headers),
        call(open_app, "GET", EDITS, headers=headers),
        edit(closed_app, headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [503, 400, 404, 405, 401]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == LAB
        assert error_of(answer)["message"]
    # A preflight request carries no key.
    assert preflight(closed_app).status_code == 200


def test_a_bug_can_be_read_by_pages() -> None:
    editor = Inverter()
    editor.error = RuntimeError("bug")
    answer = edit(app_for(LAB, editor=editor), headers={"origin": LAB})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, LAB)
