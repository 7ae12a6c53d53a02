"""A server with keys on a real cluster: its log files, one caller's quota, and new keys while it runs."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import requests

from serve_app import EditRequest
from serve_app.api.keys import ApiKey
from serve_app.errors import InvalidInput, TooManySamples
from serve_app.settings import AppSettings, AuthSettings, EngineSettings, HttpSettings, LimitSettings
from tests.cluster.client import TIMEOUT_S, png
from tests.cluster.conftest import Served, deploy
from tests.raw_http import talk
from tests.scenes import scene
from tests.waiting import wait_until

NAME = "closed"
KEYS = {"ann": "first-XANADU-key", "bob": "second-XANADU-key"}
# No log may hold it.
SECRET = "XANADU"
LONG = "x" * 60_000
REFUSALS = 25
# Much longer than a refusal takes, and much shorter than an edit of 150 steps.
KEEPALIVE_S = 2.0
# The lines of Serve's proxy, of Serve in the replica, and ours; and what Ray's own processes write meanwhile.
MOST_LOGGED_BYTES = 4000


@dataclass
class Closed:
    served: Served
    keys_file: Path

    def edit(self, key: str | None = "ann", request_id: str = "", **data: Any) -> requests.Response:
        """Edit as the holder of a key, or with a key that does not fit."""
        headers = {"x-request-id": request_id} if request_id else {}
        if key is not None:
            headers["Authorization"] = f"Bearer {KEYS.get(key, key)}"
        words = {"prompt": f"paint {SECRET}", "negative_prompt": f"no {SECRET}"}
        return self.served.client.edit([scene(1)], headers=headers, **{**words, "num_inference_steps": 2, **data})

    def start_job(self, request_id: str, **data: Any) -> requests.Response:
        files = [("images", ("a.png", png(scene(1)), "image/png"))]
        headers = {"Authorization": f"Bearer {KEYS['ann']}", "x-request-id": request_id}
        url = f"{self.served.client.base}/v1/images/edits?async=true"
        words = {"prompt": f"paint {SECRET}", "num_inference_steps": 2}
        return requests.post(url, files=files, data={**words, **data}, headers=headers, timeout=TIMEOUT_S)

    def job(self, key: str, id: str, method: str = "GET", request_id: str = "any") -> requests.Response:
        headers = {"Authorization": f"Bearer {KEYS.get(key, key)}", "x-request-id": request_id}
        url = f"{self.served.client.base}/v1/jobs/{id}"
        return requests.request(method, url, headers=headers, timeout=TIMEOUT_S)

    def begin_long(self, key: str, request_id: str, stream: str = "true") -> requests.Response:
        """Begin a stream, or a plain edit, of several seconds."""
        headers = {"Authorization": f"Bearer {KEYS[key]}", "x-request-id": request_id}
        data = {"prompt": "x", "num_inference_steps": "150", "stream": stream}
        files = [("images", ("a.png", png(scene(1)), "image/png"))]
        url = f"{self.served.client.base}/v1/images/edits"
        return requests.post(url, files=files, data=data, headers=headers, timeout=TIMEOUT_S, stream=True)

    def leave_stream(self, key: str, request_id: str) -> None:
        """Begin a long stream, and close the connection after its first event."""
        with self.begin_long(key, request_id) as response:
            assert next(response.iter_lines()) == b"event: image_edit.progress"

    def refuse(self, request: str) -> set[tuple[int, str]]:
        """Send a request many times and return how it was refused. It has its lines so far, and no empty one."""
        sent = f"{request}host: x\r\nconnection: close\r\n\r\n".encode("latin-1")
        found = [answer for _ in range(REFUSALS) for answer in talk(self.served.client.base, sent)]
        assert len(found) == REFUSALS
        return {(answer.status, answer.code) for answer in found}

    def logged_bytes(self) -> int:
        """Return the bytes of all log files, with the lines of every request before."""
        last = uuid.uuid4().hex
        self.served.client.get("/v1/models", headers={"x-request-id": last})
        proxies = list((logs() / "serve").glob("proxy_*.log"))
        wait_until(lambda: any(last in path.read_text() for path in proxies), "the last line is written")
        return sum(path.stat().st_size for path in logs().rglob("*") if path.is_file())

    def replace_keys(self, text: str) -> None:
        """Replace the file of keys in one step."""
        new = self.keys_file.with_name("new")
        new.write_text(text)
        new.replace(self.keys_file)

    def models(self, key: str) -> int:
        return self.served.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code


@pytest.fixture(scope="module")
def closed(
    cluster: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Closed:
    keys_file = tmp_path_factory.mktemp("keys") / "keys"
    keys_file.write_text("".join(f"{ApiKey.of(key, name).line}\n" for name, key in KEYS.items()))
    settings = AppSettings(
        engine=EngineSettings(batch_tokens=10**9, max_samples=16, max_caller_samples=4),
        # So late that no edit is refused for its deadline, however slow the machine.
        limits=LimitSettings(max_outputs=4, request_timeout_s=3600),
        auth=AuthSettings(keys_file=keys_file),
        http=HttpSettings(keepalive_s=KEEPALIVE_S),
    )
    return Closed(deploy(cluster, settings, NAME, "/closed"), keys_file)


def logs() -> Path:
    """Return the log folder of this cluster; /tmp/ray/session_latest leads to that of the newest one."""
    return Path(ray._private.worker._global_node.get_logs_dir_path())


def log_lines(deployment: str) -> list[dict[str, Any]]:
    """Return the lines of a deployment's log files, each of which must be one JSON object."""
    paths = list((logs() / "serve").glob(f"replica_{NAME}_{deployment}_*.log"))
    assert paths
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def line_of(request_id: str, message: str = "edit", deployment: str = "EditIngress") -> dict[str, Any]:
    """Return the one line of a request, which is written after its answer was sent."""
    found: list[dict[str, Any]] = []

    def is_written() -> bool:
        found[:] = [
            line for line in log_lines(deployment) if (line["message"], line.get("request_id")) == (message, request_id)
        ]
        return bool(found)

    wait_until(is_written, f"the line of {request_id}")
    (line,) = found
    return line


