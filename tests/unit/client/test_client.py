"""The Python clients against the real application behind a real socket."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import PIL.Image
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import errors
from serve_app.api.app import create_app
from serve_app.client.asynchronous import AsyncImageEdits
from serve_app.client.blocking import ImageEdits
from serve_app.client.connection import BrokenOff, Unreachable
from serve_app.client.messages import Rows, StreamedEvent, StreamedOutput, StreamedPreview
from serve_app.errors import (
    EditError,
    GenerationError,
    InvalidInput,
    NotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    TooManySamples,
    Unauthorized,
)
from serve_app.events import Event, Progress
from serve_app.request import EditRequest, EditResult, GenerationRequest, Mask
from serve_app.settings import OPENAI_MODELS, AdapterSettings, AdapterUse, AppSettings, PresetSettings
from tests.editors import Inverter
from tests.http_calls import MODEL
from tests.http_server import address_of, answering, listening
from tests.pictures import mask_png, png


class BusyAtFirst(Inverter):
    """An Inverter that refuses the first requests."""

    def __init__(
        self, refusals: int, retry_after_s: int, error: type[Overloaded | TooManySamples] = Overloaded
    ) -> None:
        super().__init__()
        self.refusals, self._retry_after_s, self._error = refusals, retry_after_s, error

    async def edit(self, request: EditRequest) -> EditResult:
        if self.refusals:
            self.refusals -= 1
            raise self._error("Not now", retry_after_s=self._retry_after_s)
        return await super().edit(request)


class FailsMidway(Inverter):
    """An editor whose streams begin and fail."""

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        yield Progress(0, 10, place=0)
        raise OutOfMemory("CUDA out of memory")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGE_EDITS_API_KEYS", "IMAGE_EDITS_API_KEY", "IMAGE_EDITS_SERVER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def editor() -> Inverter:
    return Inverter()


@pytest.fixture
def server(editor: Inverter) -> Iterator[str]:
    offered = {"adapters": {"sketch": AdapterSettings(source="x")}, "presets": {"fast": PresetSettings(steps=4)}}
    with listening(create_app(editor, AppSettings(model=MODEL.model_copy(update=offered)))) as url:
        yield url


def blocking(url: str, call: str, *arguments: Any, retries: int = 0, **options: Any) -> Any:
    with ImageEdits(url, retries=retries) as edits:
        return getattr(edits, call)(*arguments, **options)


def in_a_loop(url: str, call: str, *arguments: Any, retries: int = 0, **options: Any) -> Any:
    async def go() -> Any:
        async with AsyncImageEdits(url, retries=retries) as edits:
            return await getattr(edits, call)(*arguments, **options)

    return asyncio.run(go())


both = pytest.mark.parametrize("ask", [blocking, in_a_loop])
Ask = Callable[..., Any]


def values(rows: Rows) -> list[list[int]]:
    return [[int(np.asarray(output.image.convert("RGB"))[3, 4, 0]) for output in row] for row in rows]


@both
def test_rows_are_pictures_and_columns_are_variants(ask: Ask, server: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(10))
    pictures = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        png(20),
        PIL.Image.new("RGB", (8, 6), (30, 30, 30)),
        np.full((6, 8, 3), 40, np.uint8),
    ]
    rows = ask(server, "edit", pictures, "invert", n=2, seed=7)
    assert values(rows) == [[245] * 2, [245] * 2, [235] * 2, [225] * 2, [215] * 2]
    assert [output.seed for row in rows for output in row] == list(range(7, 17))


@both
def test_every_option_arrives(ask: Ask, server: str, editor: Inverter) -> None:
    options = {
        "n": 3, "size": "64x48", "fit": "free", "steps": 5, "guidance": 2.5, "seed": 9, "negative_prompt": "blur",
        "output_format": "jpeg", "output_compression": 80, "model": "lab/edit", "user": "ann",
        "preset": "fast", "adapters": "sketch:0.5",
    }  # fmt: skip
    ((first, *_),) = ask(server, "edit", png(1), "invert", **options)
    assert (first.output_format, first.image.format) == ("jpeg", "JPEG")
    (request,) = editor.requests
    assert (request.n, str(request.size), request.num_inference_steps, request.guidance_scale) == (3, "64x48", 5, 2.5)
    assert request.fit == "free"
    assert (request.preset, request.adapters) == ("fast", (AdapterUse("sketch", 0.5),))
    assert (request.seed, request.negative_prompt, request.prompt) == (9, "blur", "invert")
    with pytest.raises(InvalidInput, match="did you mean size") as caught:
        ask(server, "edit", png(1), "invert", sise="64x48")
    assert caught.value.param == "sise"


def _changes() -> Mask:
    changes = np.zeros((6, 8), bool)
    changes[:, :3] = True
    return changes


@both
def test_masks_come_in_every_form_once_or_once_for_each(
    ask: Ask, server: str, editor: Inverter, tmp_path: Path
) -> None:
    changes = _changes()
    (tmp_path / "mask.png").write_bytes(mask_png(changes))
    clear = PIL.Image.fromarray(np.dstack([np.zeros((6, 8, 3), np.uint8), np.uint8(255) - changes * np.uint8(255)]))
    given: list[Any] = [
        *(changes, changes.astype(np.uint8) * 255, tmp_path / "mask.png", str(tmp_path / "mask.png")),
        *(mask_png(changes), PIL.Image.fromarray(changes), PIL.Image.fromarray(changes.astype(np.uint8) * 255), clear),
    ]
    for mask in given:
        ask(server, "edit", png(1), "invert", mask=mask)
    ask(server, "edit", [png(1), png(2)], "invert", mask=changes)
    ask(server, "edit", [png(1), png(2)], "invert", mask=[changes, ~changes])
    *ones, shared, each = [[mask.tolist() for mask in request.mask] for request in editor.requests]
    assert ones == [[changes.tolist()]] * len(given)
    assert shared == [changes.tolist()] * 2
    assert each == [changes.tolist(), (~changes).tolist()]


@both
@pytest.mark.parametrize("mask", [np.zeros((6, 8)), np.zeros((6, 8, 4), np.uint8), np.zeros((6, 8), bool)])
def test_what_is_no_mask_is_refused_before_anything_is_sent(ask: Ask, server: str, editor: Inverter, mask: Any) -> None:
    with pytest.raises(ValueError, match="mask at index 0"):
        ask(server, "edit", png(1), "invert", mask=mask)
    assert not editor.requests


@both
def test_a_mask_that_the_server_refuses_is_named(ask: Ask, server: str) -> None:
    with pytest.raises(InvalidInput, match="is 8x5, and the image 8x6") as caught:
        ask(server, "edit", png(1), "invert", mask=np.ones((5, 8), bool))
    assert caught.value.param == "mask"


@both
def test_transparency_arrives_and_comes_back_unless_it_should_be_opaque(
    ask: Ask, server: str, editor: Inverter
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8)
    rows = ask(server, "edit", [pixels, PIL.Image.fromarray(pixels)], "invert")
    for (output,) in rows:
        np.testing.assert_array_equal(np.asarray(output.image)[3:], 255 - pixels[3:])
    ((opaque,),) = ask(server, "edit", pixels, "invert", background="opaque")
    assert opaque.image.mode == "RGB"
    for request, channels in zip(editor.requests, (4, 3), strict=True):
        assert {image.shape[2] for image in request.images} == {channels}


@both
def test_a_prompt_for_each_picture(ask: Ask, server: str, editor: Inverter) -> None:
    ask(server, "edit", [png(1), png(2)], ["one", "two"])
    assert editor.requests[0].prompts == ("one", "two")


@both
def test_models_and_readiness(ask: Ask, server: str, editor: Inverter) -> None:
    assert ask(server, "models") == ["Qwen-Image-Edit", "lab/edit"]
    assert ask(server, "ready") is True
    editor.is_ready = False
    assert ask(server, "ready") is False


@both
@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("size: too large", param="size"),
        OutOfMemory("CUDA out of memory"),
        Overloaded("full", retry_after_s=3),
    ],
    ids=lambda error: error.code,
)
def test_errors_come_back_as_they_were_raised(ask: Ask, server: str, editor: Inverter, error: EditError) -> None:
    editor.error = error
    with pytest.raises(EditError) as caught:
        ask(server, "edit", png(1), "invert")
    back = caught.value
    assert isinstance(error, type(back))
    assert type(back) is not EditError
    assert (back.status, back.code, back.message, back.param, back.retry_after_s) == (
        *(error.status, error.code, error.message, error.param, error.retry_after_s),
    )


def test_an_error_of_a_proxy_or_of_a_later_version_keeps_its_status() -> None:
    error = errors.from_body("TEAPOT", "short and stout", status=418)
    assert (type(error), error.status, error.code, error.message) == (EditError, 418, "TEAPOT", "short and stout")


@both
def test_another_server_is_reported(ask: Ask, tmp_path: Path) -> None:
    with listening(Starlette()) as url, pytest.raises(EditError, match="404 Not Found") as caught:
        ask(url, "models")
    assert caught.value.status == 404
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = address_of(listener)
    with pytest.raises(Unreachable, match=url):
        ask(url, "ready")
    with pytest.raises(ValueError, match="localhost:8000"):
        ask("localhost:8000", "ready")


@both
def test_the_key_comes_from_the_argument_or_the_environment(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "schlüssel")
    with listening(create_app(Inverter(), AppSettings())) as url:
        with pytest.raises(Unauthorized):
            ask(url, "models")
        monkeypatch.setenv("IMAGE_EDITS_API_KEY", "schlüssel")
        assert ask(url, "models") == ["builtin:tiny", *OPENAI_MODELS]
        with ImageEdits(url, "wrong") as edits, pytest.raises(Unauthorized):
            edits.models()
        monkeypatch.setenv("IMAGE_EDITS_SERVER", url)
        assert ask(None, "models") == ["builtin:tiny", *OPENAI_MODELS]


@pytest.mark.parametrize("error", [Overloaded, TooManySamples])
def test_a_server_that_is_busy_is_asked_again_when_it_says(error: type[Overloaded | TooManySamples]) -> None:
    editor = BusyAtFirst(1, 2, error)
    with listening(create_app(editor, AppSettings())) as url, ImageEdits(url) as edits:
        start = perf_counter()
        assert values(edits.edit(png(10), "invert")) == [[245]]
        # Without Retry-After the first pause is at most one second.
        assert perf_counter() - start >= 2


def test_a_full_queue_is_given_up_on_in_the_end() -> None:
    editor = BusyAtFirst(refusals=2, retry_after_s=1)
    with listening(create_app(editor, AppSettings())) as url, ImageEdits(url, retries=1) as edits:
        with pytest.raises(Overloaded) as caught:
            edits.edit(png(10), "invert")
        assert (caught.value.retry_after_s, editor.refusals) == (1, 0)


def test_a_connection_that_breaks_is_made_again() -> None:
    app = create_app(Inverter(), AppSettings())
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        edits = ImageEdits(address_of(listener))
        answer = pool.submit(edits.edit, [png(10), png(20)], "invert")
        connection, _ = listener.accept()
        connection.recv(1)
        connection.close()
        with edits, answering(app, listener):
            assert values(answer.result(30)) == [[245], [235]]


class Torn:
    """A server that closes the connection in the middle of its first answer, and keeps the heads of all requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.keys: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def first_half(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "body": message["body"][:100], "more_body": True})
                raise ConnectionAbortedError
            await send(message)

        self.keys.append(Headers(scope=scope)["idempotency-key"])
        await self._app(scope, receive, first_half if len(self.keys) == 1 else send)


