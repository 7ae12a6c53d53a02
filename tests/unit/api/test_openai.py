"""OpenAI's own Python client against the application behind a real socket: its errors, its retries, its streams."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent

from serve_app.api.app import create_app
from serve_app.errors import DeadlineExceeded, EditError, OutOfMemory, Overloaded, TooManySamples
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings, AuthSettings
from tests.editors import Inverter, Stumbler
from tests.http_server import listening
from tests.pictures import mask_png, png


class Recovering(Inverter):
    """An editor that fails once, then works."""

    def __init__(self, error: EditError) -> None:
        super().__init__()
        self._first = error

    async def edit(self, request: EditRequest) -> EditResult:
        if not self.requests:
            self.requests.append(request)
            raise self._first
        return await super().edit(request)


@contextmanager
def client_of(editor: Inverter, key: str = "none", keys_file: Path | None = None, **options: Any) -> Iterator[OpenAI]:
    app = create_app(editor, AppSettings(auth=AuthSettings(keys_file=keys_file)))
    with listening(app) as url, OpenAI(base_url=f"{url}/v1", api_key=key, **options) as client:
        yield client


@pytest.mark.parametrize("error", [Overloaded, TooManySamples])
def test_a_server_that_is_busy_is_tried_again_after_its_retry_after(
    error: type[Overloaded | TooManySamples],
) -> None:
    editor = Recovering(error("Not now", retry_after_s=1))
    with client_of(editor) as client:
        start = time.monotonic()
        result = client.images.edit(image=png(1), prompt="x")
        # Without Retry-After, the pause would be half a second at most.
        assert time.monotonic() - start >= 1
    assert len(result.data or []) == 1
    assert len(editor.requests) == 2


def test_a_stream_is_tried_again_too() -> None:
    editor = Recovering(Overloaded("The queue is full", retry_after_s=1))
    with client_of(editor) as client:
        events = list(client.images.edit(image=png(1), prompt="x", stream=True))
    assert [event.type for event in events].count("image_edit.completed") == 1
    assert len(editor.requests) == 2


@pytest.mark.parametrize(
    ("error", "status"), [(OutOfMemory("CUDA out of memory"), 500), (DeadlineExceeded("too late"), 504)]
)
def test_what_failed_is_not_made_twice(error: EditError, status: int) -> None:
    editor = Inverter()
    editor.error = error
    with client_of(editor) as client, pytest.raises(openai.InternalServerError) as caught:
        client.images.edit(image=png(1), prompt="x")
    assert len(editor.requests) == 1
    assert (caught.value.status_code, caught.value.code) == (status, error.code)
    assert error.message in caught.value.message


def test_a_key_is_asked_for(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alpha\n")
    with client_of(Inverter(), key="beta", keys_file=keys) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.images.edit(image=png(1), prompt="x")
        assert caught.value.code == "UNAUTHORIZED"
        assert len(client.with_options(api_key="alpha").images.edit(image=png(1), prompt="x").data or []) == 1


def test_an_error_in_the_middle_of_a_stream_is_raised() -> None:
    editor = Stumbler()
    editor.error = OutOfMemory("CUDA out of memory")
    with client_of(editor) as client:
        events = iter(client.images.edit(image=png(1), prompt="x", stream=True))
        assert next(events).type == "image_edit.progress"  # type: ignore[comparison-overlap]
        with pytest.raises(openai.APIError, match="Image generation failed: CUDA out of memory") as caught:
            next(events)
    assert (caught.value.code, caught.value.type) == ("GENERATION_ERROR", "server_error")


def test_the_async_client_streams() -> None:
    async def go(url: str) -> list[Any]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = await client.images.edit(image=png(1), prompt="x", n=2, stream=True, partial_images=1)
            return [event async for event in stream]

    with listening(create_app(Inverter(), AppSettings())) as url:
        events = asyncio.run(go(url))
    types = [event.type for event in events]
    assert (types.count("image_edit.partial_image"), types.count("image_edit.completed")) == (2, 2)
    assert events[-1].type == "image_edit.done"


def test_a_mask_is_sent_as_in_openais_api() -> None:
    editor = Inverter()
    changes = np.zeros((6, 8), bool)
    changes[:, :3] = True
    with client_of(editor) as client:
        client.images.edit(image=png(1), mask=mask_png(changes), prompt="x")
        client.images.edit(image=[png(1)], mask=("mask.png", mask_png(changes)), prompt="x", background="auto")
        with pytest.raises(openai.BadRequestError, match="is 4x4, and the image 8x6") as caught:
            client.images.edit(image=png(1), mask=mask_png(np.ones((4, 4))), prompt="x")
        assert caught.value.param == "mask"
        with pytest.raises(openai.BadRequestError, match="JPEG has no transparency") as transparent:
            client.images.edit(image=png(1), prompt="x", background="transparent", output_format="jpeg")
        assert transparent.value.param == "background"
    assert [request.mask[0].tolist() for request in editor.requests] == [changes.tolist()] * 2


def test_pictures_are_generated() -> None:
    editor = Inverter()
    with client_of(editor) as client:
        result = client.images.generate(
            prompt="x",
            model="gpt-image-1",
            n=2,
            size="1024x1024",
            quality="hd",
            style="vivid",
            background="auto",
            response_format="b64_json",
            user="ann",
            extra_body={"seed": 7},
        )
        assert result.usage is not None
        assert (result.usage.input_tokens_details.image_tokens, len(result.data or [])) == (0, 2)
        with pytest.raises(openai.BadRequestError, match="/v1/images/edits") as picture:
            client.images.generate(prompt="x", extra_body={"image": "x"})
        assert picture.value.param == "image"
        editor.generates = False
        with pytest.raises(openai.NotFoundError, match=r"Qwen-Image-2\.1") as caught:
            client.images.generate(prompt="x")
        assert caught.value.code == "NOT_FOUND"
    [request] = editor.requests
    assert (request.prompt, request.n, request.seed, str(request.size)) == ("x", 2, 7, "1024x1024")


def test_a_generation_streams_events_of_the_clients_types() -> None:
    with client_of(Inverter()) as client:
        events = list(client.images.generate(prompt="x", n=2, stream=True, partial_images=1))
    pictures = [event for event in events if isinstance(event, ImageGenPartialImageEvent | ImageGenCompletedEvent)]
    assert [event.type for event in pictures].count("image_generation.partial_image") == 2
    [first, _] = [event for event in pictures if isinstance(event, ImageGenCompletedEvent)]
    assert first.usage.input_tokens_details.image_tokens == 0
    assert events[-1].type == "image_generation.done"  # type: ignore[comparison-overlap]
