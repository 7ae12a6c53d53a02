"""A checkpoint of Qwen-Image-2.1 behind HTTP: strangers' edits and generations, merged and alone, and clients."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from openai import OpenAI
from ray import serve

from serve_app import GenerationRequest
from serve_app.deployments.replica import ImageEditor
from serve_app.errors import NotFound
from serve_app.settings import ModelSettings
from tests.cluster.client import TIMEOUT_S, picture_of, pictures_of, png
from tests.cluster.conftest import SETTINGS, Served, deploy
from tests.cluster.scrape import Scrape, eventually
from tests.random_model import build_random_21_model
from tests.scenes import difference, scene
from tests.waiting import wait_until

BOUND = 1
NAME = "qwen21"


@pytest.fixture(scope="module")
def qwen(cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(NAME)
    build_random_21_model().save_pretrained(folder)
    model = ModelSettings(source=str(folder), accept_license="qwen-research", default_steps=6)
    yield deploy(cluster, SETTINGS.model_copy(update={"model": model}), NAME, f"/{NAME}", replica=ImageEditor)
    serve.delete(NAME)


SAME = png(scene(1, 256, 256))
STRANGERS: list[tuple[list[bytes], dict[str, Any]]] = [
    # Long, so that all others meet it.
    ([SAME], {"num_inference_steps": 40, "seed": 1}),
    ([SAME], {"prompt": "a sketch of it, in few lines", "seed": 2, "background": "transparent"}),
    ([png(scene(2, 300, 200)), png(scene(3, 90, 200)), SAME], {"guidance_scale": 3, "seed": 3}),
    ([png(scene(4, 200, 300))], {"size": "100x120", "n": 2, "seed": 4, "background": "opaque"}),
    # Generations. Only the opaque one is resized: colours of nearly transparent pixels change by more than they did.
    ([], {"prompt": "a red house", "size": "96x128", "n": 2, "seed": 5}),
    ([], {"prompt": "a blue horse", "size": "100x120", "guidance_scale": 3, "seed": 6, "background": "opaque"}),
]


def edit(served: Served, pictures: list[bytes], fields: dict[str, Any]) -> requests.Response:
    if not pictures:
        return generate(served, **fields)
    parts = [("image[]", (f"{index}.png", content)) for index, content in enumerate(pictures)]
    url = f"{served.client.base}/v1/images/edits"
    return requests.post(url, files=parts, data={"prompt": "make it blue", **fields}, timeout=TIMEOUT_S)


def generate(served: Served, query: str = "", **fields: Any) -> requests.Response:
    url = f"{served.client.base}/v1/images/generations{query}"
    return requests.post(url, json={"prompt": "a red house", **fields}, timeout=TIMEOUT_S)


def test_strangers_get_what_they_get_alone(qwen: Served):
    alone = [pictures_of(edit(qwen, *stranger)) for stranger in STRANGERS]
    before = qwen.stats()
    with ThreadPoolExecutor(len(STRANGERS)) as pool:
        answers = list(pool.map(lambda stranger: edit(qwen, *stranger), STRANGERS))
    for answer, expected in zip(answers, alone, strict=True):
        for merged, one in zip(pictures_of(answer), expected, strict=True):
            assert merged.shape == one.shape
            assert difference(merged, one) <= BOUND
    assert qwen.stats().shared_forwards > before.shared_forwards
    assert [one.shape[2] for one, *_ in alone[1:4]] == [4, 4, 3]
    assert [one.shape for one in (*alone[4], *alone[5])] == [(128, 96, 4), (128, 96, 4), (120, 100, 3)]
    assert alone[3][0].shape == (120, 100, 3)

    def check(scrape: Scrape) -> None:
        # The first two edits have one picture, and then each was sent again. Generations have none.
        assert sum(scrape.by("ray_image_edits_prefix_hits_total", "model").values()) == 1 + 4
        assert sum(scrape.by("ray_image_edits_prefix_misses_total", "model").values()) == 3
        assert sum(scrape.by("ray_image_edits_prefix_saved_seconds_total", "model").values()) > 0
        assert sum(scrape.by("ray_image_edits_prefix_bytes", "model").values()) > 0

    eventually(NAME, check)


def test_what_the_model_offers_and_forbids_is_listed(qwen: Served):
    [first, *_] = qwen.client.get("/v1/models").json()["data"]
    assert (first["max_references"], first["transparency"], first["license"]) == (4, True, "qwen-research")
    assert first["generates"]


# --- generations --------------------------------------------------------------------------------------------------

EXTRA: dict[str, Any] = {"seed": 9, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def client(qwen: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{qwen.client.base}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
        yield client


def test_openais_client_generates(qwen: Served, client: OpenAI):
    same = pictures_of(generate(qwen, n=2, size="96x64", **EXTRA))
    result = client.images.generate(
        prompt="a red house", model="gpt-image-1", n=2, size="96x64", quality="high", extra_body=EXTRA
    )
    for item, picture in zip(result.model_dump()["data"], same, strict=True):
        assert difference(picture_of(item), picture) <= BOUND
    assert difference(*same) > 20
    assert result.usage is not None
    assert result.usage.input_tokens_details.image_tokens == 0
    assert result.usage.output_tokens == 2 * 24


def test_openais_client_reads_its_stream(qwen: Served, client: OpenAI):
    same = pictures_of(generate(qwen, n=2, size="96x64", **EXTRA))
    stream = client.images.generate(
        prompt="a red house", n=2, size="96x64", stream=True, partial_images=1, extra_body=EXTRA
    )
    events: list[Any] = list(stream)
    previews = [event for event in events if event.type == "image_generation.partial_image"]
    assert sorted((event.variant_index, event.partial_image_index) for event in previews) == [(0, 0), (1, 0)]
    completed = [event for event in events if event.type == "image_generation.completed"]
    assert sorted(event.variant_index for event in completed) == [0, 1]
    for event in completed:
        assert difference(picture_of(event.model_dump()), same[event.variant_index]) <= BOUND


def test_a_job_generates(qwen: Served):
    same = pictures_of(generate(qwen, size="96x64", **EXTRA))
    started = generate(qwen, "?async=true", size="96x64", **EXTRA)
    assert started.status_code == 202, started.text
    path = f"/v1/jobs/{started.json()['id']}"
    wait_until(lambda: qwen.client.get(path).json()["status"] == "succeeded", "the job is done")
    [item] = qwen.client.get(path).json()["result"]["data"]
    assert difference(picture_of(item), same[0]) <= BOUND


def test_a_handle_generates(qwen: Served):
    same = pictures_of(generate(qwen, n=2, size="96x64", **EXTRA))
    request = GenerationRequest(prompt="a red house", n=2, size="96x64", **EXTRA)
    result = qwen.editor.edit.remote(request).result()
    assert result.seeds == ((9, 10),)
    for pixels, picture in zip(result.pixels[0], same, strict=True):
        assert difference(pixels, picture) <= BOUND


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"size": "4000x4000"}, "size"), ({"size": "original"}, "size"), ({"image": "x"}, "image"), ({"n": 99}, "n")],
)
def test_mistakes_are_refused(qwen: Served, fields: dict[str, Any], param: str):
    answer = generate(qwen, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_model_that_only_edits_says_which_one_generates(served: Served):
    answer = generate(served)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert "Qwen/Qwen-Image-2.1" in answer.json()["error"]["message"]
    assert not served.client.get("/v1/models").json()["data"][0]["generates"]
    with pytest.raises(NotFound, match="/v1/images/edits"):
        served.editor.edit.remote(GenerationRequest(prompt="x")).result()
