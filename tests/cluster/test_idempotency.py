"""Idempotency keys on a real cluster, with two ingress replicas: one edit for all tries, whichever process dies."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import ray
import requests

from serve_app.idempotency.runner import GRACE_S
from tests import processes, waiting
from tests.cluster.client import png
from tests.cluster.conftest import MORTAL, Served
from tests.scenes import scene

PATIENCE_S = 600
LOGS = Path("/tmp/ray")
QUICK: dict[str, Any] = {"prompt": "make the sky blue", "num_inference_steps": 2}
# Three seconds: long enough to be met under way.
LONG: dict[str, Any] = {"prompt": "x", "num_inference_steps": 60}
# Much longer than the grace, unless it is cancelled.
ENDLESS: dict[str, Any] = {"prompt": "x", "n": 10, "num_inference_steps": 150}

wait_until = partial(waiting.wait_until, wait_s=PATIENCE_S)


@pytest.fixture(scope="module", autouse=True)
def _acquainted(mortal_application: Served) -> None:
    """Both ingresses have called the store before anything depends on how soon it answers."""
    edits = [{"pictures": [scene(1)], "headers": new_key(), "timeout_s": PATIENCE_S, **QUICK}] * 8
    mortal_application.client.edit_all(edits)


def edit(mortal: Served, headers: dict[str, str], *scenes: int, **fields: Any) -> requests.Response:
    return mortal.client.edit([scene(k) for k in scenes or (1,)], headers=headers, timeout_s=PATIENCE_S, **fields)


def new_key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def is_replay(response: requests.Response) -> bool:
    assert response.status_code == 200, response.text
    return response.headers.get("Idempotency-Replayed") == "true"


def kill(deployment: str) -> None:
    found = processes.of(MORTAL, deployment)
    assert found
    for pid in found:
        processes.kill(pid)


def leave(mortal: Served, headers: dict[str, str], **fields: Any) -> None:
    """Send an edit, and disconnect once the engine has it."""
    before = mortal.stats()
    files = {"images": ("a.png", png(scene(1)), "image/png")}
    url = f"{mortal.client.base}/v1/images/edits"
    request = requests.Request("POST", url, headers=headers, files=files, data=fields).prepare()
    address = urlsplit(url)
    with closing(HTTPConnection(address.hostname or "", address.port)) as connection:
        connection.request("POST", address.path, request.body, dict(request.headers))
        wait_until(lambda: mortal.stats().requests == before.requests + 1, "the engine has it")


def test_all_tries_at_once_get_the_answer_of_one_edit_whichever_replica_they_reach(mortal: Served):
    before, key = mortal.stats(), new_key()
    ids = [f"{key['Idempotency-Key']}.{index}" for index in range(8)]
    headers = [{**key, "x-request-id": id} for id in ids]
    answers = mortal.client.edit_all(
        [{"pictures": [scene(1)], "headers": each, "timeout_s": PATIENCE_S, **LONG} for each in headers]
    )
    assert sorted(is_replay(answer) for answer in answers) == [False] + [True] * 7
    assert len({answer.content for answer in answers}) == 1
    after = mortal.stats()
    assert (after.requests, after.sample_steps) == (
        before.requests + 1,
        before.sample_steps + LONG["num_inference_steps"],
    )

    def replicas() -> set[str]:
        logs = LOGS.glob(f"session_*/logs/serve/replica_{MORTAL}_EditIngress_*.log")
        return {log.name for log in logs if key["Idempotency-Key"] in log.read_text()}

    wait_until(lambda: len(replicas()) == 2, "both ingress replicas have logged some of them")


def test_a_later_try_gets_the_same_answer_and_another_body_is_refused(mortal: Served):
    before, key = mortal.stats(), new_key()
    first, again = (edit(mortal, key, 1, 2, **QUICK) for _ in range(2))
    assert (is_replay(first), is_replay(again)) == (False, True)
    assert again.content == first.content
    refused = edit(mortal, key, 2, 1, **QUICK)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert mortal.stats().requests == before.requests + 1
    assert not is_replay(edit(mortal, new_key(), 1, 2, **QUICK))


def test_the_same_key_gives_the_same_job(mortal: Served):
    before, key = mortal.stats(), new_key()
    url = f"{mortal.client.base}/v1/images/edits"

    def ask() -> requests.Response:
        files = {"images": ("a.png", png(scene(1)), "image/png")}
        return requests.post(f"{url}?async=true", files=files, data=QUICK, headers=key, timeout=PATIENCE_S)

    first, again = ask(), ask()
    assert first.status_code == again.status_code == 202, first.text
    assert (again.json()["id"], again.headers["Location"]) == (first.json()["id"], first.headers["Location"])
    assert mortal.stats().requests == before.requests + 1


def test_a_caller_that_disconnected_comes_back_to_its_edit(mortal: Served):
    before, key = mortal.stats(), new_key()
    leave(mortal, key, **LONG)
    answer = edit(mortal, key, **LONG)
    assert is_replay(answer)
    after = mortal.stats()
    assert (after.requests, after.cancelled) == (before.requests + 1, before.cancelled)


def test_an_edit_whose_caller_does_not_come_back_leaves_the_engine_after_its_grace(mortal: Served):
    before = mortal.stats()
    leave(mortal, new_key(), **ENDLESS)
    time.sleep(GRACE_S / 4)
    meanwhile = mortal.stats()
    assert (meanwhile.cancelled, meanwhile.open_requests) == (before.cancelled, 1)
    wait_until(lambda: mortal.stats().cancelled == before.cancelled + 1, "the request leaves")
    wait_until(lambda: mortal.stats().running == 0, "its samples leave")
    stats = mortal.stats()
    assert (stats.waiting, stats.paused, stats.open_requests) == (0, 0, 0)


def test_an_answer_is_kept_for_a_retry_where_the_store_dies_meanwhile(mortal: Served):
    key = new_key()
    with ThreadPoolExecutor(1) as pool:
        before = mortal.stats()
        leads = pool.submit(edit, mortal, key, **LONG)
        wait_until(lambda: mortal.stats().requests == before.requests + 1, "the edit runs")
        ray.kill(ray.get_actor(f"{MORTAL}-store-3", namespace="image-edits"))
        assert not is_replay(edit(mortal, new_key(), 2, **QUICK))
        answer = leads.result()
        assert not is_replay(answer)
    again = edit(mortal, key, **LONG)
    assert is_replay(again)
    assert again.content == answer.content


def test_an_edit_whose_ingress_dies_is_run_again_for_a_retry(mortal: Served):
    before, key = mortal.stats(), new_key()
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(edit, mortal, key, **LONG)
        wait_until(lambda: mortal.stats().requests == before.requests + 1, "the edit runs")
        kill("EditIngress")
        with suppress(requests.exceptions.ConnectionError):
            assert lost.result().status_code >= 500
    answers: list[requests.Response] = []

    def is_answered() -> bool:
        answers.append(edit(mortal, key, **LONG))
        return answers[-1].status_code == 200

    wait_until(is_answered, "another ingress answers")
    assert not is_replay(answers[-1])
    assert mortal.stats().requests == before.requests + 2
