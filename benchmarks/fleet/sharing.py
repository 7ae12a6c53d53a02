"""The rule of sharing: which replica shares its steps with a new request soonest, from what a router can see. Pure.

The real router (benchmarks/fleet/sharing_router.py) and the simulated one (benchmarks/fleet/routers.py) use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from serve_app.engine.scheduler import QueuedRequest


@dataclass(frozen=True, slots=True)
class Work:
    """A request when it was sent: the tokens of one step of all its samples, and of all their steps.

    `is_alone`: whether it shares no step, since it must run alone.
    """

    step_tokens: int
    all_tokens: int
    is_alone: bool = False

    @classmethod
    def of(cls, entry: QueuedRequest) -> "Work":
        return cls(sum(sample.tokens for sample in entry.samples), round(entry.work_flops), entry.alone)


@dataclass(frozen=True, slots=True)
class View:
    """A replica as a router sees it.

    `own`: requests from this router that are not answered yet. `requests`: the number it has, of all routers.
    `knee_tokens`: up to these a forward takes more samples for nothing. `has_room`: whether it takes one more request.
    """

    own: tuple[Work, ...]
    requests: int
    knee_tokens: int
    has_room: bool = True


def ranked(views: Sequence[View], new: Work) -> list[int]:
    """Return the indexes of the replicas, the best first; equal ones in the order given.

    Replicas with room come before full ones. Among them, replicas whose forwards take the new request for nothing come
    first, the fullest of them before the others; then the replicas with the least work, as far as it is visible.
    """

    def place(index: int) -> tuple[bool, bool, float]:
        view = views[index]
        if _joins_free(view, new):
            return not view.has_room, False, -sum(one.step_tokens for one in view.own)
        return not view.has_room, True, _guessed_tokens(view, new)

    return sorted(range(len(views)), key=place)


def _joins_free(view: View, new: Work) -> bool:
    """Return whether the replica has nothing but `own`, none of which is alone, and room below the knee."""
    if not view.own or len(view.own) < view.requests or any(one.is_alone for one in (*view.own, new)):
        return False
    return sum(one.step_tokens for one in (*view.own, new)) <= view.knee_tokens


def _guessed_tokens(view: View, new: Work) -> float:
    """Return the open tokens, with others' requests counted like the mean of the own ones, or like the new one."""
    known = [one.all_tokens for one in view.own]
    mean = fmean(known) if known else new.all_tokens
    return sum(known) + max(0, view.requests - len(known)) * mean
