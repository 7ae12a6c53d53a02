"""Pairing: many callers at once, each of whom gets exactly the pictures that it gets alone."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cluster.client import pictures_of
from tests.cluster.conftest import Served
from tests.scenes import difference, scene

BOUND = 1
"""How much a value may differ, of 255; another sample's picture differs by ten times that and more."""

SQUARE, WIDE = (256, 256), (300, 200)

STRANGERS = [(256, 256), (296, 222), (222, 296), (342, 192), (192, 342), (315, 210), (210, 315), (174, 377)]
"""Sizes with eight aspect ratios, those of phones, cameras and screenshots."""

EDITS: list[dict[str, Any]] = [
    {"pictures": [scene(1, *SQUARE)], "prompt": "make the sky blue", "seed": 10, "num_inference_steps": 4},
    {"pictures": [scene(2, *SQUARE), scene(3, *SQUARE)], "prompt": "enhance colors", "n": 2, "seed": 20,
     "num_inference_steps": 3},
    {"pictures": [scene(4, *WIDE)], "prompt": "artistic style transformation", "guidance_scale": 8, "seed": 30,
     "num_inference_steps": 5},
    {"pictures": [scene(5, *SQUARE)], "prompt": "变成黑白照片", "guidance_scale": 1, "n": 3, "seed": 40,
     "num_inference_steps": 2},
    {"pictures": [scene(6, *WIDE), scene(7, *SQUARE)], "prompt": ["first", "second, at greater length"], "seed": 50,
     "num_inference_steps": 4},
    {"pictures": [scene(8, *SQUARE)], "prompt": "x", "negative_prompt": "ugly, blurred", "seed": 60,
     "num_inference_steps": 6},
    {"pictures": [scene(1, *SQUARE)], "prompt": "make the sky red", "seed": 70, "num_inference_steps": 4},
    {"pictures": [scene(1, *WIDE)], "prompt": "make the sky blue", "n": 2, "seed": 10, "num_inference_steps": 3},
]  # fmt: skip


