"""The page's files over HTTP: addresses, headers, and keys. tests/page/ uses the page itself."""

import asyncio
import re

import httpx
import pytest
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.settings import AppSettings, LimitSettings, PageSettings
from tests.editors import Inverter
from tests.http_calls import call, error_of
from tests.paths import ROOT

STATIC = ROOT / "serve_app" / "api" / "static"
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGE_EDITS_API_KEYS", raising=False)


@pytest.fixture
def app() -> Starlette:
    return create_app(Inverter(), AppSettings())


@pytest.fixture
def closed_app(monkeypatch: pytest.MonkeyPatch) -> Starlette:
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "secret")
    return create_app(Inverter(), AppSettings())


FILES = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*.*")}


def paths() -> list[str]:
    return ["/", *(f"/static/{name}" for name in FILES if name != "index.html")]


@pytest.mark.parametrize("path", paths())
def test_a_file_is_served_without_a_key_with_its_type_and_a_strict_policy(closed_app: Starlette, path: str) -> None:
    response = call(closed_app, "GET", path)
    assert response.status_code == 200
    file = FILES[path.removeprefix("/static/").strip("/") or "index.html"]
    assert response.content == file.read_bytes()
    assert response.headers["content-type"].partition(";")[0] == TYPES[file.suffix[1:]]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


def test_every_file_that_a_file_names_is_there() -> None:
    named = set()
    for path in FILES.values():
        named |= set(re.findall(r'(?:"static/|from "\./)([\w./]+)"', path.read_text()))
    assert {"main.js", "texts/en.js", "page.css", "icon.svg"} <= named
    assert named - {"server.json"} == FILES.keys() - {"index.html"}


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/static/server.json"])
def test_a_file_that_is_known_is_not_sent_again(app: Starlette, path: str) -> None:
    first = call(app, "GET", path)
    assert first.headers["cache-control"] == "no-cache"
    again = call(app, "GET", path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    other = call(app, "GET", path, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, first.content)


def test_the_page_has_the_limits() -> None:
    checked = {
        "max_images": 3,
        "max_file_bytes": 1000,
        "max_request_bytes": 5000,
        "max_aspect_ratio": 3.5,
        "max_area_factor": 2.5,
    }
    limits = LimitSettings.model_validate(checked)
    facts = call(create_app(Inverter(), AppSettings(limits=limits)), "GET", "/static/server.json").json()
    assert facts["limits"] == checked


def test_the_page_has_whether_there_are_keys(app: Starlette, closed_app: Starlette) -> None:
    needs_key = [call(each, "GET", "/static/server.json").json()["needs_key"] for each in (app, closed_app)]
    assert needs_key == [False, True]


def test_other_files_stay_where_they_are(app: Starlette) -> None:
    for path in ("/static/", "/static/index.html", "/static/../page.py", "/static/%2e%2e/page.py", "/static/x.js"):
        assert error_of(call(app, "GET", path))["code"] == "NOT_FOUND"


def test_the_page_can_be_switched_off() -> None:
    app = create_app(Inverter(), AppSettings(page=PageSettings(enabled=False)))
    for path in paths():
        assert error_of(call(app, "GET", path))["code"] == "NOT_FOUND"


@pytest.mark.parametrize("path", ["/edits", "/edits/"])
def test_under_a_route_prefix_addresses_count_from_its_slash(app: Starlette, path: str) -> None:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path="/edits")
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, follow_redirects=True)

    response = asyncio.run(go())
    assert response.status_code == 200
    assert str(response.url) == "http://localhost/edits/"
    assert b"<h1 " in response.content


def test_the_page_is_only_read(app: Starlette) -> None:
    response = call(app, "POST", "/")
    assert response.status_code == 405
    assert error_of(response)["code"] == "METHOD_NOT_ALLOWED"
    assert call(app, "HEAD", "/").status_code == 200
