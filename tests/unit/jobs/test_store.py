"""Jobs over the application and a small editor: states, bounds, errors, and their next process.

No Ray, no model.
"""

import asyncio
import base64
import gc
import io
import weakref
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from serve_app.api.keys import ApiKey
from serve_app.errors import InvalidInput, OutOfMemory, Overloaded
from serve_app.events import Completed, Event, Progress
from serve_app.jobs.job import GROUP
from serve_app.request import EditRequest
from serve_app.store.leases import BEAT_S
from tests.editors import Gated
from tests.http_calls import PATIENCE_S, JobCaller, error_of, play, until
from tests.pictures import file_of, mask_png, pixels_of, png
from tests.stores import Line, SharedStore


def test_a_job_has_its_place_its_steps_and_its_result() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        response = await caller.post(values=(10, 20), n="2", seed="7")
        job = response.json()
        assert response.status_code == 202
        assert (job["object"], job["status"], job["place"]) == ("image_edit.job", "queued", 2)
        assert (job["steps_done"], job["steps"], job["result"], job["error"]) == (0, 4, None, None)
        running = await caller.until(job["id"], "running")
        assert (running["place"], running["steps_done"], running["expires_at"]) == (0, 1, None)
        editor.gate.set()
        ended = await caller.until(job["id"], "succeeded", "failed")
        assert ended["error"] is None
        assert ended["expires_at"] - ended["created_at"] >= 3600
        now = (await caller.post(query="", values=(10, 20), n="2", seed="7")).json()
        # The editor yields the last output first; the answer has them in the order of the contract.
        assert list(ended["result"]) == list(now)
        assert ended["result"]["data"] == now["data"]
        for usage in (ended["result"]["usage"], now["usage"]):
            assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (14, 32, 46)
        assert [pixels_of(item)[3, 4, 0] for item in now["data"]] == [245, 245, 235, 235]
        assert (await caller.get(job["id"])).json()["result"] == ended["result"]

    play(story)


def test_an_edit_that_fails_is_a_job_that_failed() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        editor.gate.set()
        editor.middle_error = OutOfMemory("CUDA out of memory")
        job = await caller.until(await caller.start(), "succeeded", "failed")
        assert (job["status"], job["result"]) == ("failed", None)
        assert job["error"]["code"] == "GENERATION_ERROR"
        assert job["error"]["message"] == "Image generation failed: CUDA out of memory"
        # An unexpected error is not shown to the caller.
        editor.middle_error = ValueError("/secret/path")
        job = await caller.until(await caller.start(), "failed")
        assert job["error"]["message"] == "Image generation failed: internal error"

    play(story)


def test_what_refuses_an_edit_refuses_its_job_and_takes_no_place() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor, max_jobs=1)
        editor.error = InvalidInput("size: too large", param="size")
        response = await caller.post()
        assert (response.status_code, error_of(response)["param"]) == (400, "size")
        assert (await caller.post(n="eleven")).status_code == 400
        editor.error = None
        await caller.start()

    play(story)


@pytest.mark.parametrize("query", ["async=yes", "async=", "async=true&async=true"])
def test_async_is_true_or_false_and_given_once(query: str) -> None:
    async def story(editor: Gated) -> None:
        response = await JobCaller(editor).post(query=query)
        assert (response.status_code, error_of(response)["param"]) == (400, "async")

    play(story)


def test_a_job_is_not_streamed() -> None:
    async def story(editor: Gated) -> None:
        response = await JobCaller(editor).post(stream="true")
        assert (response.status_code, error_of(response)["param"]) == (400, "stream")

    play(story)


def test_a_deleted_job_ends_its_work_and_is_forgotten() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        id = await caller.start(seed="31")
        await caller.until(id, "running")
        response = await caller.http.delete(f"/v1/jobs/{id}")
        assert response.json() == {"id": id, "object": "image_edit.job", "deleted": True}
        await until(lambda: editor.closed == [31])
        for method in ("GET", "DELETE"):
            again = await caller.http.request(method, f"/v1/jobs/{id}")
            assert (again.status_code, error_of(again)["code"]) == (404, "NOT_FOUND")

    play(story)