@both
def test_an_answer_that_breaks_off_is_asked_for_again_by_the_same_key(ask: Ask) -> None:
    app = Torn(create_app(Inverter(), AppSettings()))
    with listening(app) as url:
        assert values(ask(url, "edit", [png(10), png(20)], "invert", retries=1)) == [[245], [235]]
        assert len(app.keys) == 2
        assert len(set(app.keys)) == 1
        app.keys.clear()
        with pytest.raises(Unreachable):
            ask(url, "edit", png(10), "invert")


def streamed(url: str, *arguments: Any, call: str = "edit_stream", **options: Any) -> list[StreamedEvent]:
    with ImageEdits(url, retries=0) as edits:
        return list(getattr(edits, call)(*arguments, **options))


def streamed_in_a_loop(url: str, *arguments: Any, call: str = "edit_stream", **options: Any) -> list[StreamedEvent]:
    async def go() -> list[StreamedEvent]:
        async with AsyncImageEdits(url, retries=0) as edits:
            return [event async for event in getattr(edits, call)(*arguments, **options)]

    return asyncio.run(go())


both_streams = pytest.mark.parametrize("stream", [streamed, streamed_in_a_loop])


@both_streams
def test_a_stream_has_progress_previews_and_every_output(stream: Ask, server: str) -> None:
    events = stream(server, [png(10), png(20)], "invert", n=2, seed=7, partial_images=1)
    assert [events[0], events[-1]] == [Progress(0, 4, place=1), Progress(4, 4, place=0)]
    rows = {(e.image_index, e.variant_index): e.output for e in events if isinstance(e, StreamedOutput)}
    assert {place: (output.seed, values([[output]])) for place, output in rows.items()} == {
        (0, 0): (7, [[245]]), (0, 1): (8, [[245]]), (1, 0): (9, [[235]]), (1, 1): (10, [[235]]),
    }  # fmt: skip
    previews = [event for event in events if isinstance(event, StreamedPreview)]
    assert [(p.image_index, p.variant_index, p.preview_index) for p in previews] == [
        (1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 0),
    ]  # fmt: skip
    assert values([[previews[0].output]]) == [[117]]