class TestLog:
    def test_an_edit_is_one_line_with_its_figures_beside_serves(self, closed: Closed):
        assert closed.edit(request_id="log-1", n=3, user="ann's tool", seed=7).status_code == 200
        line = line_of("log-1")
        expected = {
            "levelname": "INFO",
            "application": NAME,
            "deployment": f"{NAME}_EditIngress",
            "key_name": "ann",
            "user": "ann's tool",
            "mode": "plain",
            "status": 200,
            "inputs": ["256x256"],
            "size": "auto",
            "n": 3,
            "num_inference_steps": 2,
            "seed": 7,
            "forwards": 2,
            "mean_samples": 3.0,
            "shared_forwards": 0,
        }
        assert {name: line.get(name) for name in expected} == expected
        stages = [line[f"{stage}_s"] for stage in ("queue", "encode", "denoise", "decode", "serialize")]
        assert 0 < sum(stages) <= line["total_s"] + 0.01
        assert line["body_bytes"] > len(png(scene(1)))

    def test_a_stream_and_a_job_have_theirs(self, closed: Closed):
        assert "[DONE]" in closed.edit(request_id="log-2", stream="true").text
        line = line_of("log-2")
        assert (line["mode"], line["status"], line["key_name"], line["forwards"]) == ("stream", 200, "ann", 2)
        assert closed.start_job("log-3").status_code == 202
        line = line_of("log-3")
        assert (line["mode"], line["status"], line["key_name"]) == ("job", 202, "ann")
        end = line_of("log-3", "job")
        assert (end["mode"], end["status"], end["key_name"], end["forwards"]) == ("job", 200, "ann", 2)

    def test_edits_that_shared_forwards_say_so_and_no_more(self, closed: Closed):
        by = [("ann", "log-4"), ("bob", "log-5")]
        edits = [
            {
                "pictures": [scene(1)],
                "prompt": "x",
                "num_inference_steps": 60,
                "headers": {"Authorization": f"Bearer {KEYS[name]}", "x-request-id": id},
            }
            for name, id in by
        ]
        assert [answer.status_code for answer in closed.served.client.edit_all(edits)] == [200, 200]
        lines = [line_of(id) for _, id in by]
        assert [line["key_name"] for line in lines] == ["ann", "bob"]
        assert lines[0]["shared_forwards"] == lines[1]["shared_forwards"] > 0
        assert all(line["forwards"] == 60 and 1 < line["mean_samples"] <= 2 for line in lines)

    def test_a_failed_attempt_is_one_line(self, closed: Closed):
        assert closed.edit(f"wrong-{SECRET}", "log-6").status_code == 401
        line = line_of("log-6", "unauthorized")
        assert (line["levelname"], line["client"]) == ("WARNING", "127.0.0.1")
        assert line["route"] == "/closed/v1/images/edits"
        # Uvicorn trusts a proxy on the same machine, or those that FORWARDED_ALLOW_IPS names.
        headers = {"x-forwarded-for": "203.0.113.9", "x-request-id": "log-12"}
        assert closed.served.client.get("/v1/models", headers=headers).status_code == 401
        assert line_of("log-12", "unauthorized")["client"] == "203.0.113.9"

    @pytest.mark.parametrize(
        "request_",
        [
            f"GET /closed/v1/models HTTP/1.1\r\nx-request-id: {LONG}\r\n",
            "GET /closed/v1/models HTTP/1.1\r\nx-request-id: \xe9\r\n",
            f"GET /closed/v1/models HTTP/1.1\r\nserve_multiplexed_model_id: {LONG}\xe9\r\n",
            f"GET /closed/v1/models HTTP/1.1\r\nx-session-id: {LONG}\xe9\r\n",
            f"GET /closed/v1/models HTTP/1.1\r\nx-forwarded-for: {LONG}\r\n",
            f"GET /closed/v1/models HTTP/1.1\r\nuser-agent: {LONG}\r\n",
            f"GET /closed/v1/models HTTP/1.1\r\nauthorization: Bearer {LONG}\r\n",
            f"GET /closed/v1/models HTTP/1.1\r\nx-request-timeout-seconds: {LONG}\xe9\r\n",
            f"GET /closed/v1/models?{LONG} HTTP/1.1\r\n",
            f"GET /closed/{LONG} HTTP/1.1\r\n",
            f"GET /closed/{'%22' * 20_000} HTTP/1.1\r\n",
            f"POST /closed/v1/images/edits HTTP/1.1\r\nidempotency-key: {LONG}\r\ncontent-length: 0\r\n",
            f"{LONG} /closed/v1/models HTTP/1.1\r\n",
        ],
        ids=lambda request: f"{request[:30]}… {request[-20:]}".replace("\r\n", " "),
    )
    def test_a_refused_request_costs_little_log_whatever_it_holds(self, closed: Closed, request_: str):
        before = closed.logged_bytes()
        assert closed.refuse(request_) <= {(401, "UNAUTHORIZED"), (405, "METHOD_NOT_ALLOWED")}
        assert (closed.logged_bytes() - before) / REFUSALS < MOST_LOGGED_BYTES

    def test_a_refusal_that_crosses_a_handle_leaves_no_traceback(self, closed: Closed):
        assert closed.edit(request_id="log-7", size="4000x4000").status_code == 400
        assert closed.start_job("log-8", size="4000x4000").status_code == 400
        request = EditRequest(images=[scene(1)], prompt=f"paint {SECRET}", size="4000x4000")
        with pytest.raises(InvalidInput):
            closed.served.editor.edit.remote(request).result()
        assert line_of("log-7")["code"] == line_of("log-8")["code"] == "INVALID_INPUT"
        assert line_of("log-7", "refused", "ImageEditor")["status"] == 400
        for deployment in ("EditIngress", "ImageEditor"):
            errors = [line for line in log_lines(deployment) if line["levelname"] == "ERROR" or "exc_text" in line]
            assert errors == []

    def test_callers_who_leave_are_499s_and_no_errors(self, closed: Closed):
        """Leave often: in every fifth case Ray raises an error of its own before it cancels the request."""
        ids = [f"left-{k}" for k in range(20)]
        with ThreadPoolExecutor(2) as pool:
            # Two callers, so that neither is over its quota.
            for _ in pool.map(closed.leave_stream, ["ann", "bob"] * 10, ids):
                pass
        assert {line_of(id)["status"] for id in ids} == {499}
        assert [line for line in log_lines("EditIngress") if line["levelname"] == "ERROR"] == []

    def test_no_file_holds_a_key_a_prompt_or_the_id_of_a_job(self, closed: Closed):
        """Search the files of Ray's own processes too."""
        job = closed.start_job("log-13").json()["id"]
        line_of("log-13", "job")
        for name, request_id, status in (("wrong", "log-14", 401), ("bob", "log-15", 404), ("ann", "log-16", 200)):
            assert closed.job(name, job, request_id=request_id).status_code == status
        assert line_of("log-14", "unauthorized")["route"] == "/closed/v1/jobs/{id}"
        closed.edit(f"wrong-{SECRET}", "log-9")
        closed.edit(request_id="log-10", size="4000x4000")
        closed.edit(request_id="log-11", stream="true")
        line_of("log-9", "unauthorized")
        line_of("log-10", "refused", "ImageEditor")
        line_of("log-11")
        files = [path for path in logs().rglob("*") if path.is_file()]
        assert len(files) > 5
        secrets = (SECRET.encode(), job.encode())
        assert [path.name for path in files if any(secret in path.read_bytes() for secret in secrets)] == []