def test_an_ended_job_is_forgotten_after_its_time() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor, ttl_s=2)
        editor.gate.set()
        id = await caller.start()
        await caller.until(id, "succeeded")
        caller.shared.clock.now_s += 3
        assert "for 2 s" in error_of(await caller.until_gone(id))["message"]

    play(story)


def test_no_more_jobs_are_kept_than_allowed_and_those_that_run_are_never_dropped() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor, max_jobs=2)
        editor.gate.set()
        first = await caller.start(seed="1")
        await caller.until(first, "succeeded")
        second = await caller.start(seed="2")
        await caller.until(second, "succeeded")
        editor.gate.clear()
        # Each new one takes the place of the oldest that has ended.
        third = await caller.start(seed="3")
        assert [(await caller.get(id)).status_code for id in (first, second)] == [404, 200]
        fourth = await caller.start(seed="4")
        assert (await caller.get(second)).status_code == 404
        refused = await caller.post()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "OVERLOADED")
        assert int(refused.headers["retry-after"]) >= 1
        for id in (third, fourth):
            await caller.until(id, "running")
        assert editor.closed == []

    play(story)


def test_the_pictures_of_open_jobs_are_bounded_together_and_one_alone_is_taken() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor, max_open_bytes=1)
        first = await caller.start()
        refused = await caller.post()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "OVERLOADED")
        assert int(refused.headers["retry-after"]) >= 1
        editor.gate.set()
        await caller.until(first, "succeeded")
        # The pictures of an ended job are not held.
        await caller.until(await caller.start(), "succeeded")

    play(story)


