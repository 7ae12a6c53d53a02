"""A checkpoint of the Plus classes behind HTTP: references, masks, adapters and presets of strangers share forwards."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
from ray import serve

from serve_app.deployments.replica import ImageEditor
from serve_app.settings import AdapterSettings, ModelSettings, PresetSettings
from tests.cluster.client import TIMEOUT_S, pictures_of, png
from tests.cluster.conftest import SETTINGS, Served, deploy
from tests.pictures import mask_png
from tests.random_model import NATIVE_AREA, build_random_plus_model, write_adapter
from tests.scenes import difference, scene

BOUND = 1
NAME = "plus"


@pytest.fixture(scope="module")
def plus(cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Yield an application of a model with `zero_cond_t`, as Qwen-Image-Edit-2511 has it, with two adapters."""
    folder = tmp_path_factory.mktemp(NAME)
    build_random_plus_model().save_pretrained(folder / "model")
    adapters = {
        name: AdapterSettings(source=str(write_adapter(folder / name, targets)))
        for name, targets in (("sketch", ["to_q", "to_v"]), ("all", "all-linear"))
    }
    model = ModelSettings(
        source=str(folder / "model"),
        adapters=adapters,
        presets={"fast": PresetSettings(steps=4, guidance=1, adapter="all:0.5", shift=3)},
        quality={"low": "fast"},
    )
    yield deploy(cluster, SETTINGS.model_copy(update={"model": model}), NAME, f"/{NAME}", replica=ImageEditor)
    serve.delete(NAME)


def changes(width: int, height: int) -> bytes:
    """Return a mask whose left half may change."""
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask_png(mask)


# What strangers send: files by field, and the other fields. The first is long, so that all others meet it.
STRANGERS: list[tuple[list[tuple[str, bytes]], dict[str, Any]]] = [
    ([("images", png(scene(1, 256, 256)))], {"num_inference_steps": 50, "seed": 1}),
    ([("image[]", png(scene(2, 300, 200))), ("image[]", png(scene(3, 90, 200)))], {"quality": "low", "seed": 2}),
    (
        [
            ("images", png(scene(4, 200, 300))),
            ("references", png(scene(5, 64, 64))),
            ("references", png(scene(6, 200, 80))),
        ],
        {"adapters": "sketch", "num_inference_steps": 8, "seed": 3},
    ),
    (
        [("images", png(scene(7, 222, 296))), ("mask", changes(222, 296))],
        {"adapters": "all:-1,sketch:0.5", "num_inference_steps": 6, "seed": 4},
    ),
]


def edit(served: Served, files: list[tuple[str, bytes]], fields: dict[str, Any]) -> requests.Response:
    parts = [(name, (f"{index}.png", content)) for index, (name, content) in enumerate(files)]
    url = f"{served.client.base}/v1/images/edits"
    return requests.post(url, files=parts, data={"prompt": "put picture 2 on it", **fields}, timeout=TIMEOUT_S)


def test_strangers_with_references_masks_adapters_and_presets_get_what_they_get_alone(plus: Served):
    alone = [pictures_of(edit(plus, *stranger)) for stranger in STRANGERS]
    before = plus.stats()
    with ThreadPoolExecutor(len(STRANGERS)) as pool:
        answers = list(pool.map(lambda stranger: edit(plus, *stranger), STRANGERS))
    for answer, expected in zip(answers, alone, strict=True):
        [merged] = pictures_of(answer)
        assert difference(merged, expected[0]) <= BOUND
    after = plus.stats()
    assert after.shared_forwards > before.shared_forwards
    # 68 steps, and every forward of several of them is one less.
    assert after.forwards - before.forwards < 68


def test_what_the_model_offers_is_listed(plus: Served):
    [first, *_] = plus.client.get("/v1/models").json()["data"]
    assert (first["max_references"], first["native_area"]) == (4, NATIVE_AREA)
    assert (first["adapters"], first["presets"]) == (["sketch", "all"], ["fast"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"adapters": "sketchy"}, "adapters"), ({"preset": "faster"}, "preset"), ({"adapters": "sketch:9"}, "adapters")],
)
def test_what_it_does_not_offer_is_refused_before_any_forward(plus: Served, fields: dict[str, str], param: str):
    before = plus.stats()
    answer = edit(plus, STRANGERS[0][0], fields)
    assert (answer.status_code, json.loads(answer.text)["error"]["param"]) == (400, param)
    assert plus.stats().forwards == before.forwards
