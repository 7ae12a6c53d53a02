"""Jobs over the application and a small editor: states, bounds, errors, and their next process.

No Ray, no model.
"""

import asyncio
import base64
import gc
import io
import weakref
from pathlib import Path

import numpy as np
import orjson
import PIL.Image
import pytest

from serve_app.api.keys import ApiKey
from serve_app.errors import InvalidInput, OutOfMemory, Overloaded
from serve_app.forms.form import EditForm
from serve_app.jobs.vault import MemoryVault, Superseded
from serve_app.request import EditRequest
from tests.editors import Gated
from tests.http_calls import PATIENCE_S, JobCaller, error_of, play
from tests.pictures import file_of, mask_png, pixels_of
from tests.scenes import scene


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
        await asyncio.sleep(0)
        assert editor.closed == [31]
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
        assert [(await caller.get(id)).json()["status"] for id in (third, fourth)] == ["running"] * 2
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
        size = len(orjson.dumps((await without.until(await without.start(), "succeeded"))["result"]))
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


def test_the_same_id_again_gets_the_same_job() -> None:
    async def story(editor: Gated) -> None:
        store = JobCaller(editor).store
        form = EditForm(EditRequest(images=[scene(1)], prompt="x", seed=5), "png", 100, None, False)
        first, again = await store.create(form, "1234"), await store.create(form, "1234")
        other = await store.create(form)
        assert (first.id, again.id) == ("1234", "1234") != (other.id, other.id)
        assert editor.begun == 2
        await store.delete("1234", None)
        await store.delete(other.id, None)
        await asyncio.sleep(0)
        assert editor.closed == [5, 5]

    play(story)


def test_what_has_ended_keeps_its_result_and_not_its_pictures() -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        editor.gate.set()
        form = EditForm(EditRequest(images=[scene(1)], prompt="x"), "png", 100, None, False)
        kept = weakref.ref(form.request.images[0])
        view = await caller.store.create(form)
        await caller.until(view.id, "succeeded")
        editor.requests.clear()
        del form
        # The thread that encoded a picture may still hold it for a moment.
        async with asyncio.timeout(PATIENCE_S):
            while kept() is not None:
                await asyncio.sleep(0.01)
                gc.collect()
        assert (await caller.get(view.id)).json()["status"] == "succeeded"

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
        vault = MemoryVault()
        first, second, third = (JobCaller(editor, vault, keys) for _ in range(3))
        first.use_key("ann")
        id = await first.start()
        await check_owner(first, id)
        await check_owner(second, id)
        editor.gate.set()
        await second.until(id, "succeeded")
        await check_owner(third, id)
        # Of a server whose keys were taken away.
        assert (await JobCaller(editor, vault).get(id)).status_code == 404
        fourth = JobCaller(editor, vault, keys)
        fourth.use_key("ann")
        assert (await fourth.http.delete(f"/v1/jobs/{id}")).json()["deleted"] is True

    play(story)


# ---- the process that keeps them is replaced ----


def test_an_open_job_goes_on_in_the_next_process_with_its_seed_to_the_same_result() -> None:
    async def story(editor: Gated) -> None:
        vault = MemoryVault()
        before = JobCaller(editor, vault)
        response = await before.post(values=(10, 20), n="2", output_format="webp", output_compression="90")
        id = response.json()["id"]
        await before.until(id, "running")
        after = JobCaller(editor, vault)
        queued = (await after.get(id)).json()
        assert (queued["id"], queued["steps"], queued["created_at"]) == (id, 4, response.json()["created_at"])
        editor.gate.set()
        ended = await after.until(id, "succeeded", "failed")
        assert ended["error"] is None
        first, again = editor.requests
        assert (first.seed, first.prompt, first.n) == (again.seed, again.prompt, again.n)
        same = {"n": "2", "output_format": "webp", "output_compression": "90", "seed": str(first.seed)}
        now = (await after.post("", (10, 20), **same)).json()
        assert ended["result"]["data"] == now["data"]

    play(story)


def test_a_job_goes_on_in_the_next_process_with_its_mask_and_its_transparency() -> None:
    async def story(editor: Gated) -> None:
        vault, changes = MemoryVault(), np.eye(8, dtype=bool)
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
        before = JobCaller(editor, vault)
        files = {
            "images": ("a.png", file_of(PIL.Image.fromarray(pixels), "PNG")),
            "mask": ("b.png", mask_png(changes)),
        }
        response = await before.http.post("/v1/images/edits?async=true", files=files, data={"prompt": "invert"})
        id = response.json()["id"]
        await before.until(id, "running")
        after = JobCaller(editor, vault)
        await after.get(id)
        editor.gate.set()
        ended = await after.until(id, "succeeded", "failed")
        for request in editor.requests:
            np.testing.assert_array_equal(request.images[0], pixels)
            np.testing.assert_array_equal(request.mask[0], changes)
        assert len(editor.requests) == 2
        with PIL.Image.open(io.BytesIO(base64.b64decode(ended["result"]["data"][0]["b64_json"]))) as image:
            assert image.mode == "RGBA"

    play(story)