class TestShare:
    def test_a_caller_with_a_full_quota_is_refused_and_another_is_served(self, closed: Closed):
        before = closed.served.stats()
        long = EditRequest(images=[scene(1)], prompt="x", n=4, num_inference_steps=150, caller="ann")
        # By handle, so that it can be cancelled; over HTTP, ann is the same caller.
        call = closed.served.editor.edit.remote(long)
        wait_until(lambda: closed.served.stats().running == 4, "ann's share is in work")
        job = closed.start_job("share-1")
        for response in (closed.edit("ann"), closed.edit("ann", stream="true"), job):
            assert (response.status_code, response.json()["error"]["code"]) == (429, "RATE_LIMITED")
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert int(response.headers["Retry-After"]) >= 1
            assert response.headers["x-should-retry"] == "true"
        with pytest.raises(TooManySamples):
            closed.served.editor.edit.remote(long).result()
        assert closed.edit("bob").status_code == 200
        nobody = EditRequest(images=[scene(1)], prompt="x", n=4, num_inference_steps=1)
        assert len(closed.served.editor.edit.remote(nobody).result().images[0]) == 4
        assert closed.served.stats().cancelled == before.cancelled
        assert closed.served.stats().refused == before.refused + 4
        call.cancel()
        wait_until(lambda: closed.served.stats().open_requests == 0, "ann's share is free")
        assert closed.edit("ann").status_code == 200


