"""The events of jobs as server-sent events, over the application and a small editor. No Ray, no model."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import pytest

from serve_app.errors import OutOfMemory
from serve_app.events import Completed, Event
from serve_app.request import EditRequest
from tests.editors import Gated
from tests.http_calls import JobCaller, error_of, events_of, play, until

COMPLETED = "image_edit.completed"


class Halting(Gated):
    """An editor that halts before its first output is done."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.set()
        self.halted = asyncio.Event()
        self.end = asyncio.Event()

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        async for event in super().edit_stream(request):
            if isinstance(event, Completed):
                self.halted.set()
                await self.end.wait()
            yield event


def read(caller: JobCaller, id: str) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(caller.http.get(f"/v1/jobs/{id}?stream=true"))


def places(events: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the image and the variant of each output, in the order in which they are done."""
    return [(event["input_index"], event["variant_index"]) for event in events if event["type"] == COMPLETED]


def error_in(response: httpx.Response) -> str:
    """Return the code of the error with which a stream has ended."""
    *_, last = response.text.strip().split("\n\n")
    assert last.startswith("event: error\n")
    return str(json.loads(last.partition("data: ")[2])["error"]["code"])


def test_every_reader_of_a_job_gets_its_progress_and_its_outputs_whenever_it_comes() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        id = (await caller.post(values=(10, 20), n="2", seed="7", partial_images="2")).json()["id"]
        early = read(caller, id)
        await caller.until(id, "running")
        late = read(caller, id)
        editor.gate.set()
        job = await caller.until(id, "succeeded")
        for response in (await early, await late, await read(caller, id)):
            events = events_of(response)
            # The editor finishes the last output first.
            assert places(events) == [(1, 1), (1, 0), (0, 1), (0, 0)]
            pictures = [event["b64_json"] for event in events if event["type"] == COMPLETED]
            assert pictures[::-1] == [item["b64_json"] for item in job["result"]["data"]]
            assert events[-1]["type"] == "image_edit.done"
            assert events[-1]["usage"]["total_tokens"] == job["result"]["usage"]["total_tokens"]
        first = events_of(await early)[0]
        assert (first["type"], first["steps"]) == ("image_edit.progress", 4)

    play(story)


def test_a_reader_sees_the_last_preview_of_what_is_not_done_and_no_event_twice() -> None:
    async def story() -> None:
        editor = Halting()
        caller = JobCaller(editor)
        id = (await caller.post(partial_images="3")).json()["id"]
        await editor.halted.wait()
        await until(lambda: any(name.endswith("/0-0.2.png") for name in caller.shared.blobs.names))
        reader = read(caller, id)
        await asyncio.sleep(1)
        editor.end.set()
        events = [event for event in events_of(await reader) if event["type"] != "image_edit.progress"]
        assert [event["type"] for event in events] == ["image_edit.partial_image", COMPLETED, "image_edit.done"]
        assert events[0]["partial_image_index"] == 2
        assert events[0]["b64_json"] != events[1]["b64_json"] != ""
        # The preview is not kept beside the output.
        assert [name.partition("/")[2] for name in caller.shared.blobs.names] == ["0-0.png"]

    asyncio.run(story())


def test_a_job_that_failed_ends_its_stream_with_the_error_in_every_process() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        id = await caller.start()
        reader = read(caller, id)
        editor.middle_error = OutOfMemory("CUDA out of memory")
        editor.gate.set()
        await caller.until(id, "failed")
        for response in (await reader, await read(JobCaller(editor, caller.shared), id)):
            assert response.status_code == 200
            assert error_in(response) == "GENERATION_ERROR"

    play(story)


def test_a_reader_in_another_process_gets_the_same_events() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        id = (await caller.post(values=(10, 20), n="2")).json()["id"]
        elsewhere = read(JobCaller(editor, caller.shared), id)
        await caller.until(id, "running")
        editor.gate.set()
        await caller.until(id, "succeeded")
        assert events_of(await elsewhere)[-5:] == events_of(await read(caller, id))[-5:]

    play(story)


def test_a_job_that_is_deleted_ends_its_stream_and_an_unknown_one_has_none() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        id = await caller.start()
        reader = read(caller, id)
        await caller.until(id, "running")
        await asyncio.sleep(0)
        await caller.http.delete(f"/v1/jobs/{id}")
        assert error_in(await reader) == "NOT_FOUND"
        assert (await read(caller, id)).status_code == 404

    play(story)


@pytest.mark.parametrize("query", ["stream=yes", "stream=", "stream=true&stream=true"])
def test_stream_is_true_or_false_and_given_once(query: str) -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        response = await caller.http.get(f"/v1/jobs/{await caller.start()}?{query}")
        assert (response.status_code, error_of(response)["param"]) == (400, "stream")

    play(story)


def test_previews_are_made_for_a_job_and_not_for_an_edit_that_could_not_show_them() -> None:
    async def story(editor: Gated) -> None:
        editor.gate.set()
        caller = JobCaller(editor)
        id = (await caller.post(partial_images="3")).json()["id"]
        await caller.until(id, "succeeded")
        assert editor.requests[0].partial_images == 3
        refused = await caller.post(query="", partial_images="3")
        assert (refused.status_code, error_of(refused)["param"]) == (400, "partial_images")
        # The events of a job are on another address.
        refused = await caller.post(stream="true", partial_images="3")
        assert (refused.status_code, error_of(refused)["param"]) == (400, "stream")

    play(story)