def test_of_two_processes_only_the_later_one_reports_the_end() -> None:
    async def story(editor: Gated) -> None:
        vault = MemoryVault()
        before, after = JobCaller(editor, vault), JobCaller(editor, vault)
        id = await before.start()
        await before.until(id, "running")
        await after.until(id, "running")
        before.store.check_health()
        editor.gate.set()
        await after.until(id, "succeeded")
        # The former process still runs it; its result is discarded, and its answers ask to try again.
        refused = await before.until_gone(id)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "NOT_READY")
        editor.gate.clear()
        refused = await before.post(seed="9")
        assert (refused.status_code, error_of(refused)["code"]) == (503, "NOT_READY")
        assert editor.closed == [9]
        with pytest.raises(Superseded):
            before.store.check_health()
        assert (await after.get(id)).json()["status"] == "succeeded"

    play(story)


def test_what_has_ended_is_kept_by_the_next_process_for_the_rest_of_its_time() -> None:
    async def story(editor: Gated) -> None:
        vault = MemoryVault()
        before = JobCaller(editor, vault, ttl_s=4)
        editor.gate.set()
        succeeded = await before.until(await before.start(), "succeeded")
        editor.middle_error = OutOfMemory("CUDA out of memory")
        failed = await before.until(await before.start(), "failed")
        after = JobCaller(editor, vault, ttl_s=4)
        for job in (succeeded, failed):
            assert (await after.get(job["id"])).json() == job
        assert len(editor.requests) == 1
        assert (await after.until_gone(succeeded["id"])).status_code == 404
        await after.until_gone(failed["id"])
        # Each is dropped at the moment at which it becomes 404, or shortly after.
        await asyncio.sleep(0.1)
        assert await vault.take_over("test") == {}

    play(story)


def test_bounds_hold_in_the_next_process_too() -> None:
    async def story(editor: Gated) -> None:
        vault = MemoryVault()
        before, ids = JobCaller(editor, vault), []
        editor.gate.set()
        for _ in range(3):
            ids.append(await before.start())
            await before.until(ids[-1], "succeeded")
        after = JobCaller(editor, vault, max_result_bytes=1)
        assert [(await after.get(id)).status_code for id in ids] == [404, 404, 200]

    play(story)


def test_a_deleted_job_is_not_begun_again() -> None:
    async def story(editor: Gated) -> None:
        vault = MemoryVault()
        before = JobCaller(editor, vault)
        id = await before.start()
        await before.http.delete(f"/v1/jobs/{id}")
        after = JobCaller(editor, vault)
        assert (await after.get(id)).status_code == 404
        assert len(editor.closed) == 1

    play(story)


def test_where_there_is_no_room_yet_a_kept_job_waits() -> None:
    async def story(editor: Gated) -> None:
        vault = MemoryVault()
        id = await JobCaller(editor, vault).start()
        editor.error = Overloaded("full", retry_after_s=1)
        after = JobCaller(editor, vault)
        assert (await after.get(id)).json()["status"] == "queued"
        await asyncio.sleep(0.1)
        editor.error = None
        editor.gate.set()
        assert (await after.until(id, "succeeded", "failed"))["error"] is None

    play(story)


def test_a_job_that_is_open_whenever_its_process_ends_fails_in_the_end() -> None:
    async def story(editor: Gated) -> None:
        vault = MemoryVault()
        id = await JobCaller(editor, vault).start()
        for _ in range(5):
            await JobCaller(editor, vault).until(id, "running")
        last = JobCaller(editor, vault)
        job = await last.until(id, "failed")
        assert job["error"]["message"] == "Image generation failed: the process that kept its job ended, 6 times"

    play(story)


def test_a_form_that_this_version_cannot_read_is_a_job_that_failed() -> None:
    async def story(editor: Gated) -> None:
        vault = MemoryVault()
        id = await JobCaller(editor, vault).start()
        states = await vault.take_over("an older version")
        await vault.put("an older version", id, states[id], b"something else")
        job = await JobCaller(editor, vault).until(id, "failed")
        assert "the server was updated" in job["error"]["message"]

    play(story)


def test_a_result_that_the_vault_has_lost_is_not_found() -> None:
    async def story(editor: Gated) -> None:
        vault = MemoryVault()
        editor.gate.set()
        caller = JobCaller(editor, vault)
        id = await caller.start()
        await caller.until(id, "succeeded")
        vault._records.clear()
        assert (await caller.get(id)).status_code == 404

    play(story)
