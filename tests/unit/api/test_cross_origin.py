"""Requests of other sites through a visitor's browser, and hosts that are not this server. tests/page has a browser."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.settings import AppSettings, AuthSettings, CorsSettings, HttpSettings
from tests.editors import Inverter
from tests.http_calls import MULTIPART, basic, call, drive, edit, error_of, never

LAB, EVIL = "https://lab.example", "https://evil.example"


def app_for(*, hosts: tuple[str, ...] = (), origins: tuple[str, ...] = (), keys_file: Path | None = None) -> Starlette:
    http, cors = HttpSettings(allowed_hosts=hosts), CorsSettings(origins=origins)
    return create_app(Inverter(), AppSettings(http=http, cors=cors, auth=AuthSettings(keys_file=keys_file)))


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("alpha\n")
    return path


def status_for(app: Starlette, host: str, path: str = "/v1/models", **headers: Any) -> int:
    response = call(app, "GET", path, headers={"host": host.encode("latin-1"), **headers})
    if response.status_code == 403:
        assert error_of(response)["code"] == "FORBIDDEN"
        assert "http.allowed_hosts" in error_of(response)["message"]
    return response.status_code


# --- hosts --------------------------------------------------------------------------------------------------------

NOT_A_NAME_OF_OTHERS = [
    *("localhost", "localhost:8000", "LocalHost", "edits.localhost:8000", "127.0.0.1", "127.0.0.1:8000", "0.0.0.0:80"),
    *("[::1]", "[::1]:8000", "192.168.1.7:8000", "10.244.0.7:8000", "[FD00::7]:8000"),
]


@pytest.mark.parametrize("host", NOT_A_NAME_OF_OTHERS)
def test_this_machine_and_addresses_are_hosts_of_any_server(host: str) -> None:
    assert status_for(app_for(), host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "gpu-box", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("", ":8000", "localhosts", "[::1", "[::1].evil.example", "localhost:8000@evil.example", "a b", "\xe9"),
    ],
)
def test_another_name_may_be_that_of_another_site(host: str) -> None:
    for path in ("/v1/models", "/", "/docs", "/v1/jobs/1", "/nothing"):
        assert status_for(app_for(), host, path) == 403


def test_names_in_the_settings_are_this_servers() -> None:
    app = app_for(hosts=("gpu-box", "edits.example"))
    hosts = ["gpu-box:8000", "EDITS.example", "localhost", "10.0.0.7", "www.edits.example", "evil.example"]
    assert [status_for(app, host) for host in hosts] == [200, 200, 200, 200, 403, 403]
    assert status_for(app_for(hosts=("*",)), "evil.example") == 200


def test_probes_may_use_any_name() -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert status_for(app_for(), "anything.example", path) == 200


def test_with_keys_any_name_will_do_unless_the_settings_restrict_them(keys_file: Path) -> None:
    key = {"authorization": "Bearer alpha"}
    assert status_for(app_for(keys_file=keys_file), "edits.example", **key) == 200
    restricted = app_for(keys_file=keys_file, hosts=("edits.example",))
    assert status_for(restricted, "edits.example", **key) == 200
    assert status_for(restricted, "evil.example", **key) == 403


# --- origins ------------------------------------------------------------------------------------------------------


def sent(**headers: str) -> Any:
    return {name.replace("_", "-"): value for name, value in headers.items()}


FROM_NO_OTHER_SITE = [
    sent(),
    # A browser that this server's plain HTTP gets no Sec-Fetch-Site from; and a proxy in front that ends TLS.
    sent(origin="http://localhost"),
    sent(origin="https://localhost"),
    # A proxy in front that does not pass on the host.
    sent(origin="https://edits.example", sec_fetch_site="same-origin"),
    sent(origin="null", sec_fetch_site="same-origin"),
    sent(origin="chrome-extension://abc", sec_fetch_site="none"),
]
FROM_ANOTHER_SITE = [
    sent(origin=EVIL),
    sent(origin=EVIL, sec_fetch_site="cross-site"),
    sent(sec_fetch_site="cross-site"),
    # Another port of this machine.
    sent(origin="http://localhost:3000", sec_fetch_site="same-site"),
    sent(origin="http://localhost:3000"),
    sent(origin="http://localhost.evil.example"),
    sent(origin="null"),
    sent(origin=""),
    sent(origin="localhost"),
]


@pytest.mark.parametrize("headers", FROM_NO_OTHER_SITE)
def test_clients_and_the_own_page_may_edit(headers: Any) -> None:
    assert edit(app_for(), headers=headers).status_code == 200


@pytest.mark.parametrize("headers", FROM_ANOTHER_SITE)
def test_pages_of_other_sites_may_neither_edit_nor_delete(headers: Any) -> None:
    app = app_for(origins=(LAB,))
    for response in (edit(app, headers=headers), call(app, "DELETE", "/v1/jobs/1", headers=headers)):
        assert (response.status_code, error_of(response)["code"]) == (403, "FORBIDDEN")
        assert "cors.origins" in error_of(response)["message"]
    assert call(app, "GET", "/v1/models", headers=headers).status_code == 200


def test_they_are_refused_unread() -> None:
    answer = asyncio.run(drive(app_for(), never, [MULTIPART, (b"origin", EVIL.encode())]))
    assert answer[0]["status"] == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_an_origin_in_the_settings_may_edit(site: str) -> None:
    headers = {"origin": LAB, "sec-fetch-site": site}
    assert edit(app_for(origins=(LAB,)), headers=headers).status_code == 200
    assert edit(app_for(origins=("*",)), headers=headers).status_code == 200


def test_a_key_that_a_page_has_to_know_opens_to_any_page_and_a_password_of_the_browser_does_not(
    keys_file: Path,
) -> None:
    app, other_site = app_for(keys_file=keys_file, origins=(LAB,)), {"origin": EVIL, "sec-fetch-site": "cross-site"}
    known, kept = {"authorization": "Bearer alpha"}, {"authorization": basic("ann:alpha")}
    assert edit(app, headers={**other_site, **known}).status_code == 200
    assert edit(app, headers={**other_site, **kept}).status_code == 403
    assert edit(app, headers={**kept, "origin": LAB}).status_code == 200
    assert edit(app, headers=kept).status_code == 200
    # Who has no key learns no more than that.
    assert edit(app, headers=other_site).status_code == 401