@both_streams
def test_errors_of_a_stream_come_before_it_or_in_it(stream: Ask) -> None:
    with listening(create_app(FailsMidway(), AppSettings())) as url:
        with pytest.raises(InvalidInput) as caught:
            stream(url, png(10), "invert", partial_images=4)
        assert caught.value.param == "partial_images"
        with pytest.raises(GenerationError, match="CUDA out of memory") as failed:
            stream(url, png(10), "invert")
        assert (failed.value.status, failed.value.code) == (500, "GENERATION_ERROR")


@both_streams
@pytest.mark.parametrize("body", [b"", b'event: image_edit.progress\ndata: {"steps_done": 1,'], ids=["empty", "cut"])
def test_a_stream_without_its_end_is_an_error(stream: Ask, body: bytes) -> None:
    # As a proxy in between may cut it off.
    routes = [Route("/v1/images/edits", lambda _: Response(body, media_type="text/event-stream"), methods=["POST"])]
    with listening(Starlette(routes=routes)) as url, pytest.raises(BrokenOff):
        stream(url, png(10), "invert")


def test_a_connection_that_breaks_in_a_stream_is_an_error() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(streamed, address_of(listener), png(10), "invert")
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(head + b"5\r\nevent")
        connection.close()
        with pytest.raises(BrokenOff, match="broke off"):
            answer.result(30)


