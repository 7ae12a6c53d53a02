"""What Serve's proxy gets to read, on real sockets, with Serve's own middleware behind ours."""

import re
from collections.abc import Iterator

import orjson
import pytest
from ray.serve._private.http_util import _apply_middlewares
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.api.proxy_connection import BoundedConnection, bound
from tests.http_server import listening
from tests.raw_http import Answer, talk

FRESH = re.compile(r"[0-9a-f-]{32,36}")


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Return the headers and the client that an application behind the proxy sees."""
    request = Request(scope, receive)
    seen = {"headers": request.headers.items(), "client": scope["client"][0]}
    await Response(orjson.dumps(seen))(scope, receive, send)


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with listening(_apply_middlewares(_echo, bound()), BoundedConnection) as base:
        yield base


def ask(base: str, *headers: tuple[str, str], method: str = "GET") -> Answer:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    [answer] = talk(base, f"{method} / HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode("latin-1"), quiet_s=0.05)
    return answer


def seen(answer: Answer) -> dict[str, list[str]]:
    """Return the values of each header that the application saw."""
    assert answer.status == 200
    found: dict[str, list[str]] = {}
    for name, value in orjson.loads(answer.body)["headers"]:
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("id", ["a", "log-1.b_2", "Root=1-67891233;x/y+z", "x" * 128])
def test_an_id_of_a_caller_is_kept(base: str, id: str):
    answer = ask(base, ("X-Request-Id", id))
    assert seen(answer)["x-request-id"] == [answer.headers["x-request-id"]] == [id]


@pytest.mark.parametrize(
    "ids", [(), ("",), ("x" * 129,), ("x" * 60_000,), ("\xe9",), ("a b",), ("a", "b"), ("a", "\xff")]
)
def test_an_id_that_no_log_should_hold_is_replaced(base: str, ids: tuple[str, ...]):
    answer = ask(base, *(("x-request-id", id) for id in ids))
    [id] = seen(answer)["x-request-id"]
    assert FRESH.fullmatch(id)
    assert answer.headers["x-request-id"] == id


@pytest.mark.parametrize(
    "name", ["serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id", "x-session-id", "X_Session_Id"]
)
def test_what_serve_would_route_by_does_not_reach_it(base: str, name: str):
    assert set(seen(ask(base, (name, "\xff"), ("x-other", "\xff")))) == {"host", "x-other", "x-request-id"}


@pytest.mark.parametrize("name", ["x-request-timeout-seconds", "x-request-disconnect-disabled"])
def test_what_serve_decodes_is_text(base: str, name: str):
    assert seen(ask(base, (name, "3\xff")))[name] == ["3?"]
    assert seen(ask(base, (name, "?0")))[name] == ["?0"]


def test_the_address_that_a_proxy_reports_is_short(base: str):
    client = orjson.loads(ask(base, ("x-forwarded-for", "a" * 60_000)).body)["client"]
    assert client == "a" * len(client)
    assert len(client) < 100


@pytest.mark.parametrize("method", ["BREW", "get", "X" * 60_000])
def test_an_unknown_method_is_refused(base: str, method: str):
    answer = ask(base, method=method)
    assert (answer.status, answer.code) == (405, "METHOD_NOT_ALLOWED")
    assert "GET" in answer.headers["allow"]
    assert FRESH.fullmatch(answer.headers["x-request-id"])
    assert len(answer.body) < 1000
    assert ask(base, ("x-request-id", "mine"), method=method).headers["x-request-id"] == "mine"