def one_by_one(edit: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an edit's outputs as edits of one picture and one variant each."""
    pictures, n, prompt = edit["pictures"], edit.get("n", 1), edit["prompt"]
    return [
        {
            **edit,
            "pictures": [picture],
            "n": 1,
            "prompt": prompt if isinstance(prompt, str) else prompt[i],
            "seed": edit["seed"] + i * n + j,
        }
        for i, picture in enumerate(pictures)
        for j in range(n)
    ]


def test_eight_callers_at_once_each_get_what_they_get_alone(served: Served):
    alone = [pictures_of(served.client.edit(**edit)) for edit in EDITS]
    singles = [
        # An edit of one output is its own single.
        answer if len(answer) == 1 else [pictures_of(served.client.edit(**single))[0] for single in one_by_one(edit)]
        for edit, answer in zip(EDITS, alone, strict=True)
    ]
    before = served.stats()
    merged = [pictures_of(response) for response in served.client.edit_all(EDITS)]
    after = served.stats()

    for answer, references in [*zip(merged, alone, strict=True), *zip(merged, singles, strict=True)]:
        assert len(answer) == len(references)
        for picture, reference in zip(answer, references, strict=True):
            assert picture.shape == reference.shape
            assert difference(picture, reference) <= BOUND

    # A mix-up of any two would have shown.
    pictures = [picture for answer in singles for picture in answer]
    for index, picture in enumerate(pictures):
        for other_picture in pictures[:index]:
            if other_picture.shape == picture.shape:
                assert difference(picture, other_picture) >= 10 * BOUND

    assert after.shared_forwards > before.shared_forwards
    steps = sum(len(edit["pictures"]) * edit.get("n", 1) * edit["num_inference_steps"] for edit in EDITS)
    assert after.sample_steps - before.sample_steps == steps
    assert after.forwards - before.forwards < 0.7 * steps


def test_eight_aspect_ratios_share_forwards_and_each_gets_what_it_gets_alone(served: Served):
    edits: list[dict[str, Any]] = [
        {"pictures": [scene(seed, *size)], "prompt": "make the sky blue", "seed": seed, "num_inference_steps": 4}
        for seed, size in enumerate(STRANGERS)
    ]
    alone = [pictures_of(served.client.edit(**edit))[0] for edit in edits]
    assert len({picture.shape for picture in alone}) == len(STRANGERS)
    before = served.stats()
    merged = [pictures_of(response) for response in served.client.edit_all(edits)]
    after = served.stats()
    for [picture], reference in zip(merged, alone, strict=True):
        assert picture.shape == reference.shape
        assert difference(picture, reference) <= BOUND
    # No two of these edits have one shape, so that shapes differ in every shared forward.
    steps = 4 * len(STRANGERS)
    assert after.sample_steps - before.sample_steps == steps
    assert after.shared_forwards > before.shared_forwards
    assert after.forwards - before.forwards < 0.7 * steps


def test_a_request_that_arrives_half_way_finishes_first_when_it_has_fewer_steps(served: Served):
    before = served.stats()
    finished: list[str] = []

    def edit(name: str, steps: int) -> None:
        pictures_of(served.client.edit([scene(1)], prompt="x", num_inference_steps=steps))
        finished.append(name)

    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(edit, "long", 60)
        while served.stats().forwards < before.forwards + 5:
            time.sleep(0.05)
        assert not long.done()
        pool.submit(edit, "short", 3).result()
        assert not long.done()
    assert finished == ["short", "long"]
    assert served.stats().shared_forwards >= before.shared_forwards + 3


def test_pictures_times_n_come_in_the_guaranteed_order(served: Served):
    pictures = [scene(1), scene(2), scene(3)]
    common: dict[str, Any] = {"prompt": "enhance colors", "num_inference_steps": 2}
    response = served.client.edit(pictures, n=2, seed=100, **common)
    together = pictures_of(response)
    assert [(item["input_index"], item["variant_index"], item["seed"]) for item in response.json()["data"]] == [
        (i, j, 100 + 2 * i + j) for i in range(3) for j in range(2)
    ]
    lone = [pictures_of(served.client.edit([p], n=2, seed=100 + 2 * i, **common)) for i, p in enumerate(pictures)]
    for index, picture in enumerate(together):
        assert difference(picture, lone[index // 2][index % 2]) <= BOUND


def test_each_picture_may_have_its_own_prompt(served: Served):
    pictures, prompts = [scene(1), scene(1)], ["make the sky blue", "pencil sketch"]
    both = pictures_of(served.client.edit(pictures, prompt=prompts, seed=5, num_inference_steps=3))
    for index, prompt in enumerate(prompts):
        [lone] = pictures_of(
            served.client.edit([pictures[index]], prompt=prompt, seed=5 + index, num_inference_steps=3)
        )
        assert difference(both[index], lone) <= BOUND
    assert difference(both[0], both[1]) >= 10 * BOUND


@pytest.mark.parametrize(
    ("size", "shape"), [("auto", (224, 320)), ("original", WIDE[::-1]), ("100x50", (50, 100)), ("128x96", (96, 128))]
)
def test_the_size_is_the_pictures_own_aspect_ratio_or_exactly_what_was_asked_for(served: Served, size, shape):
    response = served.client.edit([scene(1, *WIDE)], prompt="x", size=size, num_inference_steps=1)
    [picture] = pictures_of(response)
    assert picture.shape[:2] == shape
    assert response.json()["data"][0]["size"] == f"{shape[1]}x{shape[0]}"


def test_the_seed_in_the_answer_repeats_the_edit(served: Served):
    first = served.client.edit([scene(1)], prompt="x", num_inference_steps=2)
    seed = first.json()["data"][0]["seed"]
    again = served.client.edit([scene(1)], prompt="x", num_inference_steps=2, seed=seed)
    other = served.client.edit([scene(1)], prompt="x", num_inference_steps=2)
    assert difference(pictures_of(first)[0], pictures_of(again)[0]) <= BOUND
    assert difference(pictures_of(first)[0], pictures_of(other)[0]) >= 10 * BOUND
