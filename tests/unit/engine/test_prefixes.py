"""Prefixes of edits in flight: their memory, and the time of those that join, bound what joins, in order."""

import math

from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import Policy, QueuedRequest, Sample, StepCost, expand, plan
from serve_app.errors import InvalidInput
from serve_app.images.geometry import Geometry
from serve_app.request import EditRequest, GenerationRequest
from tests.engines import engine
from tests.fakes import ArithmeticPipeline, edit_request, picture

GEOMETRY = Geometry(64 * 64, 16)
COST = StepCost(1.0, 0.0, has_prefix=True, kept_per_token=10)
# Of one picture of 64 × 64 pixels.
KEPT = 160


def policy(kept_bytes: float) -> Policy:
    return Policy(
        max_samples=8,
        batch_tokens=10**9,
        max_paused=0,
        join="step",
        order="fifo",
        aging=0.1,
        seconds_per_flop=1e-3,
        kept_bytes=kept_bytes,
    )


def queued(sequence: int, references: int = 0, n: int = 1, images: int = 1) -> QueuedRequest:
    request = EditRequest(
        images=[picture(1)] * images, references=[picture(2)] * references, prompt="x", n=n, num_inference_steps=4
    )
    return expand(request, GEOMETRY, SamplingDefaults(4, 1.0), cost=COST, sequence=sequence)


def join(samples: list[Sample]) -> list[int]:
    """Encode the samples, and return the numbers of their requests."""
    for sample in samples:
        sample.encoded = True
    return [sample.request.sequence for sample in samples]


def test_a_sample_keeps_as_much_as_its_references_have_tokens():
    assert queued(0).samples[0].kept_bytes == KEPT
    assert queued(0, references=2).samples[0].kept_bytes == 3 * KEPT


def test_as_many_join_as_there_is_memory_for():
    requests = [queued(sequence) for sequence in range(4)]
    assert join(plan(requests, policy(2 * KEPT), 0)) == [0, 1]
    assert join(plan(requests, policy(2 * KEPT), 0)) == [0, 1]
    requests[0].samples.clear()
    assert join(plan(requests, policy(2 * KEPT), 0)) == [1, 2]


def test_variants_share_it_and_images_do_not():
    assert join(plan([queued(0, n=3), queued(1)], policy(2 * KEPT), 0)) == [0, 0, 0, 1]
    assert join(plan([queued(0, images=3), queued(1)], policy(2 * KEPT), 0)) == [0, 0]


def test_one_picture_always_fits():
    assert join(plan([queued(0, references=3)], policy(KEPT), 0)) == [0]


def test_a_large_one_is_not_passed_by_small_ones_behind_it():
    requests = [queued(0), queued(1, references=2), queued(2)]
    assert join(plan(requests, policy(3 * KEPT), 0)) == [0]
    requests[0].samples.clear()
    assert join(plan(requests, policy(3 * KEPT), 0)) == [1]


def test_what_keeps_nothing_is_not_held_up():
    free = expand(edit_request(1, num_inference_steps=4), GEOMETRY, SamplingDefaults(4, 1.0), sequence=3)
    assert free.samples[0].kept_bytes == 0
    assert join(plan([queued(0), queued(1), free], policy(KEPT), 0)) == [0, 3]
    assert join(plan([queued(0), queued(1)], policy(math.inf), 0)) == [0, 1]


def test_a_step_waits_for_prefixes_no_longer_than_it_takes_itself_or_for_one():
    # A reference runs through the transformer as an output does, so three steps are as long as three prefixes.
    running, waiting = queued(0, n=3), [queued(sequence) for sequence in range(1, 6)]
    assert join(plan([running], policy(math.inf), 0)) == [0, 0, 0]
    assert join(plan([running, *waiting], policy(math.inf), 0)) == [0, 0, 0, 1, 2, 3]
    large = [queued(7, references=9), queued(8)]
    assert join(plan([running, *large], policy(math.inf), 0)) == [0, 0, 0, 7]


def test_nothing_waits_for_the_prefixes_of_an_idle_engine():
    assert join(plan([queued(sequence) for sequence in range(8)], policy(math.inf), 0)) == list(range(8))


class KeepingPipeline(ArithmeticPipeline):
    @property
    def step_cost(self) -> StepCost:
        return COST


def test_references_that_would_not_fit_even_alone_are_refused_before_they_cost_anything():
    pipeline = KeepingPipeline()
    with engine(pipeline, kept_bytes=2 * KEPT) as running:
        fits, large = running.submit([edit_request(1), edit_request(2, references=[picture(3)] * 2)])
        assert not isinstance(fits, Exception)
        assert isinstance(large, InvalidInput)
        assert large.param == "references"
        assert "send fewer, or ask for a smaller size" in large.message
        fits.result(20)
    assert len(pipeline.encoded) == 1


# --- of a text alone ----------------------------------------------------------------------------------------------


def generated(sequence: int, words: int, n: int = 1, guidance: float = 1.0) -> QueuedRequest:
    request = GenerationRequest(prompt="x " * words, n=n, negative_prompt="blurry", guidance_scale=guidance)
    return expand(
        request,
        GEOMETRY,
        SamplingDefaults(4, 1.0),
        cost=COST,
        count_tokens=lambda text: len(text.split()),
        sequence=sequence,
    )


def test_a_generation_keeps_as_much_as_its_texts_have_tokens():
    [sample] = generated(0, words=16).samples
    assert sample.kept_bytes == KEPT
    assert generated(0, words=16, guidance=2.0).samples[0].kept_bytes == KEPT + 10
    cost = StepCost(2.0, 3.0, has_prefix=True)
    assert cost.of_text(5) == 2 * 5 + 3 * 25
    assert sample.prefill_flops == COST.of_text(16) > 0
    assert StepCost(2.0, 3.0).of_text(5) == 0


def test_generations_join_as_there_is_memory_and_variants_share_it():
    requests = [generated(0, words=16, n=2), queued(1), generated(2, words=16)]
    assert join(plan(requests, policy(2 * KEPT), 0)) == [0, 0, 1]
    requests[0].samples.clear()
    assert join(plan(requests, policy(2 * KEPT), 0)) == [1, 2]


def test_a_text_that_would_not_fit_even_alone_is_refused():
    with engine(KeepingPipeline(), kept_bytes=KEPT) as running:
        answers = running.submit([GenerationRequest(prompt="x " * words, num_inference_steps=4) for words in (15, 17)])
    assert not isinstance(answers[0], Exception)
    assert isinstance(answers[1], InvalidInput)
    assert answers[1].param == "prompt"
    assert "shorten" in answers[1].message
