"""The service: HTTP through Serve's proxy, disconnects, bounds, and other applications of the cluster."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import ray
import requests
from ray import serve

from serve_app import EditRequest
from serve_app.app import APP_NAME
from serve_app.errors import DeadlineExceeded, InvalidInput, Overloaded
from serve_app.settings import OPENAI_MODELS
from tests.cluster.client import pictures_of, png
from tests.cluster.conftest import Served
from tests.raw_http import answers, connect
from tests.scenes import difference, scene
from tests.uploads import body_of
from tests.waiting import WAIT_S, wait_until


def error_code(response: requests.Response) -> str:
    body = response.json()
    assert body["detail"]["error"] == body["error"]["code"]
    assert body["detail"]["message"] == body["error"]["message"]
    return str(body["error"]["code"])


class TestHttp:
    def test_the_answer_has_what_the_contract_says(self, served: Served):
        response = served.client.edit([scene(1), scene(2)], prompt="x", n=2, num_inference_steps=1)
        body = response.json()
        assert set(body) == {"created", "data", "output_format", "usage"}
        assert (body["usage"]["input_images"], body["usage"]["generated_images"]) == (2, 4)
        assert body["usage"]["processing_time_seconds"] > 0
        timing = response.headers["Server-Timing"]
        assert [part.split(";")[0].strip() for part in timing.split(",")] == [
            "queue", "encode", "denoise", "decode", "serialize",
        ]  # fmt: skip

    def test_the_callers_request_id_comes_back_once(self, served: Served):
        response = served.client.get("/v1/models", headers={"x-request-id": "caller-42"})
        assert response.headers["x-request-id"] == "caller-42"
        assert served.client.get("/v1/models").headers["x-request-id"]

    def test_health_and_models(self, served: Served):
        for path in ("/health", "/health/live", "/health/ready"):
            assert served.client.get(path).status_code == 200
        models = served.client.get("/v1/models").json()["data"]
        assert [model["id"] for model in models] == ["random-model", *OPENAI_MODELS]
        assert served.client.get("/v1/models/random-model").json()["id"] == "random-model"

    @pytest.mark.parametrize(
        ("path", "status", "code"), [("/nope", 404, "NOT_FOUND"), ("/v1/images/edits", 405, "METHOD_NOT_ALLOWED")]
    )
    def test_other_routes_have_the_same_error_body(self, served: Served, path, status, code):
        response = served.client.get(path)
        assert (response.status_code, error_code(response)) == (status, code)

    def test_the_three_errors_of_the_guide(self, served: Served):
        url = f"{served.client.base}/v1/images/edits"
        none = requests.post(url, files={"prompt": (None, "x")}, timeout=WAIT_S)
        assert none.status_code == 400
        assert none.json()["detail"] == {"error": "INVALID_INPUT", "message": "At least one image is required"}
        files = [("images", ("a.png", png(scene(1)))), ("images", ("b.png", b"this is text"))]
        broken = requests.post(url, files=files, data={"prompt": "x"}, timeout=WAIT_S)
        assert broken.status_code == 400
        assert broken.json()["detail"]["message"].startswith("Invalid image format at index 1: ")

    @pytest.mark.parametrize(
        ("field", "value"), [("size", "99999x99999"), ("prompt", "字" * 2000), ("negative_prompt", "字" * 2000)]
    )
    def test_what_only_the_model_can_know_is_refused_as_bad_input_too(self, served: Served, field, value):
        response = served.client.edit([scene(1)], **{"prompt": "x", field: value})
        assert (response.status_code, error_code(response)) == (400, "INVALID_INPUT")
        assert response.json()["error"]["param"] == field

    def test_a_body_over_the_limit_is_refused_while_it_is_sent(self, served: Served):
        response = requests.post(
            f"{served.client.base}/v1/images/edits",
            data=_endless_file(200 * 2**20),
            headers={"content-type": "multipart/form-data; boundary=b"},
            timeout=WAIT_S,
        )
        assert (response.status_code, error_code(response)) == (413, "PAYLOAD_TOO_LARGE")

    def test_a_body_that_stops_half_way_leaves_nothing_behind(self, served: Served):
        before = served.stats()
        with connect(served.client.base) as connection:
            connection.sendall(
                b"POST /v1/images/edits HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n"
                b"content-type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
            )
        assert served.client.edit([scene(1)], prompt="x", num_inference_steps=1).status_code == 200
        assert served.stats().requests == before.requests + 1


def _endless_file(size_bytes: int):
    yield b'--b\r\ncontent-disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    for _ in range(size_bytes // 2**20):
        yield b"\0" * 2**20


class TestLeaving:
    def test_a_caller_that_hangs_up_frees_its_samples_at_the_next_step(self, served: Served):
        before = served.stats()
        with pytest.raises(requests.exceptions.ReadTimeout):
            served.client.edit([scene(1)], prompt="x", n=2, num_inference_steps=150, timeout_s=3)
        wait_until(lambda: served.stats().cancelled == before.cancelled + 1, "the request leaves")
        forwards = served.stats().forwards
        assert forwards < before.forwards + 150
        stats = served.stats()
        assert (stats.running, stats.waiting, stats.paused) == (0, 0, 0)

    def test_a_cancelled_handle_call_frees_its_samples(self, served: Served):
        before = served.stats()
        call = served.editor.edit.remote(EditRequest(images=[scene(1)], prompt="x", num_inference_steps=150))
        wait_until(lambda: served.stats().forwards > before.forwards, "the first step")
        call.cancel()
        wait_until(lambda: served.stats().cancelled == before.cancelled + 1, "the request leaves")


class TestBounds:
    def test_a_full_queue_answers_503_with_the_time_to_come_back(self, strict: Served):
        with ThreadPoolExecutor(6) as pool:
            edits = [pool.submit(strict.client.edit, [scene(1)], prompt="x", num_inference_steps=60) for _ in range(6)]
            responses = [edit.result() for edit in edits]
        refused = [response for response in responses if response.status_code == 503]
        assert refused
        for response in refused:
            assert error_code(response) == "OVERLOADED"
            assert int(response.headers["Retry-After"]) >= 1
        # Those accepted got their picture, or on a slow machine their deadline.
        assert {response.status_code for response in responses if response not in refused} <= {200, 504}
        # The engine refused the first of them; the load shedder may have refused the others.
        assert 1 <= strict.stats().refused <= len(refused)

    def test_while_the_queue_is_full_callers_are_refused_before_their_upload(self, strict: Served):
        done = threading.Event()

        def keep_busy() -> None:
            while not done.is_set():
                strict.client.edit([scene(1)], prompt="x", num_inference_steps=20)

        with ThreadPoolExecutor(6) as pool:
            for _ in range(6):
                pool.submit(keep_busy)
            try:
                wait_until(lambda: self._begin_upload(strict).startswith(b"HTTP/1.1 503"), "it is refused")
            finally:
                done.set()

    def test_of_many_edits_at_once_the_proxy_refuses_most(self, strict: Served):
        body, content_type = body_of([("images", ("a.png", png(scene(1)))), ("prompt", (None, "x"))])
        ids = [uuid.uuid4().hex for _ in range(300)]
        with self._full_queue(strict), ExitStack() as stack:
            connections = [stack.enter_context(connect(strict.client.base)) for _ in ids]
            for id, connection in zip(ids, connections, strict=True):
                head = (
                    f"POST /strict/v1/images/edits HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
                    f"x-request-id: {id}\r\n"
                    f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
                )
                connection.sendall(head.encode() + body)
            refused = [answer for connection in connections for answer in answers(connection) if answer.status == 503]
        assert len(refused) > 250
        assert {answer.code for answer in refused} == {"OVERLOADED"}
        assert {answer.headers["x-request-id"] for answer in refused} <= set(ids)
        # Each edit that reaches the application has a line there.
        logs = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
        text = "".join(path.read_text() for path in logs.glob("replica_strict_EditIngress_*.log"))
        assert sum(id in text for id in ids) < 200

    @contextmanager
    def _full_queue(self, strict: Served) -> Iterator[None]:
        """Keep the queue full by more callers than it takes, however long the body of the `with` needs."""
        busy = EditRequest(images=[scene(1)], prompt="x", num_inference_steps=20)
        before, done = strict.stats(), threading.Event()

        def keep_asking() -> None:
            while not done.wait(0.05):
                with suppress(Overloaded, DeadlineExceeded):
                    strict.editor.edit.remote(busy).result()

        with ThreadPoolExecutor(6) as pool:
            for _ in range(6):
                pool.submit(keep_asking)
            try:
                wait_until(lambda: strict.stats().refused > before.refused, "the queue is full")
                yield
            finally:
                done.set()

    def _begin_upload(self, strict: Served) -> bytes:
        """Return the answer to the head of a request without its body; empty if there is none."""
        with connect(strict.client.base) as connection:
            connection.settimeout(1.0)
            connection.sendall(
                b"POST /strict/v1/images/edits HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n"
                b"content-type: multipart/form-data; boundary=b\r\n\r\n"
            )
            try:
                return connection.recv(65536)
            except TimeoutError:
                return b""

    def test_a_passed_deadline_answers_504_and_frees_the_gpu(self, strict: Served):
        def is_taken() -> bool:
            return strict.client.edit([scene(1)], prompt="x", num_inference_steps=2).status_code == 200

        wait_until(is_taken, "what was sent before has left")
        response = strict.client.edit([scene(1)], prompt="x", size="512x512", num_inference_steps=150)
        assert (response.status_code, error_code(response)) == (504, "TIMEOUT")
        wait_until(lambda: strict.stats().running == 0, "the engine is idle")


@serve.deployment
class Thumbnailer:
    """Another application of the same cluster, which edits by handle."""

    async def __call__(self, picture: PIL.Image.Image) -> list[PIL.Image.Image]:
        editor = serve.get_deployment_handle("ImageEditor", app_name=APP_NAME)
        result = await editor.edit.remote(
            EditRequest(images=[picture], prompt="make the sky blue", n=2, seed=3, num_inference_steps=2)
        )
        return [image.resize((32, 32)) for image in result.images[0]]


class TestHandles:
    def test_another_application_edits_by_handle(self, served: Served):
        other = serve.run(Thumbnailer.bind(), name="thumbnails", route_prefix=None)  # type: ignore[attr-defined]
        thumbnails = other.remote(PIL.Image.fromarray(scene(1))).result()
        assert [image.size for image in thumbnails] == [(32, 32)] * 2
        serve.delete("thumbnails")

    def test_by_handle_and_by_http_are_the_same_edit(self, served: Served):
        fields: dict[str, Any] = {"prompt": "make the sky blue", "seed": 3, "num_inference_steps": 2}
        result = served.editor.edit.remote(EditRequest(images=[scene(1)], **fields)).result()
        [picture] = pictures_of(served.client.edit([scene(1)], **fields))
        assert difference(result.pixels[0][0], picture) <= 1
        assert result.seeds == ((3,),)

    def test_errors_are_typed_on_the_other_side(self, served: Served):
        request = EditRequest(images=[scene(1)], prompt="x", size="4000x4000")
        with pytest.raises(InvalidInput) as caught:
            served.editor.edit.remote(request).result()
        assert (caught.value.param, caught.value.status) == ("size", 400)
        assert caught.value.message.startswith("size: 4000x4000")


def test_requests_that_arrive_together_are_merged_into_one_submission(served: Served):
    # Eight at once from as many threads: @serve.batch gathers them, the engine steps them together.
    before = served.stats()
    barrier = threading.Barrier(8)

    def edit(seed: int) -> int:
        barrier.wait()
        return served.client.edit([scene(seed)], prompt="x", num_inference_steps=20).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(edit, range(8))) == [200] * 8
    after = served.stats()
    assert (after.sample_steps - before.sample_steps) / (after.forwards - before.forwards) > 2
