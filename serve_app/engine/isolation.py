"""Run a stage over items of several requests so that a failure ends only its own request. No torch, no thread."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

from serve_app.errors import DeviceLost

logger = logging.getLogger("ray.serve")

T = TypeVar("T")
R = TypeVar("R")


def _middle(weights: Sequence[float]) -> int:
    """Return the place that cuts two or more weights into halves whose heavier one is as light as possible."""
    sums = list(accumulate(weights))
    return min(range(1, len(weights)), key=lambda place: (max(sums[place - 1], sums[-1] - sums[place - 1]), -place))


def isolate(
    stage: Callable[[Sequence[T]], R],
    items: Sequence[T],
    *,
    alive: Callable[[T], bool],
    fail: Callable[[T, Exception], None],
    weigh: Callable[[T], float] = lambda item: 1,
    halved: Callable[[Exception, Sequence[T]], None] = lambda error, half: None,
) -> Iterator[tuple[Sequence[T], R]]:
    """Yield (items, result) of every call of `stage` that succeeded.

    If a call fails, its items are retried in halves, by what they `weigh`, down to the single item that fails alone:
    `fail` is called with that item. Items that are not `alive` any more, since another item of their request has
    failed, are skipped. `halved` is called at each halving, with the error and the half that is tried next. Raises
    DeviceLost, after which no call can succeed.
    """
    pending = [items]
    while pending:
        some = [item for item in pending.pop(0) if alive(item)]
        if not some:
            continue
        try:
            result = stage(some)
        except DeviceLost:
            raise
        except Exception as error:
            if len(some) == 1:
                fail(some[0], error)
                continue
            # As text: whoever keeps the error keeps the stage's frames, and with them its tensors.
            logger.warning("A stage failed over %d items (%s); trying halves", len(some), repr(error))
            middle = _middle(list(map(weigh, some)))
            halved(error, some[:middle])
            pending[:0] = [some[:middle], some[middle:]]
        else:
            yield some, result
