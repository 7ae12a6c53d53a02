"""Pictures by URL in a JSON body, from a server on this machine that stands for an allowed host."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.requests import Request

from serve_app.api.app import create_app
from serve_app.errors import EditError, InvalidInput, Overloaded
from serve_app.forms.fetching import PictureFetcher
from serve_app.forms.form import EditForm, parse
from serve_app.forms.memory import MemoryLimiter, Reservation
from serve_app.settings import AppSettings, InputSettings, LimitSettings
from tests.editors import Inverter
from tests.http_calls import error_of
from tests.pictures import mask_png, pixels_of, png
from tests.scripted_server import Answer, Names, Scripted, local_backend, ok, redirect, scripted
from tests.uploads import Upload, levels

INLINE = base64.b64encode(png(1, 8, 8)).decode()
PICTURES: dict[str, Answer] = {f"/{value}.png": ok(png(value, 8, 8)) for value in (9, 4, 200)}


def settings_for(server: Scripted, limits: LimitSettings | None = None, **inputs: Any) -> AppSettings:
    hosts = (f"a.example:{server.port}",)
    return AppSettings(inputs=InputSettings(**{"allowed_hosts": hosts, **inputs}), limits=limits or LimitSettings())


def fill(value: Any, server: Scripted) -> Any:
    """Return a body with the server's address in place of `~`."""
    return json.loads(json.dumps(value).replace("~", f"http://a.example:{server.port}"))


async def parse_from(
    server: Scripted,
    body: dict[str, Any],
    settings: AppSettings,
    reservation: Reservation | None = None,
    **options: Any,
) -> EditForm:
    raw = json.dumps(fill({"prompt": "x", **body}, server)).encode()
    upload = Upload([raw], "application/json")
    fetcher = PictureFetcher(settings, local_backend(Names(b_example=[["10.0.0.1"]])))
    return await parse(Request(upload.scope, upload.receive), settings, None, reservation, fetcher=fetcher, **options)


def form(body: dict[str, Any], answers: dict[str, Answer] = PICTURES, **options: Any) -> tuple[EditForm, Scripted]:
    async def go() -> tuple[EditForm, Scripted]:
        async with scripted(answers) as server:
            return await parse_from(server, body, settings_for(server), **options), server

    return asyncio.run(go())


def refusal(
    body: dict[str, Any],
    answers: dict[str, Answer] = PICTURES,
    limits: LimitSettings | None = None,
    reservation: Reservation | None = None,
    **inputs: Any,
) -> tuple[EditError, Scripted]:
    async def go() -> tuple[EditError, Scripted]:
        async with scripted(answers) as server:
            with pytest.raises(EditError) as caught:
                await parse_from(server, body, settings_for(server, limits, **inputs), reservation)
            return caught.value, server

    return asyncio.run(go())


@pytest.mark.parametrize(
    "body",
    [
        {"images": ["~/9.png", "~/4.png", "~/200.png"]},
        {"images": ["~/9.png", base64.b64encode(png(4, 8, 8)).decode(), "~/200.png"]},
    ],
)
def test_a_batch_keeps_its_order(body: dict[str, Any]) -> None:
    found, _ = form(body)
    assert levels(found) == [9, 4, 200]


@pytest.mark.parametrize(
    "value",
    ["~/9.png", ["~/9.png"], {"image_url": "~/9.png"}, {"url": "~/9.png"}, [{"image_url": {"url": "~/9.png"}}]],
)
@pytest.mark.parametrize("name", ["images", "image", "image[]"])
def test_a_url_goes_wherever_a_picture_does(name: str, value: Any) -> None:
    assert levels(form({name: value})[0]) == [9]


def test_references_and_masks_are_fetched_too() -> None:
    answers = {**PICTURES, "/mask.png": ok(mask_png([[1] * 8] * 8))}
    found, server = form({"images": "~/9.png", "references": ["~/4.png"], "mask": "~/mask.png"}, answers)
    [references] = found.request.references
    assert (levels(found), int(references[0][0, 0, 0]), len(found.request.masks)) == ([9], 4, 1)
    assert server.paths == ["/9.png", "/4.png", "/mask.png"]


def test_what_was_fetched_is_what_a_retry_is_compared_by() -> None:
    url, same = (form({"images": images, "seed": 1}, fingerprinted=True)[0] for images in ("~/9.png", "~/9.png"))
    other, _ = form({"images": "~/4.png", "seed": 1}, fingerprinted=True)
    inline, _ = form({"images": base64.b64encode(png(9, 8, 8)).decode(), "seed": 1}, fingerprinted=True)
    assert url.fingerprint == same.fingerprint == inline.fingerprint != other.fingerprint


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://evil.example/a.png", "operator allows"),
        ("http://127.0.0.1/a.png", "operator allows"),
        ("http://169.254.169.254/latest/meta-data/", "operator allows"),
        ("file:///etc/passwd", "only http and https"),
        ("http://a.example@evil.example/", "user name"),
    ],
)
@pytest.mark.parametrize("field", ["images", "references", "mask"])
def test_a_url_that_is_not_allowed_is_a_400_and_nothing_is_fetched(field: str, url: str, reason: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "images": {"images": ["~/9.png", url]},
        "references": {"images": "~/9.png", "references": [INLINE, url]},
        "mask": {"images": ["~/9.png", "~/4.png"], "mask": [INLINE, url]},
    }
    error, server = refusal(bodies[field])
    assert (type(error), error.status, error.param) == (InvalidInput, 400, field)
    assert error.message.startswith(f"{field}: the URL at index 1 cannot be fetched: ")
    assert reason in error.message
    assert server.heads == []


