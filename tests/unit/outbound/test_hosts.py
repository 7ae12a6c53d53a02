"""URLs of allowed hosts, and those that only look like it."""

import pytest

from serve_app.outbound.errors import OutboundError
from serve_app.outbound.hosts import AllowedHosts, Target

HOSTS = AllowedHosts(["pictures.example", "*.cdn.example", "odd.example", "odd.example:8443", "203.0.113.5"])


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://pictures.example/a.png", Target("https", "pictures.example", 443, "/a.png")),
        ("http://pictures.example", Target("http", "pictures.example", 80, "/")),
        ("https://pictures.example:443/a", Target("https", "pictures.example", 443, "/a")),
        ("HTTPS://Pictures.Example/A", Target("https", "pictures.example", 443, "/A")),
        ("https://pictures.example/a?b=1&c=%20#d", Target("https", "pictures.example", 443, "/a?b=1&c=%20")),
        ("https://pictures.example?b=@evil.example", Target("https", "pictures.example", 443, "/?b=@evil.example")),
        ("https://one.cdn.example/", Target("https", "one.cdn.example", 443, "/")),
        ("https://a.b.cdn.example/", Target("https", "a.b.cdn.example", 443, "/")),
        ("https://odd.example:8443/", Target("https", "odd.example", 8443, "/")),
        ("https://odd.example/", Target("https", "odd.example", 443, "/")),
        ("http://203.0.113.5/", Target("http", "203.0.113.5", 80, "/")),
    ],
)
def test_a_url_of_an_allowed_host_is_taken_apart(url: str, target: Target) -> None:
    assert HOSTS.check(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/",
        "https://evil.example/pictures.example",
        "https://evil.example#@pictures.example",
        "https://evil.example?@pictures.example",
        "https://xpictures.example/",
        "https://pictures.example.evil.example/",
        "https://cdn.example/",
        "https://xcdn.example/",
        "https://.cdn.example/",
        "https://pictures.example./",
        "https://pictures.example:8443/",
        "https://pictures.example:80/",
        "https://odd.example:0/",
        "https://odd.example:8444/",
        "https:///pictures.example",
        "https:pictures.example",
        "https://",
        "https://3405803781/",
        "https://0xcb.0.113.5/",
    ],
)
def test_another_host_or_port_is_refused(url: str) -> None:
    with pytest.raises(OutboundError, match="is not one of those that this server's operator allows"):
        HOSTS.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://pictures.example@evil.example/",
        "https://evil.example:x@pictures.example/",
        "https://pictures.example:443@evil.example/",
        "https://@pictures.example/",
    ],
)
def test_a_user_name_is_refused(url: str) -> None:
    with pytest.raises(OutboundError, match="user name"):
        HOSTS.check(url)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://pictures.example/", "gopher://pictures.example/", "s3://pictures.example/a", ""],
)
def test_another_scheme_is_refused(url: str) -> None:
    with pytest.raises(OutboundError, match=r"only http and https|no URL"):
        HOSTS.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example\\@pictures.example/",
        "https://pictures.example\\.evil.example/",
        "https://pictures.example /",
        "https://pictures.example/\r\nHost: evil.example",
        "https://pictures.example/\tx",
        "https://pictures。example/",
        "https://pıctures.example/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://pictures.example:99999/",
        "https://pictures.example:x/",
        "https://pictures.example/" + "a" * 9000,
    ],
)
def test_what_parsers_read_differently_is_refused(url: str) -> None:
    with pytest.raises(OutboundError, match="no URL as RFC 3986"):
        HOSTS.check(url)


def test_without_hosts_nothing_is_allowed() -> None:
    with pytest.raises(OutboundError):
        AllowedHosts([]).check("https://pictures.example/")
