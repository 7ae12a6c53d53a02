"""The autoscaling policy that `autoscaling_config` in serve_config.yaml names: replicas follow the open work.

Pure, without Ray and without a clock: Serve's controller and benchmarks/fleet/scaling.py call the same class.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

# The names of the figures that a replica reports.
WORK_S = "work_s"
OPEN_REQUESTS = "open_requests"


@dataclass(frozen=True)
class Load:
    """The open work of the whole deployment, averaged over Serve's `look_back_period_s`.

    `work_s`: seconds of work of the requests at the replicas, of which there are `requests`; `queued`: requests that no
    replica has accepted yet.
    """

    work_s: float
    requests: float
    queued: float


class OpenWorkPolicy:
    """A policy for Serve: `target_s` seconds of open work for each replica, and no more replicas than open requests.

    It adds replicas only if every moment of the last `upscale_window_s` called for more, and adds the fewest that any
    of these moments called for; it removes replicas in the same way over `downscale_window_s`. Set Serve's own delays
    to 0: they count only the last moment, so that one quiet second at the end of a delay stops every replica but one.
    Serve applies `min_replicas` and `max_replicas` afterwards.

    Raises ValueError if `target_s` is not positive or a window is negative.
    """

    def __init__(
        self, target_s: float = 60.0, upscale_window_s: float = 30.0, downscale_window_s: float = 600.0
    ) -> None:
        if not target_s > 0 or not upscale_window_s >= 0 or not downscale_window_s >= 0:
            raise ValueError(
                f"target_s ({target_s}) must be more than 0, upscale_window_s ({upscale_window_s}) and "
                f"downscale_window_s ({downscale_window_s}) at least 0"
            )
        self._target_s = target_s
        self._upscale_window_s = upscale_window_s
        self._downscale_window_s = downscale_window_s
        # (time, replicas wanted at that time), as far back as the longer window.
        self._wanted: deque[tuple[float, int]] = deque()

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas for Serve's AutoscalingContext, and no state for Serve to keep."""
        metrics = context.aggregated_metrics or {}
        load = Load(
            work_s=sum(metrics.get(WORK_S, {}).values()),
            requests=sum(metrics.get(OPEN_REQUESTS, {}).values()),
            queued=context.total_queued_requests or 0.0,
        )
        return self.decide(load, replicas=context.target_num_replicas, now_s=context.current_time), {}

    def decide(self, load: Load, *, replicas: int, now_s: float) -> int:
        """Return the number of replicas from now on. `replicas`: the last decision; `now_s` never decreases."""
        if not self._wanted:
            # A new controller has no history, so the present number counts as wanted until a whole window has passed.
            self._wanted.append((now_s, replicas))
        self._wanted.append((now_s, self._replicas_for(load)))
        return self._apply_windows(replicas, now_s)

    def _replicas_for(self, load: Load) -> int:
        """Return the replicas that the load alone calls for; a queued request counts as the mean of the others."""
        mean_s = load.work_s / load.requests if load.requests > 0 else self._target_s
        for_work = (load.work_s + load.queued * mean_s) / self._target_s
        # A request stays on one replica, so a replica beyond the last request would have nothing to do.
        return math.ceil(min(for_work, load.requests + load.queued))

    def _apply_windows(self, replicas: int, now_s: float) -> int:
        while self._wanted[0][0] < now_s - max(self._upscale_window_s, self._downscale_window_s):
            self._wanted.popleft()
        at_least = min(wanted for at_s, wanted in self._wanted if at_s >= now_s - self._upscale_window_s)
        at_most = max(wanted for at_s, wanted in self._wanted if at_s >= now_s - self._downscale_window_s)
        return min(max(replicas, at_least), at_most)