def test_old_results_make_room_for_new_ones() -> None:
    async def story(editor: Gated) -> None:
        editor.gate.set()
        without = JobCaller(editor)
        [item] = (await without.until(await without.start(), "succeeded"))["result"]["data"]
        size = len(base64.b64decode(item["b64_json"]))
        caller, ids = JobCaller(editor, max_result_bytes=5 * size // 2), []
        for _ in range(4):
            ids.append(await caller.start())
            await caller.until(ids[-1], "succeeded")
        assert [(await caller.get(id)).status_code for id in ids] == [404, 404, 200, 200]

    play(story)


def test_the_newest_result_is_kept_whatever_its_size() -> None:
    async def story(editor: Gated) -> None:
        editor.gate.set()
        caller = JobCaller(editor, max_result_bytes=1)
        first = await caller.start()
        await caller.until(first, "succeeded")
        await caller.until(await caller.start(), "succeeded")
        assert (await caller.get(first)).status_code == 404

    play(story)


def test_what_has_ended_keeps_its_result_and_not_its_pictures() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        editor.gate.set()
        id = await caller.start()
        await caller.until(id, "succeeded")
        kept = weakref.ref(editor.requests.pop().images[0])
        editor.begun.clear()
        # The thread that encoded a picture may still hold it for a moment.
        async with asyncio.timeout(PATIENCE_S):
            while kept() is not None:
                await asyncio.sleep(0.01)
                gc.collect()
        assert (await caller.get(id)).json()["status"] == "succeeded"
        # Nor the form, of which no later process needs to know.
        assert [name.partition("/")[2] for name in caller.shared.blobs.names] == ["0-0.png"]

    play(story)


# ---- whose they are ----


def test_a_job_is_its_callers_in_every_process_and_unknown_to_others(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{ApiKey.of(name, name).line}\n" for name in ("ann", "bob")))

    async def check_owner(caller: JobCaller, id: str) -> None:
        caller.use_key("bob")
        unknown = await caller.get("unknown")
        for method in ("GET", "DELETE"):
            refused = await caller.http.request(method, f"/v1/jobs/{id}")
            assert (refused.status_code, refused.content) == (404, unknown.content)
        caller.use_key("ann")
        assert (await caller.get(id)).json()["id"] == id

    async def story(editor: Gated) -> None:
        shared = SharedStore()
        first, second, third = (JobCaller(editor, shared, keys) for _ in range(3))
        first.use_key("ann")
        id = await first.start()
        await check_owner(first, id)
        await check_owner(second, id)
        editor.gate.set()
        second.use_key("ann")
        await second.until(id, "succeeded")
        await check_owner(third, id)
        # Of a server whose keys were taken away.
        assert (await JobCaller(editor, shared).get(id)).status_code == 404
        fourth = JobCaller(editor, shared, keys)
        fourth.use_key("ann")
        assert (await fourth.http.delete(f"/v1/jobs/{id}")).json()["deleted"] is True

    play(story)


# ---- several processes, and those that die ----


def test_every_process_shows_a_job_and_each_may_delete_it() -> None:
    async def story(editor: Gated) -> None:
        shared = SharedStore()
        runs, other = (JobCaller(editor, shared) for _ in range(2))
        id = await runs.start(seed="31")
        assert (await other.until(id, "running"))["steps_done"] == 1
        assert (await other.http.delete(f"/v1/jobs/{id}")).json()["deleted"] is True
        assert (await runs.get(id)).status_code == 404
        await until(lambda: editor.closed == [31])
        # Nor does it begin again, as a job does that the store has lost.
        await asyncio.sleep(2 * BEAT_S)
        assert (await other.get(id)).status_code == 404
        assert len(editor.begun) == 1
        await runs.jobs._leases.sweep()
        assert shared.blobs.names == []

    play(story)


def test_an_open_job_goes_on_in_another_process_with_its_seed_to_the_same_result() -> None:
    async def story(editor: Gated) -> None:
        shared = SharedStore()
        before, after = JobCaller(editor, shared), JobCaller(editor, shared)
        response = await before.post(values=(10, 20), n="2", output_format="webp", output_compression="90")
        id = response.json()["id"]
        await before.until(id, "running")
        await after.after(before)
        assert (await after.get(id)).json()["created_at"] == response.json()["created_at"]
        editor.gate.set()
        ended = await after.until(id, "succeeded", "failed")
        assert ended["error"] is None
        first, again = editor.begun
        assert (first.seed, first.prompt, first.n) == (again.seed, again.prompt, again.n)
        same = {"n": "2", "output_format": "webp", "output_compression": "90", "seed": str(first.seed)}
        now = (await after.post("", (10, 20), **same)).json()
        assert ended["result"]["data"] == now["data"]

    play(story)


def test_a_job_goes_on_with_its_mask_its_references_and_its_transparency() -> None:
    async def story(editor: Gated) -> None:
        shared, changes = SharedStore(), np.eye(8, dtype=bool)
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
        before, after = JobCaller(editor, shared), JobCaller(editor, shared)
        files = [
            ("images", ("a.png", file_of(PIL.Image.fromarray(pixels), "PNG"))),
            ("mask", ("b.png", mask_png(changes))),
            ("references", ("c.png", png(40))),
            ("references", ("d.png", png(50))),
        ]
        response = await before.http.post("/v1/images/edits?async=true", files=files, data={"prompt": "invert"})
        id = response.json()["id"]
        await before.until(id, "running")
        await after.after(before)
        editor.gate.set()
        ended = await after.until(id, "succeeded", "failed")
        for request in editor.begun:
            np.testing.assert_array_equal(request.images[0], pixels)
            np.testing.assert_array_equal(request.mask[0], changes)
            assert [reference[0, 0, 0] for reference in request.references[0]] == [40, 50]
        assert len(editor.begun) == 2
        with PIL.Image.open(io.BytesIO(base64.b64decode(ended["result"]["data"][0]["b64_json"]))) as image:
            assert image.mode == "RGBA"

    play(story)


def test_a_job_that_another_process_has_taken_over_has_one_end() -> None:
    async def story(editor: Gated) -> None:
        shared = SharedStore()
        before, after = JobCaller(editor, shared), JobCaller(editor, shared)
        id = await before.start(seed="31")
        await before.until(id, "running")
        # It lives, and could not renew its lease in time.
        before.jobs._leases.stop()
        await after.after()
        await after.until(id, "running")
        await until(lambda: len(editor.begun) == 2)
        editor.gate.set()
        ended = await after.until(id, "succeeded")
        record = await shared.records.get(GROUP, id)
        await until(lambda: not before.jobs._running)
        again = await shared.records.get(GROUP, id)
        assert record is not None
        assert again is not None
        assert again.version == record.version
        assert (await before.get(id)).json() == ended

    play(story)


def test_a_process_that_has_lost_its_job_leaves_the_pictures_of_the_other_as_they_are() -> None:
    async def story(first: Gated) -> None:
        second, shared = Gated(), SharedStore()
        before, after = JobCaller(first, shared), JobCaller(second, shared)
        id = await before.start(seed="31")
        await before.until(id, "running")
        before.jobs._leases.stop()
        await after.after()
        second.gate.set()
        ended = await after.until(id, "succeeded", "failed")
        assert ended["error"] is None
        # A job that fails deletes what it has stored.
        first.middle_error = OutOfMemory("CUDA out of memory")
        first.gate.set()
        await until(lambda: not before.jobs._running)
        assert (await after.get(id)).json() == ended

    play(story)


def test_a_process_that_ends_in_order_hands_its_jobs_over_at_once() -> None:
    async def story(editor: Gated) -> None:
        shared = SharedStore()
        before, after = JobCaller(editor, shared), JobCaller(editor, shared)
        id = await before.start()
        await before.until(id, "running")
        await before.jobs.hand_over()
        after.sweeper.start()
        editor.gate.set()
        assert (await after.until(id, "succeeded", "failed"))["error"] is None

    play(story)


def test_what_has_ended_is_kept_for_the_rest_of_its_time() -> None:
    async def story(editor: Gated) -> None:
        shared = SharedStore()
        before = JobCaller(editor, shared, ttl_s=400)
        editor.gate.set()
        succeeded = await before.until(await before.start(), "succeeded")
        editor.middle_error = OutOfMemory("CUDA out of memory")
        failed = await before.until(await before.start(), "failed")
        after = await JobCaller(editor, shared, ttl_s=400).after(before)
        shared.clock.now_s += 300
        for job in (succeeded, failed):
            assert (await after.get(job["id"])).json() == job
        assert len(editor.requests) == 1
        shared.clock.now_s += 100
        for job in (succeeded, failed):
            assert (await after.get(job["id"])).status_code == 404
        await after.jobs._leases.sweep()
        assert shared.blobs.names == []

    play(story)


def test_a_deleted_job_is_not_begun_again() -> None:
    async def story(editor: Gated) -> None:
        shared = SharedStore()
        before = JobCaller(editor, shared)
        id = await before.start()
        await before.http.delete(f"/v1/jobs/{id}")
        after = await JobCaller(editor, shared).after(before)
        await after.jobs._leases.sweep()
        assert (await after.get(id)).status_code == 404
        assert (len(editor.begun), len(editor.closed)) == (1, 1)
        assert shared.blobs.names == []

    play(story)


class Hesitant(Gated):
    """Accepts once its gate is open."""

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        self.begun.append(request)
        await self.gate.wait()
        yield Progress(0, 4, place=2)


def test_a_job_whose_caller_got_no_answer_is_not_begun_again() -> None:
    async def story() -> None:
        editor, shared = Hesitant(), SharedStore()
        before = JobCaller(editor, shared)
        asking = asyncio.create_task(before.post())
        await until(lambda: len(editor.begun) == 1)
        await JobCaller(editor, shared).after(before)
        await asyncio.sleep(0.05)
        assert len(editor.begun) == 1
        assert (await shared.records.sweep(GROUP)).overdue == []
        asking.cancel()

    asyncio.run(story())


@pytest.mark.parametrize("notices", ["at the next renewal", "when it is accepted"])
def test_a_caller_whose_job_is_lost_before_it_is_accepted_is_told_to_send_it_again(notices: str) -> None:
    async def story() -> None:
        editor, shared = Hesitant(), SharedStore()
        caller = JobCaller(editor, shared)
        asking = asyncio.create_task(caller.post())
        await until(lambda: len(editor.begun) == 1)
        if notices == "when it is accepted":
            caller.jobs._leases.stop()
        # As another process does with a job whose lease is over.
        [id] = shared.records.records._group(GROUP).open
        await shared.records.drop(GROUP, id)
        if notices == "when it is accepted":
            editor.gate.set()
        refused = await asyncio.wait_for(asking, PATIENCE_S)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "STORE_UNAVAILABLE")
        assert int(refused.headers["retry-after"]) >= 1
        await until(lambda: not caller.jobs._running)
        await caller.jobs.sweep()
        assert shared.blobs.names == []

    asyncio.run(story())


def test_where_there_is_no_room_yet_a_kept_job_waits() -> None:
    async def story(editor: Gated) -> None:
        shared = SharedStore()
        before, after = JobCaller(editor, shared), JobCaller(editor, shared)
        id = await before.start()
        editor.error = Overloaded("full", retry_after_s=1)
        await after.after(before)
        await after.until(id, "queued")
        await asyncio.sleep(0.1)
        editor.error = None
        editor.gate.set()
        assert (await after.until(id, "succeeded", "failed"))["error"] is None

    play(story)


def test_a_job_that_is_open_whenever_its_process_ends_fails_in_the_end() -> None:
    async def story(editor: Gated) -> None:
        shared = SharedStore()
        last = JobCaller(editor, shared)
        id = await last.start()
        for starts in range(2, 7):
            former, last = last, JobCaller(editor, shared)
            await last.after(former)
            await until(partial(lambda starts: len(editor.begun) == starts, starts))
        job = await (await JobCaller(editor, shared).after(last)).until(id, "failed")
        assert job["error"]["message"] == "Image generation failed: the process that kept its job ended, 6 times"
        assert len(editor.begun) == 6

    play(story)


def test_a_form_that_this_version_cannot_read_is_a_job_that_failed() -> None:
    async def story(editor: Gated) -> None:
        shared = SharedStore()
        before = JobCaller(editor, shared)
        id = await before.start()
        [form] = [name for name in shared.blobs.names if name.endswith("/form")]
        await shared.blobs.put(form, b"something else")
        job = await (await JobCaller(editor, shared).after(before)).until(id, "failed")
        assert "the server was updated" in job["error"]["message"]
        assert shared.blobs.names == []

    play(story)


def test_a_store_that_has_lost_everything_gets_back_what_runs() -> None:
    async def story(editor: Gated) -> None:
        shared = SharedStore()
        caller = JobCaller(editor, shared)
        id = await caller.start()
        await caller.until(id, "running")
        shared.forget()
        assert (await caller.get(id)).status_code == 404
        await until(lambda: len(editor.begun) == 2)
        # Even if its process dies now.
        after = await JobCaller(editor, shared).after(caller)
        editor.gate.set()
        assert (await after.until(id, "succeeded", "failed"))["error"] is None

    play(story)


def test_a_result_that_the_store_has_lost_is_not_found() -> None:
    async def story(editor: Gated) -> None:
        editor.gate.set()
        caller = JobCaller(editor)
        id = await caller.start()
        await caller.until(id, "succeeded")
        caller.shared.forget()
        assert (await caller.get(id)).status_code == 404

    play(story)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_process_may_die_at_any_call_and_each_accepted_job_has_one_right_end(after: bool) -> None:
    async def reference() -> tuple[int, list[str]]:
        """Return how many calls a job makes, and its pictures."""
        editor, shared, line = Gated(), SharedStore(), Line()
        editor.gate.set()
        caller = JobCaller(editor, shared, line=line)
        id = (await caller.post(values=(10, 20), seed="3")).json()["id"]
        # Asked by another process, so that these calls are not counted.
        job = await JobCaller(editor, shared).until(id, "succeeded")
        await until(lambda: not caller.jobs._running)
        return line.calls, [item["b64_json"] for item in job["result"]["data"]]

    async def story(dies_at: int, pictures: list[str]) -> bool:
        """Return whether the job was accepted."""
        editor, shared, line = Gated(), SharedStore(), Line(dies_at, after=after)
        editor.gate.set()
        caller = JobCaller(editor, shared, line=line)
        asking = asyncio.create_task(caller.post(values=(10, 20), seed="3"))
        await asyncio.wait_for(line.dead.wait(), PATIENCE_S)
        for _ in range(20):
            await asyncio.sleep(0)
        accepted = asking.done()
        survivor = await JobCaller(editor, shared).after(caller)
        if accepted:
            job = await survivor.until(asking.result().json()["id"], "succeeded", "failed")
            assert [item["b64_json"] for item in job["result"]["data"]] == pictures
        asking.cancel()
        group = shared.records.records._group(GROUP)
        await until(lambda: not group.open)
        await survivor.jobs._leases.sweep()
        # The pictures alone. A form may stay until the job is over. A job that was accepted a moment before its process
        # died has an end too, though its caller does not know of it.
        left = [name.partition("/")[2] for name in shared.blobs.names if not name.endswith("/form")]
        assert sorted(left) == (["0-0.png", "1-0.png"] if group.ended else [])
        assert bool(group.ended) >= accepted
        shared.clock.now_s += 10_000
        await survivor.jobs._leases.sweep()
        assert shared.blobs.names == []
        return accepted

    async def all_stories() -> None:
        calls, pictures = await reference()
        accepted = [await story(dies_at, pictures) for dies_at in range(1, calls + 1)]
        assert set(accepted) == {True, False}

    asyncio.run(all_stories())


def test_a_job_that_is_accepted_survives_any_call_to_the_store_that_fails() -> None:
    async def run(fails_at: int | None) -> int:
        """Return how many calls were made. The first four accept the job, or refuse it."""
        editor, shared, line = Gated(), SharedStore(), Line(fails_at=fails_at)
        editor.gate.set()
        caller, other = JobCaller(editor, shared, line=line), JobCaller(editor, shared)
        response = await caller.post(values=(10, 20), seed="3")
        if fails_at is not None and fails_at <= 4:
            assert response.status_code == 503
        else:
            job = await other.until(response.json()["id"], "succeeded", "failed")
            assert job["error"] is None
            assert len(editor.begun) == 1
        await until(lambda: not caller.jobs._running)
        assert not shared.records.records._group(GROUP).open
        return line.calls

    async def all_calls() -> None:
        for fails_at in range(1, 1 + await run(None)):
            await run(fails_at)

    asyncio.run(all_calls())


def test_a_picture_that_is_done_after_its_job_was_deleted_elsewhere_is_not_left_behind() -> None:
    class Halting(Gated):
        """Halts after its first output."""

        async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
            async for event in super().edit_stream(request):
                yield event
                if isinstance(event, Completed):
                    await asyncio.Event().wait()

    async def story() -> None:
        editor, shared = Halting(), SharedStore()
        runs, other = (JobCaller(editor, shared) for _ in range(2))
        id = (await runs.post(values=(10, 20))).json()["id"]
        await runs.until(id, "running")
        await other.http.delete(f"/v1/jobs/{id}")
        await other.jobs.sweep()
        assert shared.blobs.names == []
        editor.gate.set()
        await until(lambda: shared.blobs.names != [])
        await until(lambda: not runs.jobs._running)
        assert shared.blobs.names == []

    asyncio.run(story())


def test_a_job_waits_for_a_store_that_is_away_and_loses_nothing() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        id = await caller.start()
        await caller.until(id, "running")
        caller.shared.line.is_cut = True
        refused = await caller.get(id)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "STORE_UNAVAILABLE")
        refused = await caller.post()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "STORE_UNAVAILABLE")
        assert int(refused.headers["retry-after"]) >= 1
        # Edits that need no store go on.
        assert (await caller.post(query="")).status_code == 200
        editor.gate.set()
        await asyncio.sleep(1)
        caller.shared.line.is_cut = False
        assert (await caller.until(id, "succeeded", "failed"))["error"] is None
        assert len(editor.begun) == 1

    play(story)


def test_health_says_that_the_store_is_away() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        caller.sweeper.start()
        await asyncio.sleep(0)
        assert (await caller.http.get("/health")).json() == {"status": "ready"}
        caller.shared.line.is_cut = True
        async with asyncio.timeout(PATIENCE_S):
            while True:
                health = await caller.http.get("/health")
                if health.json() == {"status": "ready", "store": "unreachable"}:
                    break
                await asyncio.sleep(0.05)
        assert health.status_code == 200

    play(story)
