"""Jobs on a real cluster: the same pictures as without a job, deleting one frees the engine; and their store."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest
import ray
import requests

from serve_app.deployments.store import in_actor
from serve_app.store.records import Bounds, Change, Conflict
from tests.cluster.client import TIMEOUT_S, picture_of, pictures_of, png
from tests.cluster.conftest import Served
from tests.scenes import difference, scene
from tests.waiting import wait_until


def start(served: Served, **data: Any) -> str:
    """Create a job and return its URL."""
    files = [("images", (f"{k}.png", png(scene(k)), "image/png")) for k in (1, 2)]
    url = f"{served.client.base}/v1/images/edits?async=true"
    response = requests.post(url, files=files, data={"prompt": "make the sky blue", **data}, timeout=TIMEOUT_S)
    assert response.status_code == 202, response.text
    assert response.json()["steps"] == 2 * data["num_inference_steps"]
    return served.client.base + response.headers["Location"]


def test_a_job_has_the_pictures_of_the_same_edit_without_one(served: Served):
    options: dict[str, Any] = {"seed": 3, "num_inference_steps": 4}
    job = start(served, **options)
    deadline_s = time.monotonic() + TIMEOUT_S
    while (state := requests.get(job, timeout=TIMEOUT_S).json())["status"] in ("queued", "running"):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert (state["status"], state["error"], state["steps_done"]) == ("succeeded", None, 8)
    now = pictures_of(served.client.edit([scene(1), scene(2)], prompt="make the sky blue", **options))
    later = [picture_of(item) for item in state["result"]["data"]]
    assert len(later) == 2
    assert all(difference(one, other) <= 1 for one, other in zip(later, now, strict=True))
    assert np.abs(later[0].astype(int) - later[1]).max() > 10


def test_the_events_of_a_job_can_be_left_and_read_again(served: Served):
    job = start(served, num_inference_steps=60, partial_images=2)
    with requests.get(f"{job}?stream=true", stream=True, timeout=TIMEOUT_S) as left:
        assert next(left.iter_lines()) == b"event: image_edit.progress"
    events = requests.get(f"{job}?stream=true", timeout=TIMEOUT_S).text
    assert events.endswith("data: [DONE]\n\n")
    kinds = [line.partition(": ")[2] for line in events.splitlines() if line.startswith("event: ")]
    assert kinds.count("image_edit.completed") == 2
    assert {"image_edit.progress", "image_edit.partial_image"} < set(kinds)
    assert kinds[-1] == "image_edit.done"
    assert requests.get(job, timeout=TIMEOUT_S).json()["status"] == "succeeded"


def test_a_deleted_job_frees_its_samples(served: Served):
    before = served.stats()
    job = start(served, num_inference_steps=150)
    wait_until(lambda: requests.get(job, timeout=TIMEOUT_S).json()["status"] == "running", "the job runs")
    assert requests.delete(job, timeout=TIMEOUT_S).json()["deleted"] is True
    wait_until(lambda: served.stats().cancelled == before.cancelled + 1, "the request leaves")
    assert requests.get(job, timeout=TIMEOUT_S).status_code == 404


def store_is_there(app: str) -> bool:
    try:
        ray.get_actor(f"{app}-store-3", namespace="image-edits")
    except ValueError:
        return False
    return True


def change(id: str, value: bytes = b"note") -> Change:
    return Change(id, "folder", 0, is_open=True, value=value, keep_s=60.0, size=0)


def test_a_store_in_memory_is_found_by_name_and_ends_without_calls(cluster: int):
    bounds = Bounds(10, 10, 10)

    async def story() -> None:
        first, second = (in_actor("deleted", idle_s=2.0) for _ in range(2))
        await first.records.put("jobs", [change("a")], bounds)
        await first.blobs.put("folder/form", b"form" * 2**20)
        found = await second.records.get("jobs", "a")
        assert found is not None
        assert found.value == b"note"
        assert await second.blobs.get("folder/form") == b"form" * 2**20
        [refused] = await second.records.put("jobs", [change("a", b"other")], bounds)
        assert isinstance(refused, Conflict)
        with pytest.raises(KeyError):
            await second.blobs.get("folder/other")
        for _ in range(6):
            await asyncio.sleep(1)
            await second.records.sweep("jobs")
        assert store_is_there("deleted")

    asyncio.run(story())
    wait_until(lambda: not store_is_there("deleted"), "the store ends itself")


def test_the_stores_of_two_applications_are_two(cluster: int):
    async def story() -> None:
        one, other = in_actor("one", idle_s=2.0), in_actor("other", idle_s=2.0)
        await one.records.put("jobs", [change("a")], Bounds(10, 10, 10))
        assert await other.records.get("jobs", "a") is None
        assert await one.records.epoch() != await other.records.epoch()

    asyncio.run(story())
