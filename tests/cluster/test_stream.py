"""Streams through a real handle and over HTTP: their events, and disconnects that free the engine."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import requests

from serve_app import EditRequest
from serve_app.deployments.editor_handle import EditorHandle
from serve_app.errors import DeadlineExceeded, InvalidInput
from serve_app.events import Completed, Done, Event, Preview, Progress
from tests.cluster.client import TIMEOUT_S, picture_of, png
from tests.cluster.conftest import Served
from tests.scenes import difference, scene
from tests.waiting import wait_until

FIELDS: dict[str, Any] = {"prompt": "make the sky blue", "seed": 3, "num_inference_steps": 4}
LONG: dict[str, Any] = {"prompt": "x", "n": 2, "num_inference_steps": 150}


def test_a_stream_has_progress_previews_every_output_and_its_end(served: Served):
    pictures = [scene(1), scene(2)]
    request = EditRequest(images=pictures, n=2, partial_images=2, **FIELDS)
    events: list[Event] = list(served.editor.options(stream=True).edit_stream.remote(request))
    assert [type(event) for event in (events[0], events[-1])] == [Progress, Done]
    assert [event.steps_done for event in events if isinstance(event, Progress)][-1] == 16
    previews = [event for event in events if isinstance(event, Preview)]
    assert sorted((p.image_index, p.variant_index, p.preview_index) for p in previews) == [
        (i, j, k) for i in range(2) for j in range(2) for k in range(2)
    ]
    result = served.editor.edit.remote(EditRequest(images=pictures, n=2, **FIELDS)).result()
    completed = [event for event in events if isinstance(event, Completed)]
    assert sorted((c.image_index, c.variant_index) for c in completed) == [(i, j) for i in range(2) for j in range(2)]
    for each in completed:
        assert each.seed == result.seeds[each.image_index][each.variant_index]
        assert difference(each.pixels, result.pixels[each.image_index][each.variant_index]) <= 1
    # Float noise changes a preview too, so that its values are not compared.
    for preview in previews:
        assert preview.pixels.shape == result.pixels[0][0].shape
        assert np.ptp(preview.pixels) > 0


def test_errors_are_typed_on_the_other_side(served: Served):
    request = EditRequest(images=[scene(1)], prompt="x", size="4000x4000")
    with pytest.raises(InvalidInput) as caught:
        next(served.editor.options(stream=True).edit_stream.remote(request))
    assert (caught.value.param, caught.value.status) == ("size", 400)


def test_previews_are_refused_outside_of_a_stream(served: Served):
    request = EditRequest(images=[scene(1)], prompt="x", partial_images=2)
    with pytest.raises(InvalidInput, match="only a stream has previews") as caught:
        served.editor.edit.remote(request).result()
    assert caught.value.param == "partial_images"


def test_a_cancelled_stream_frees_its_samples_at_the_next_step(served: Served):
    before = served.stats()
    stream = served.editor.options(stream=True).edit_stream.remote(EditRequest(images=[scene(1)], **LONG))
    while next(stream).steps_done == 0:
        pass
    stream.cancel()
    wait_until(lambda: served.stats().cancelled == before.cancelled + 1, "the request leaves")
    assert served.stats().forwards < before.forwards + 150


class TestHandleEditor:
    def test_closing_the_stream_frees_its_samples(self, served: Served):
        before = served.stats()

        async def look_and_leave() -> None:
            editor = EditorHandle(served.editor, timeout_s=60)
            async with aclosing(editor.edit_stream(EditRequest(images=[scene(1)], **LONG))) as events:
                async for event in events:
                    if isinstance(event, Progress) and event.steps_done:
                        break

        asyncio.run(look_and_leave())
        wait_until(lambda: served.stats().cancelled == before.cancelled + 1, "the request leaves")

    def test_a_caller_that_is_cancelled_while_it_waits_frees_its_samples(self, served: Served):
        before = served.stats()

        async def cancel_after_the_first_step() -> None:
            stepped = asyncio.Event()

            async def read() -> None:
                async for event in EditorHandle(served.editor, timeout_s=60).edit_stream(
                    EditRequest(images=[scene(1)], **LONG)
                ):
                    if isinstance(event, Progress) and event.steps_done:
                        stepped.set()

            reading = asyncio.create_task(read())
            await stepped.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

        asyncio.run(cancel_after_the_first_step())
        wait_until(lambda: served.stats().cancelled == before.cancelled + 1, "the request leaves")

    def test_an_edit_that_takes_longer_than_its_deadline_is_refused_at_once(self, served: Served):
        before = served.stats()

        async def read() -> list[Event]:
            editor = EditorHandle(served.editor, timeout_s=0.2)
            return [event async for event in editor.edit_stream(EditRequest(images=[scene(1)], **LONG))]

        with pytest.raises(DeadlineExceeded, match=r"takes at least .* Ask for fewer steps"):
            asyncio.run(read())
        after = served.stats()
        assert (after.refused, after.forwards) == (before.refused + 1, before.forwards)

    def test_read_to_its_end_it_is_the_same_stream(self, served: Served):
        async def read() -> list[Event]:
            editor = EditorHandle(served.editor, timeout_s=60)
            return [event async for event in editor.edit_stream(EditRequest(images=[scene(1)], **FIELDS))]

        before, events = served.stats(), asyncio.run(read())
        assert isinstance(events[-1], Done)
        assert sum(isinstance(event, Completed) for event in events) == 1
        assert served.stats().cancelled == before.cancelled


class TestHttp:
    def post(self, served: Served, **fields: Any) -> requests.Response:
        files = [("images", (f"{k}.png", png(scene(k)), "image/png")) for k in (1, 2)]
        data = {"prompt": "make the sky blue", "stream": "true", **fields}
        url = f"{served.client.base}/v1/images/edits"
        return requests.post(url, files=files, data=data, timeout=TIMEOUT_S, stream=True)

    def events(self, response: requests.Response) -> Iterator[dict[str, Any]]:
        """Yield the events as they arrive, up to `[DONE]`."""
        assert response.headers["content-type"].startswith("text/event-stream")
        data = (line[6:] for line in response.iter_lines() if line.startswith(b"data: "))
        for text in data:
            if text == b"[DONE]":
                return
            yield json.loads(text)
        raise AssertionError("the stream broke off")

    def test_every_output_arrives_with_its_previews(self, served: Served):
        fields: dict[str, Any] = {"n": 2, "seed": 3, "num_inference_steps": 4, "size": "100x75"}
        events = list(self.events(self.post(served, partial_images=2, **fields)))
        assert (events[0]["type"], events[-1]["type"]) == ("image_edit.progress", "image_edit.done")
        previews = [event for event in events if event["type"] == "image_edit.partial_image"]
        assert sorted((e["input_index"], e["variant_index"], e["partial_image_index"]) for e in previews) == [
            (i, j, k) for i in range(2) for j in range(2) for k in range(2)
        ]
        assert {event["size"] for event in previews} == {"100x75"}
        whole = served.client.edit([scene(1), scene(2)], prompt="make the sky blue", **fields).json()["data"]
        completed = [event for event in events if event["type"] == "image_edit.completed"]
        assert len(completed) == 4
        for event in completed:
            same = whole[event["input_index"] * 2 + event["variant_index"]]
            assert (event["seed"], event["size"]) == (same["seed"], same["size"])
            assert difference(picture_of(event), picture_of(same)) <= 1

    def test_an_error_before_the_first_event_has_its_own_status(self, served: Served):
        response = self.post(served, size="4000x4000")
        assert (response.status_code, response.json()["error"]["param"]) == (400, "size")

    def test_a_caller_that_hangs_up_frees_its_samples(self, served: Served):
        before = served.stats()
        with self.post(served, num_inference_steps=150) as response:
            assert next(event["steps_done"] for event in self.events(response) if event["steps_done"])
        wait_until(lambda: served.stats().cancelled == before.cancelled + 1, "the request leaves")
        assert served.stats().forwards < before.forwards + 150
