"""A checkpoint of Qwen-Image-2.1 behind HTTP: strangers' prefixes and transparency, merged and alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from ray import serve

from serve_app.deployments.replica import ImageEditor
from serve_app.settings import ModelSettings
from tests.cluster.client import TIMEOUT_S, pictures_of, png
from tests.cluster.conftest import SETTINGS, Served, deploy
from tests.cluster.scrape import Scrape, eventually
from tests.random_model import build_random_21_model
from tests.scenes import difference, scene

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
]


def edit(served: Served, pictures: list[bytes], fields: dict[str, Any]) -> requests.Response:
    parts = [("image[]", (f"{index}.png", content)) for index, content in enumerate(pictures)]
    url = f"{served.client.base}/v1/images/edits"
    return requests.post(url, files=parts, data={"prompt": "make it blue", **fields}, timeout=TIMEOUT_S)


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
    assert [one.shape[2] for one, *_ in alone[1:]] == [4, 4, 3]
    assert alone[3][0].shape == (120, 100, 3)

    def check(scrape: Scrape) -> None:
        # The first two edits have one picture, and then each was sent again.
        assert sum(scrape.by("ray_image_edits_prefix_hits_total", "model").values()) == 1 + 4
        assert sum(scrape.by("ray_image_edits_prefix_misses_total", "model").values()) == 3
        assert sum(scrape.by("ray_image_edits_prefix_saved_seconds_total", "model").values()) > 0
        assert sum(scrape.by("ray_image_edits_prefix_bytes", "model").values()) > 0

    eventually(NAME, check)


def test_what_the_model_offers_and_forbids_is_listed(qwen: Served):
    [first, *_] = qwen.client.get("/v1/models").json()["data"]
    assert (first["max_references"], first["transparency"], first["license"]) == (4, True, "qwen-research")
