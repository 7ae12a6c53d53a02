"""Replicas that die under their edits: each edit is answered all the same, with its own pictures or one clear error."""

import asyncio
import json
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import requests
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.editor_handle import EditorHandle
from serve_app.errors import GenerationError
from serve_app.request import EditResult
from serve_app.settings import ModelSettings
from tests import processes
from tests.cluster.client import picture_of, pictures_of, png
from tests.cluster.conftest import MORTAL, MORTAL_SETTINGS, Served, deploy_mortal
from tests.cluster.fragile import LOSE_ONCE, POISON, POISON_ONCE, FragileEditor
from tests.cluster.scrape import Scrape
from tests.fakes import edit_request
from tests.scenes import difference, scene
from tests.waiting import wait_until

_RETRIES = "ray_image_edits_retries_total"
TIMEOUT_S = 300
# Two seconds and more: long enough to be killed under way.
STEPS = 40
EDITS: list[dict[str, Any]] = [
    {"pictures": [scene(1), scene(2)], "prompt": "make the sky blue", "n": 2, "seed": 7, "num_inference_steps": STEPS},
    {"pictures": [scene(3)], "prompt": "make it night", "seed": 8, "num_inference_steps": STEPS},
    {"pictures": [scene(4)], "prompt": "draw it as a sketch", "n": 3, "seed": 9, "num_inference_steps": STEPS},
]


@pytest.fixture(scope="module")
def references(mortal_application: Served) -> list[requests.Response]:
    """Return the answers to EDITS, each alone."""
    return [mortal_application.client.edit(**edit) for edit in EDITS]


def kill_the_editor(served: Served) -> None:
    """Kill the replica of the editor."""
    [pid] = processes.of(served.name, "ImageEditor")
    processes.kill(pid)


def kill_the_ingresses(served: Served) -> None:
    """Kill all replicas of the ingress."""
    for pid in processes.of(served.name, "EditIngress"):
        processes.kill(pid)


def post(served: Served, edit: dict[str, Any], *, query: str = "", stream: bool = False) -> requests.Response:
    files = [("images", (f"{k}.png", png(pixels), "image/png")) for k, pixels in enumerate(edit["pictures"])]
    data = {name: value for name, value in edit.items() if name != "pictures"}
    url = f"{served.client.base}/v1/images/edits{query}"
    return requests.post(url, files=files, data=data, timeout=TIMEOUT_S, stream=stream)


def retries() -> float:
    return sum(Scrape.of(MORTAL).by(_RETRIES, "application").values())


def assert_the_same(response: requests.Response, reference: requests.Response) -> None:
    assert [item["seed"] for item in response.json()["data"]] == [item["seed"] for item in reference.json()["data"]]
    for picture, wanted in zip(pictures_of(response), pictures_of(reference), strict=True):
        assert difference(picture, wanted) <= 1


def start_job(served: Served) -> str:
    """Return the path of a job that is under way."""
    before = served.stats()
    created = post(served, EDITS[0], query="?async=true")
    assert created.status_code == 202, created.text
    wait_until(lambda: served.stats().forwards > before.forwards + 3, "it is under way")
    return f"/v1/jobs/{created.json()['id']}"


def state_of(served: Served, url: str) -> dict[str, Any]:
    """Return the job, or nothing while no process shows it."""
    try:
        response = served.client.get(url)
    except requests.exceptions.RequestException:
        return {}
    return response.json() if response.status_code == 200 else {}


def assert_it_succeeds(served: Served, url: str, reference: requests.Response) -> None:
    """Check that a job ends with the pictures of that answer."""
    ended = ("succeeded", "failed")
    wait_until(lambda: state_of(served, url).get("status") in ended, "the job ends", wait_s=TIMEOUT_S)
    job = state_of(served, url)
    assert job["status"] == "succeeded", job
    for item, wanted in zip(job["result"]["data"], pictures_of(reference), strict=True):
        assert difference(picture_of(item), wanted) <= 1