def test_not_ready_is_an_error_like_any_other(server: str, editor: Inverter) -> None:
    editor.error = NotReady("No replica has a warm model yet", retry_after_s=5)
    with ImageEdits(server, retries=0) as edits, pytest.raises(NotReady):
        edits.edit(png(10), "invert")


class Recorded:
    """An application that records the idempotency keys of its requests."""

    def __init__(self, app: Starlette) -> None:
        self.app = app
        self.keys: list[str | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.keys.append(Headers(scope=scope).get("idempotency-key"))
        await self.app(scope, receive, send)


@both
def test_every_edit_has_a_key_of_its_own_unless_it_is_given_one(ask: Ask, editor: Inverter) -> None:
    app = Recorded(create_app(editor, AppSettings()))
    with listening(app) as url:
        for _ in range(2):
            ask(url, "edit", png(10), "invert")
        first, again = (ask(url, "edit", png(10), "invert", idempotency_key="order-4711") for _ in range(2))
    assert len(set(app.keys[:2]) - {None}) == 2
    assert app.keys[2:] == ["order-4711"] * 2
    # No seed was given.
    assert first == again
    assert len(editor.requests) == 3


def test_every_try_of_an_edit_carries_the_same_key() -> None:
    app = Recorded(create_app(BusyAtFirst(refusals=2, retry_after_s=1), AppSettings()))
    with listening(app) as url, ImageEdits(url) as edits:
        edits.edit(png(10), "invert")
    assert len(app.keys) == 3
    assert len(set(app.keys) - {None}) == 1


@both_streams
def test_a_stream_has_no_key(stream: Ask, editor: Inverter) -> None:
    app = Recorded(create_app(editor, AppSettings()))
    with listening(app) as url:
        stream(url, png(10), "invert")
    assert app.keys == [None]


# --- generations --------------------------------------------------------------------------------------------------


@both
def test_a_generation_returns_its_variants(ask: Ask, server: str, editor: Inverter) -> None:
    options = {
        "n": 3, "size": "64x48", "steps": 5, "guidance": 2.5, "seed": 9, "negative_prompt": "blur",
        "output_format": "jpeg", "output_compression": 80, "model": "lab/edit", "user": "ann",
        "preset": "fast", "adapters": "sketch:0.5", "background": "opaque",
    }  # fmt: skip
    outputs = ask(server, "generate", "a red house", **options)
    assert [(output.seed, output.image.format, output.image.size) for output in outputs] == [
        (seed, "JPEG", (64, 48)) for seed in (9, 10, 11)
    ]
    (request,) = editor.requests
    assert isinstance(request, GenerationRequest)
    assert (request.prompt, request.num_inference_steps, request.guidance_scale) == ("a red house", 5, 2.5)
    assert (request.preset, request.adapters) == ("fast", (AdapterUse("sketch", 0.5),))
    assert (request.negative_prompt, request.background) == ("blur", "opaque")


@both
def test_options_of_an_edit_are_refused_in_a_generation(ask: Ask, server: str) -> None:
    with pytest.raises(InvalidInput, match="/v1/images/edits") as caught:
        ask(server, "generate", "x", fit="free")
    assert caught.value.param == "fit"


@both
def test_a_model_that_only_edits_raises_not_found(ask: Ask, server: str, editor: Inverter) -> None:
    editor.generates = False
    with pytest.raises(NotFound, match=r"Qwen/Qwen-Image-2\.1"):
        ask(server, "generate", "x")


@both
def test_a_generation_is_made_once_by_its_key(ask: Ask) -> None:
    editor = Inverter()
    app = Torn(create_app(editor, AppSettings()))
    with listening(app) as url:
        [output] = ask(url, "generate", "x", retries=1)
        [again] = ask(url, "generate", "x", idempotency_key=app.keys[0])
    assert len(set(app.keys)) == 1
    assert output == again
    assert len(editor.requests) == 1


@both_streams
def test_a_generation_is_streamed_as_an_edit_is(stream: Ask, server: str) -> None:
    events = stream(server, "x", call="generate_stream", n=2, seed=7, partial_images=1)
    assert [events[0], events[-1]] == [Progress(0, 2, place=1), Progress(2, 2, place=0)]
    found = {(e.image_index, e.variant_index): e.output.seed for e in events if isinstance(e, StreamedOutput)}
    assert found == {(0, 0): 7, (0, 1): 8}
    previews = [event for event in events if isinstance(event, StreamedPreview)]
    assert sorted((p.image_index, p.variant_index, p.preview_index) for p in previews) == [(0, 0, 0), (0, 1, 0)]
