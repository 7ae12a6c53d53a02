"""Headers that Ray Serve's proxy obeys: those that would keep unwanted work are refused before the body is read."""

import pytest
from starlette.datastructures import Headers

from serve_app.api.proxy_headers import check_proxy_headers
from serve_app.errors import InvalidInput

DISCONNECT, TIMEOUT = "x-request-disconnect-disabled", "x-request-timeout-seconds"


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


@pytest.mark.parametrize(
    "pairs",
    [
        [(DISCONNECT, "?1")],
        [(DISCONNECT, "1")],
        [(DISCONNECT, "true")],
        [(DISCONNECT, "")],
        [(DISCONNECT, "?0"), (DISCONNECT, "?1")],
        [(TIMEOUT, "0")],
        [(TIMEOUT, "0.000")],
        [(TIMEOUT, "-1")],
        [(TIMEOUT, "nan")],
        [(TIMEOUT, "inf")],
        [(TIMEOUT, "1e300")],
        [(TIMEOUT, "1_0")],
        [(TIMEOUT, "10000000")],
        [(TIMEOUT, "")],
        [(TIMEOUT, "soon")],
        [(TIMEOUT, "\xe9")],
        [(TIMEOUT, "1"), (TIMEOUT, "0")],
    ],
)
def test_what_would_keep_work_is_refused_by_its_name(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_proxy_headers(headers(*pairs))
    assert caught.value.param == pairs[0][0]
    assert pairs[0][0] in caught.value.message


@pytest.mark.parametrize(
    "pairs", [[], [(DISCONNECT, "?0")], [(TIMEOUT, "30")], [(TIMEOUT, "2.5")], [(TIMEOUT, "0.001")]]
)
def test_what_is_harmless_passes(pairs: list[tuple[str, str]]) -> None:
    check_proxy_headers(headers(*pairs))