class TestHttp:
    def test_edits_in_flight_on_a_replica_that_is_killed_are_answered_with_their_own_pictures(
        self, mortal: Served, references: list[requests.Response]
    ):
        before, retries_before = mortal.stats(), retries()
        with ThreadPoolExecutor(len(EDITS)) as pool:
            answers = [pool.submit(mortal.client.edit, timeout_s=TIMEOUT_S, **edit) for edit in EDITS]
            wait_until(lambda: mortal.stats().samples == before.samples + 8, "all are accepted")
            wait_until(lambda: mortal.stats().forwards > before.forwards + 3, "they are under way")
            kill_the_editor(mortal)
            responses = [answer.result(TIMEOUT_S) for answer in answers]
        for response, reference in zip(responses, references, strict=True):
            assert_the_same(response, reference)
        # A new process ran all of it.
        assert mortal.stats().samples == 8
        wait_until(lambda: retries() == retries_before + len(EDITS), "the retries are at /metrics")

    def test_a_random_seed_is_kept_too(self, mortal: Served):
        edit = {**EDITS[1], "seed": None}
        before = mortal.stats()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(mortal.client.edit, timeout_s=TIMEOUT_S, **edit)
            wait_until(lambda: mortal.stats().forwards > before.forwards + 3, "it is under way")
            kill_the_editor(mortal)
            response = answer.result(TIMEOUT_S)
        [item] = response.json()["data"]
        assert_the_same(response, mortal.client.edit(**{**edit, "seed": item["seed"]}))

    def test_a_stream_goes_on_and_has_each_picture_once(self, mortal: Served, references: list[requests.Response]):
        edit = {**EDITS[0], "stream": "true", "partial_images": 2}
        events = [json.loads(line[6:]) for line in self._killed_at_the_first_preview(mortal, edit)]
        told = [(e["input_index"], e["variant_index"], e.get("partial_image_index")) for e in events if "b64_json" in e]
        assert sorted(told, key=str) == sorted(
            ((i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1, None)), key=str
        )
        completed = {
            (e["input_index"], e["variant_index"]): picture_of(e) for e in events if e["type"] == "image_edit.completed"
        }
        reference = references[0]
        for item, wanted in zip(reference.json()["data"], pictures_of(reference), strict=True):
            assert difference(completed[item["input_index"], item["variant_index"]], wanted) <= 1
        assert events[-1]["type"] == "image_edit.done"

    def _killed_at_the_first_preview(self, mortal: Served, edit: dict[str, Any]) -> list[str]:
        lines, killed = [], False
        response = post(mortal, edit, stream=True)
        for line in response.iter_lines(decode_unicode=True):
            if not line.startswith("data: {"):
                continue
            lines.append(line)
            if not killed and "partial_image" in line:
                killed = True
                kill_the_editor(mortal)
        assert killed
        return lines

    def test_a_job_goes_on(self, mortal: Served, references: list[requests.Response]):
        url = start_job(mortal)
        kill_the_editor(mortal)
        assert_it_succeeds(mortal, url, references[0])

    def test_a_job_goes_on_where_the_process_that_runs_it_dies(
        self, mortal: Served, references: list[requests.Response]
    ):
        url = start_job(mortal)
        kill_the_ingresses(mortal)
        assert_it_succeeds(mortal, url, references[0])
        # A job that has ended survives as well.
        kill_the_ingresses(mortal)
        assert_it_succeeds(mortal, url, references[0])

    def test_a_job_goes_on_where_the_store_dies(self, mortal: Served, references: list[requests.Response]):
        url = start_job(mortal)
        ray.kill(ray.get_actor(f"{MORTAL}-store-3", namespace="image-edits"))
        wait_until(lambda: bool(state_of(mortal, url)), "the job is in the new store")
        # A new store is there, from which another process goes on.
        kill_the_ingresses(mortal)
        assert_it_succeeds(mortal, url, references[0])

    def test_a_job_goes_on_where_the_application_is_deployed_anew(
        self, mortal: Served, references: list[requests.Response], cluster: int
    ):
        url = start_job(mortal)
        settings = MORTAL_SETTINGS.model_copy(update={"model": ModelSettings(aliases=("new",))})
        assert_it_succeeds(deploy_mortal(cluster, settings), url, references[0])


