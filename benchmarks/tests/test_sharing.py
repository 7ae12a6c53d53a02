"""The rule of sharing alone: the replica that a request goes to."""

from typing import Any

import pytest

from benchmarks.fleet.sharing import View, Work, ranked
from benchmarks.fleet.sharing_router import ReplicaFacts
from benchmarks.fleet.waiting_model import edit_request, picture

TOKENS, STEPS = 64, 10
KNEE = 4 * TOKENS


def work(samples: int = 1, *, steps: int = STEPS, is_alone: bool = False) -> Work:
    return Work(samples * TOKENS, samples * TOKENS * steps, is_alone)


def view(*own: Work, requests: int | None = None, **fields: Any) -> View:
    return View(own, len(own) if requests is None else requests, KNEE, **fields)


IDLE = view()


@pytest.mark.parametrize(
    ("title", "views", "new", "order"),
    [
        ("before an idle one is opened, steps are shared", [IDLE, view(work())], work(), [1, 0]),
        ("the fullest first", [view(work()), view(work(2)), view(work(3)), IDLE], work(), [2, 1, 0, 3]),
        ("up to the knee, and what fills it exactly fits", [IDLE, view(work(2))], work(2), [1, 0]),
        ("not beyond it", [view(work(2)), IDLE], work(3), [1, 0]),
        ("not with one that is alone", [view(work(), work(is_alone=True)), IDLE], work(), [1, 0]),
        ("nor if it must be alone itself", [view(work()), IDLE], work(is_alone=True), [1, 0]),
        ("nor where others have sent something too", [view(work(), requests=2), IDLE], work(), [1, 0]),
        ("else where the least work is, done or not", [view(work(4)), view(work(4, steps=2))], work(4), [1, 0]),
        ("others' requests count like the own", [view(work(4), requests=3), view(work(4), work(4))], work(4), [1, 0]),
        ("or like the new one", [view(requests=3), view(work(4), work(4))], work(4), [1, 0]),
        ("a full one last, however well it shares", [view(work(), has_room=False), IDLE], work(), [1, 0]),
        ("also where all others are busy", [view(has_room=False), view(work(4, steps=99))], work(), [1, 0]),
        ("among full ones as among others", [view(has_room=False), view(work(), has_room=False)], work(), [1, 0]),
        ("equal ones in the order given", [IDLE, IDLE, IDLE], work(), [0, 1, 2]),
    ],
)
def test_the_best_replica_comes_first(title, views, new, order):
    assert ranked(views, new) == order


class TestWork:
    FACTS = ReplicaFacts(native_area=64 * 64, token_side=16, default_steps=7, default_guidance=4.0, knee_tokens=KNEE)

    def of(self, *, alone: bool = False, **fields: Any) -> Work:
        return self.FACTS.work(edit_request(**fields), alone=alone)

    def test_counts_what_the_engine_will(self):
        """Two rows of 2 × 4096 pixels, 256 a token."""
        assert self.of(n=3, num_inference_steps=STEPS) == work(3)
        assert self.of(num_inference_steps=STEPS, guidance_scale=1.0) == Work(32, 32 * STEPS)

    def test_takes_the_models_own_steps_and_guidance_where_none_are_given(self):
        assert self.of(num_inference_steps=None) == work(steps=7)

    def test_says_what_runs_alone(self):
        assert self.of(alone=True).is_alone
        assert not self.of(images=[picture(1), picture(2, 128, 32)]).is_alone
