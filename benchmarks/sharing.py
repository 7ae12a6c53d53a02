"""Which replica shares its steps with a new request soonest, by what a router can know. Pure.

The real router (benchmarks/sharing_router.py) and the simulated one (benchmarks/fleet.py) ask the same function.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from serve_app.engine.scheduler import QueuedRequest, Shape


@dataclass(frozen=True, slots=True)
class Work:
    """A request as it was when it was sent: the tokens of one step of all its samples, and of all their steps.

    `shape`: None where it shares no step: its samples differ in shape, or it must be alone.
    """

    shape: Shape | None
    step_tokens: int
    all_tokens: int

    @classmethod
    def of(cls, entry: QueuedRequest) -> "Work":
        shapes = {sample.shape for sample in entry.samples}
        shape = None if entry.alone or len(shapes) > 1 else shapes.pop()
        return cls(shape, sum(sample.tokens for sample in entry.samples), entry.work_tokens)


@dataclass(frozen=True, slots=True)
class View:
    """A replica as a router sees it.

    own: what this router sent it and is not answered yet · requests: how many it has, of all senders · knee_tokens:
    up to which a forward takes more samples for nothing · has_room: whether it takes one more request now
    """

    own: tuple[Work, ...]
    requests: int
    knee_tokens: int
    has_room: bool = True


def ranked(views: Sequence[View], new: Work) -> list[int]:
    """Indexes of the replicas, the best first; equal ones in the order given.

    Those with room before the full ones. Among them, those whose forwards take the new request for nothing, the fullest
    first; then those with the least work, as far as known.
    """

    def place(index: int) -> tuple[bool, bool, float]:
        view = views[index]
        if _joins_free(view, new):
            return not view.has_room, False, -sum(one.step_tokens for one in view.own)
        return not view.has_room, True, _guessed_tokens(view, new)

    return sorted(range(len(views)), key=place)


def _joins_free(view: View, new: Work) -> bool:
    """As far as known: all that the replica has is `own`, of the new one's shape, and the knee leaves room."""
    if new.shape is None or not view.own or len(view.own) < view.requests:
        return False
    if any(one.shape != new.shape for one in view.own):
        return False
    return sum(one.step_tokens for one in (*view.own, new)) <= view.knee_tokens


def _guessed_tokens(view: View, new: Work) -> float:
    """Others' requests count like the mean of the own ones, or like the new one."""
    known = [one.all_tokens for one in view.own]
    mean = fmean(known) if known else new.all_tokens
    return sum(known) + max(0, view.requests - len(known)) * mean