class TestProxy:
    def test_edits_whose_proxy_dies_leave_the_engine_and_another_proxy_serves(self, mortal: Served):
        before = mortal.stats()
        ids = [uuid.uuid4().hex, uuid.uuid4().hex]
        with ThreadPoolExecutor(2) as pool:
            lost = [
                pool.submit(self._edit_for_long, mortal, ids[0]),
                pool.submit(self._edit_for_long, mortal, ids[1], stream="true"),
            ]
            wait_until(lambda: mortal.stats().open_requests == 2, "both are under way")
            [proxy] = [pid for pid, title in processes.titles().items() if "ProxyActor" in title]
            processes.kill(proxy)
            for call in lost:
                with pytest.raises(requests.exceptions.RequestException):
                    call.result(TIMEOUT_S)
        wait_until(lambda: mortal.stats().open_requests == 0, "both leave the engine")
        assert mortal.stats().cancelled == before.cancelled + 2
        wait_until(lambda: self._is_served(mortal), "another proxy answers")
        assert {line["status"] for line in self._edit_lines(ids)} == {499}

    def _edit_for_long(self, mortal: Served, id: str, **fields: str) -> bytes:
        files = {"images": ("a.png", png(scene(1)), "image/png")}
        data = {"prompt": "x", "n": "10", "num_inference_steps": "150", **fields}
        url = f"{mortal.client.base}/v1/images/edits"
        return requests.post(url, files=files, data=data, headers={"x-request-id": id}, timeout=TIMEOUT_S).content

    def _is_served(self, mortal: Served) -> bool:
        try:
            return mortal.client.get("/health/ready").status_code == 200
        except requests.exceptions.ConnectionError:
            return False

    def _edit_lines(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the line of each of these edits, in their ingresses' logs."""
        folder = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
        found: list[dict[str, Any]] = []

        def are_written() -> bool:
            texts = [path.read_text() for path in folder.glob(f"replica_{MORTAL}_EditIngress_*.log")]
            lines = [json.loads(line) for text in texts for line in text.splitlines()]
            found[:] = [line for line in lines if line["message"] == "edit" and line["request_id"] in ids]
            return len(found) == len(ids)

        wait_until(are_written, "their lines")
        return found


# --- an edit that kills, in a pipeline that is arithmetic ---------------------------------------------------------

DEPLOYMENT = "fragile"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which the fragile editor records what outlives its processes."""
    return tmp_path_factory.mktemp("fragile")


@pytest.fixture(scope="module")
def fragile(cluster: int, folder: Path) -> Iterator[DeploymentHandle]:
    deployment = serve.deployment(name="ImageEditor", max_ongoing_requests=100, health_check_period_s=1)(FragileEditor)
    yield serve.run(deployment.bind(folder), name=DEPLOYMENT, route_prefix=None)
    serve.delete(DEPLOYMENT)


def edit_together(handle: DeploymentHandle, prompts: Sequence[str]) -> list[EditResult | BaseException]:
    """Edit all at once, each with a seed of its own; return results and errors."""

    async def edit_all() -> list[EditResult | BaseException]:
        editor = EditorHandle(handle, timeout_s=TIMEOUT_S)
        requests_ = [edit_request(k, prompt=prompt) for k, prompt in enumerate(prompts)]
        return await asyncio.gather(*(editor.edit(request) for request in requests_), return_exceptions=True)

    return asyncio.run(edit_all())


def assert_right(result: EditResult | BaseException, reference: EditResult | BaseException) -> None:
    assert isinstance(result, EditResult), result
    assert isinstance(reference, EditResult), reference
    np.testing.assert_array_equal(result.pixels[0][0], reference.pixels[0][0])
    assert result.seeds == reference.seeds


def encoded(folder: Path) -> list[list[str]]:
    """Return the prompts that were encoded together, in turn."""
    file = folder / "encoded"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class TestPoison:
    def test_it_fails_alone_after_three_deaths_and_everybody_else_gets_its_picture(self, fragile, folder):
        prompts, before = ["a", "b", POISON, "c"], len(encoded(folder))
        poisoned = edit_together(fragile, prompts)
        error = poisoned.pop(2)
        assert isinstance(error, GenerationError)
        assert "ended, 3 times" in error.message
        references = edit_together(fragile, ["a", "b", "x", "c"])
        del references[2]
        for result, reference in zip(poisoned, references, strict=True):
            assert_right(result, reference)
        with_poison = [prompts for prompts in encoded(folder)[before:] if POISON in prompts]
        assert len(with_poison) == 3
        assert with_poison[-1] == [POISON]

    def test_one_death_among_others_fails_no_edit(self, fragile):
        results = edit_together(fragile, ["a", POISON_ONCE])
        for result, reference in zip(results, edit_together(fragile, ["a", POISON_ONCE]), strict=True):
            assert_right(result, reference)

    def test_a_replica_that_loses_its_device_ends_itself_and_its_edits_are_done_elsewhere(self, fragile):
        [before] = processes.of(DEPLOYMENT, "ImageEditor")
        results = edit_together(fragile, ["a", LOSE_ONCE])
        for result, reference in zip(results, edit_together(fragile, ["a", LOSE_ONCE]), strict=True):
            assert_right(result, reference)
        [after] = processes.of(DEPLOYMENT, "ImageEditor")
        assert after != before

    def test_a_stream_of_poison_fails_too(self, fragile):
        async def read() -> None:
            async for _ in EditorHandle(fragile, timeout_s=TIMEOUT_S).edit_stream(edit_request(1, prompt=POISON)):
                pass

        with pytest.raises(GenerationError, match="3 times"):
            asyncio.run(read())
