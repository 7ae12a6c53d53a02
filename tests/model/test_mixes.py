"""Random mixes of edits and generations in shared forwards: each ends as it does alone, beside any neighbours."""

import random
from collections.abc import Sequence

import pytest

from serve_app.engine.scheduler import Sample
from serve_app.images.geometry import Size
from serve_app.models.pipeline import StepwisePipeline
from serve_app.request import EditRequest, Pixels
from tests.model.edits import BOUND, edit, generation, request, samples_of, step
from tests.random_model import build_random_21_model, build_random_model
from tests.scenes import difference, scene

MIXES = 20
NATIVE_AREA = 128 * 128
WORDS = ["make", "the", "sky", "blue", "and", "remove", "people", "变成黑白", "enhance", "every", "colour"]


@pytest.fixture(scope="module", params=[build_random_model, build_random_21_model], ids=["edit", "2.1"])
def model(request: pytest.FixtureRequest) -> StepwisePipeline:
    model: StepwisePipeline = request.param()
    model.register_to_config(native_area=NATIVE_AREA)
    return model


def random_size(draw: random.Random) -> Size:
    """Return a size of 1 to 4 native areas, or less, with an aspect ratio of up to 8 : 1."""
    area, aspect = NATIVE_AREA * 2 ** draw.uniform(-2, 2), 8 ** draw.uniform(-1, 1)
    width = max(16, min(500, round((area * aspect) ** 0.5)))
    return Size(width, max(16, min(500, round(area / width))))


def random_scene(draw: random.Random) -> Pixels:
    size = random_size(draw)
    return scene(draw.randrange(20), size.width, size.height)


def random_request(draw: random.Random, model: StepwisePipeline) -> EditRequest:
    """Return an edit of one picture that looks at up to three more, or a generation, if the model can."""
    prompt = " ".join(draw.choices(WORDS, k=draw.choice([1, 3, 10, 40])))[: draw.choice([1, 20, 400])].strip() or "x"
    fields = {
        "prompt": prompt,
        "seed": draw.randrange(1000),
        "n": draw.choice([1, 1, 2]),
        "size": draw.choice(["auto", "auto", str(random_size(draw))]),
        "num_inference_steps": draw.randint(1, 4),
        "guidance_scale": draw.choice([1.0, 1.0, 4.0, 9.0]),
    }
    if model.generates and draw.random() < 0.4:
        return generation(**fields)
    references = [random_scene(draw) for _ in range(draw.randrange(min(model.max_references, 4)))]
    return request(images=[random_scene(draw)], references=references, **fields)


def run_at_random(model: StepwisePipeline, samples: Sequence[Sample], draw: random.Random) -> set[int]:
    """Step random samples together until all are done. Return the numbers of sizes that the forwards had."""
    sizes: set[int] = set()
    while unfinished := [sample for sample in samples if sample.steps_left]:
        batch = draw.sample(unfinished, draw.randint(min(2, len(unfinished)), len(unfinished)))
        step(model, batch)
        sizes.add(len({sample.shape for sample in batch}))
    return sizes


@pytest.mark.parametrize("seed", range(MIXES))
def test_each_of_a_mix_ends_as_it_does_alone(model, seed):
    draw = random.Random(seed)
    requests = [random_request(draw, model) for _ in range(draw.randint(3, 4))]
    samples = samples_of(model, requests)
    sizes = run_at_random(model, samples, draw)
    assert max(sizes) > 1
    merged = iter(model.decode([sample.state for sample in samples]))
    for each in requests:
        for alone in edit(model, [each]):
            assert difference(next(merged), alone) <= BOUND, each.model_dump(exclude={"images"})