def test_a_bad_field_is_refused_before_anything_is_fetched() -> None:
    fields: list[dict[str, Any]] = [{"n": 0}, {"steps": 5}, {"mask": [INLINE, INLINE, INLINE]}]
    for bad in fields:
        error, server = refusal({"images": "~/9.png", **bad})
        assert error.status == 400
        assert server.heads == []


def test_an_address_that_is_not_public_is_a_400() -> None:
    async def go() -> None:
        async with scripted(PICTURES) as server:
            settings = settings_for(server, allowed_hosts=("b.example",))
            with pytest.raises(InvalidInput, match="index 0 cannot be fetched: the address of its host") as caught:
                await parse_from(server, {"image": "http://b.example/9.png"}, settings)
            assert caught.value.param == "image"

    asyncio.run(go())


def test_without_hosts_every_url_is_refused_as_before() -> None:
    error, server = refusal({"images": "~/9.png"}, allowed_hosts=())
    assert error.message == "images: no URL is fetched; send the picture itself, as base64 or as a data URL"
    assert server.heads == []


async def slow() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("answer", "inputs", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", {}, "its host answered with status 404"),
        (slow, {"timeout_s": 0.3}, "0.3 s"),
        (redirect("/4.png"), {"max_redirects": 0}, "redirects more than 0 times"),
        (redirect("http://127.0.0.1/"), {}, "operator allows"),
    ],
    ids=["404", "slow", "redirect", "redirect to loopback"],
)
def test_a_picture_that_does_not_come_is_a_400(answer: Answer, inputs: dict[str, Any], reason: str) -> None:
    error, _ = refusal({"images": ["~/9.png", "~/bad"]}, {**PICTURES, "/bad": answer}, **inputs)
    assert (type(error), error.param) == (InvalidInput, "images")
    assert error.message.startswith("images: the URL at index 1 cannot be fetched: ")
    assert reason in error.message


def test_what_is_no_picture_is_a_400_like_an_upload() -> None:
    error, _ = refusal({"images": ["~/9.png", "~/bad"]}, {**PICTURES, "/bad": ok(b"<html>")})
    assert error.message.startswith("Invalid image format at index 1: ")


def test_the_time_is_that_of_all_pictures() -> None:
    async def late() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.2)
        yield ok(png(1, 8, 8))

    error, server = refusal({"images": ["~/late"] * 10}, {"/late": late}, timeout_s=0.5)
    assert "the images of a request may take 0.5 s together" in error.message
    assert len(server.paths) <= 3


def test_a_picture_beyond_the_limit_of_a_file_is_a_400() -> None:
    size = len(png(9, 8, 8))
    error, _ = refusal({"images": ["~/9.png"]}, limits=LimitSettings(max_file_bytes=size - 1))
    assert (error.status, error.param) == (400, "images")
    assert f"it is larger than {size - 1} bytes" in error.message


def test_pictures_beyond_the_limit_of_a_request_together_are_a_400() -> None:
    limits = LimitSettings(max_file_bytes=400, max_request_bytes=1000)
    body = b"0" * 400
    error, server = refusal({"images": ["~/a"] * 5}, {"/a": ok(body)}, limits)
    assert "index 2 cannot be fetched: the images of the request are larger than 1000 bytes together" in error.message
    assert len(server.paths) == 3


def test_the_bytes_count_as_those_of_an_upload() -> None:
    limits = LimitSettings(max_file_bytes=1000, max_request_bytes=1000, max_uploading_bytes=1000)
    limiter = MemoryLimiter(limits)
    limiter.reserve_bytes(1000 - len(png(9, 8, 8)) - 1)
    _, server = form({"images": "~/9.png"}, reservation=Reservation(limiter))
    assert len(server.paths) == 1
    error, _ = refusal({"images": ["~/9.png", "~/4.png"]}, reservation=Reservation(limiter))
    assert isinstance(error, Overloaded)


@pytest.mark.parametrize(
    "host",
    [
        "https://a.example",
        "A.example",
        "a.example/",
        "a.example.",
        "*",
        "*.",
        "a.*.example",
        "a.example:0",
        "a@b",
        "[::1]",
    ],
)
def test_settings_that_are_no_hosts_are_refused(host: str) -> None:
    with pytest.raises(ValidationError, match=r"inputs\.allowed_hosts: .* is not the name of a host"):
        InputSettings(allowed_hosts=(host,))


# --- over the whole application -----------------------------------------------------------------------------------


def test_an_edit_of_a_picture_by_url() -> None:
    async def go() -> None:
        async with scripted({**PICTURES, "/moved": redirect("/9.png")}) as server:
            settings = settings_for(server)
            app = create_app(Inverter(), settings, backend=local_backend())
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                body = fill({"images": [{"image_url": "~/moved"}], "prompt": "x"}, server)
                answer = await client.post("/v1/images/edits", json=body)
                assert pixels_of(answer.json()["data"][0])[3, 4, 0] == 246
                body["images"] = ["http://evil.example/"]
                answer = await client.post("/v1/images/edits", json=body)
                assert (answer.status_code, error_of(answer)["param"]) == (400, "images")

    asyncio.run(go())


def test_by_default_names_are_resolved_by_the_system_and_no_address_of_this_machine_is_public() -> None:
    async def go() -> None:
        async with scripted(PICTURES) as server:
            settings = settings_for(server, allowed_hosts=(f"localhost:{server.port}",))
            raw = json.dumps({"prompt": "x", "images": f"http://localhost:{server.port}/9.png"}).encode()
            upload = Upload([raw], "application/json")
            with pytest.raises(InvalidInput, match="not one of the public internet"):
                await parse(Request(upload.scope, upload.receive), settings)
            assert server.heads == []

    asyncio.run(go())