class TestKeepalive:
    """A plain edit that takes long: through Serve's proxy, white space reaches its caller at once."""

    def test_white_space_comes_before_the_json(self, closed: Closed):
        with closed.begin_long("ann", "keepalive-1", stream="false") as response:
            assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
            chunks = response.iter_content(None)
            assert next(chunks) == b" "
            assert closed.served.stats().running == 1
            body = b"".join(chunks)
        assert len(json.loads(body)["data"]) == 1
        assert body.startswith(b" ")
        line = line_of("keepalive-1")
        assert (line["mode"], line["status"], line["forwards"]) == ("plain", 200, 150)

    def test_a_caller_who_leaves_meanwhile_frees_the_engine(self, closed: Closed):
        before = closed.served.stats()
        with closed.begin_long("ann", "keepalive-2", stream="false") as response:
            assert next(response.iter_content(1)) == b" "
        wait_until(lambda: closed.served.stats().cancelled == before.cancelled + 1, "the edit leaves")
        assert closed.served.stats().forwards < before.forwards + 150
        assert line_of("keepalive-2")["status"] == 499
        assert [line for line in log_lines("EditIngress") if line["levelname"] == "ERROR"] == []


class TestJobs:
    def test_a_job_is_its_keys_alone(self, closed: Closed):
        job = closed.start_job("job-1", num_inference_steps=150).json()["id"]
        for method in ("GET", "DELETE"):
            refused = closed.job("bob", job, method)
            assert (refused.status_code, refused.json()) == (404, closed.job("bob", "unknown").json())
        assert closed.job("ann", job).status_code == 200
        assert closed.job("ann", job, "DELETE").json()["deleted"] is True
        assert closed.job("ann", job).status_code == 404


class TestRotation:
    def test_a_stream_goes_on_to_its_end_when_its_key_is_removed(self, closed: Closed):
        both = closed.keys_file.read_text()
        with closed.begin_long("ann", "rotation-1") as response:
            lines = response.iter_lines()
            assert next(lines) == b"event: image_edit.progress"
            closed.replace_keys(f"{ApiKey.of(KEYS['bob'], 'bob').line}\n")
            wait_until(lambda: closed.models(KEYS["ann"]) == 401, "the key is out of force")
            assert closed.served.stats().running == 1
            rest = list(lines)
        assert (b"event: image_edit.completed" in rest, rest[-2:]) == (True, [b"data: [DONE]", b""])
        assert line_of("rotation-1")["status"] == 200
        closed.replace_keys(both)
        wait_until(lambda: closed.models(KEYS["ann"]) == 200, "the key is in force again")

    def test_new_keys_open_and_old_ones_close_while_the_server_runs(self, closed: Closed):
        assert closed.models(KEYS["ann"]) == 200
        closed.replace_keys(f"{ApiKey.of('third-XANADU-key', 'ann').line}\n{ApiKey.of(KEYS['bob'], 'bob').line}\n")
        wait_until(lambda: closed.models("third-XANADU-key") == 200, "the new key opens")
        assert closed.models(KEYS["ann"]) == 401
        assert closed.models(KEYS["bob"]) == 200

    def test_a_file_that_is_gone_neither_opens_nor_locks_out(self, closed: Closed):
        closed.keys_file.unlink()

        def complaints() -> list[dict[str, Any]]:
            return [line for line in log_lines("EditIngress") if line["levelname"] == "ERROR"]

        def is_logged() -> bool:
            assert closed.models(KEYS["bob"]) == 200
            return bool(complaints())

        wait_until(is_logged, "it is logged")
        assert closed.models("wrong") == 401
        time.sleep(2.5)
        assert closed.models(KEYS["bob"]) == 200
        (complaint,) = complaints()
        assert complaint["message"].endswith("the keys read before stay in force")
