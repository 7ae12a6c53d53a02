"""How many replicas the open work calls for: the policy that `autoscaling_config` in serve_config.yaml names.

Pure: no Ray, and no clock of its own. Serve's controller asks the policy; benchmarks/scaling.py asks the same object.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

# What a replica reports of its engine, by name.
WORK_S = "work_s"
OPEN_REQUESTS = "open_requests"


@dataclass(frozen=True)
class Load:
    """What is open in the whole deployment, averaged over Serve's `look_back_period_s`.

    `work_s`: seconds of work at the replicas, of `requests` requests; `queued`: requests that no replica has taken yet.
    """

    work_s: float
    requests: float
    queued: float


class OpenWorkPolicy:
    """As many replicas as leave each `target_s` seconds of open work, but never more than there are open requests.

    More replicas only once all of the last `upscale_window_s` called for them, and as few more as any moment of it;
    fewer in the same way over `downscale_window_s`. Serve's own delays look at the last moment alone, so that one quiet
    second at the end of the delay stops every replica but one; set them to 0. Serve applies `min_replicas` and
    `max_replicas` afterwards. Raises ValueError where `target_s` is not positive or a window is negative.
    """

    def __init__(
        self, target_s: float = 60.0, upscale_window_s: float = 30.0, downscale_window_s: float = 600.0
    ) -> None:
        if not target_s > 0 or not upscale_window_s >= 0 or not downscale_window_s >= 0:
            raise ValueError(
                f"target_s ({target_s}) must be more than 0, upscale_window_s ({upscale_window_s}) and "
                f"downscale_window_s ({downscale_window_s}) not less"
            )
        self._target_s = target_s
        self._upscale_window_s = upscale_window_s
        self._downscale_window_s = downscale_window_s
        # (at_s, replicas wanted then), as far back as the longer window.
        self._wanted: deque[tuple[float, int]] = deque()

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Serve's interface: an AutoscalingContext in, the number of replicas and no state of Serve's out."""
        metrics = context.aggregated_metrics or {}
        load = Load(
            work_s=sum(metrics.get(WORK_S, {}).values()),
            requests=sum(metrics.get(OPEN_REQUESTS, {}).values()),
            queued=context.total_queued_requests or 0.0,
        )
        return self.decide(load, replicas=context.target_num_replicas, now_s=context.current_time), {}

    def decide(self, load: Load, *, replicas: int, now_s: float) -> int:
        """The number of replicas from now on, where `replicas` is the number decided last; `now_s` never goes back."""
        if not self._wanted:
            # A new controller knows no past: the present number has to be outvoted for a whole window.
            self._wanted.append((now_s, replicas))
        self._wanted.append((now_s, self._wanted_by(load)))
        return self._settle(replicas, now_s)

    def _wanted_by(self, load: Load) -> int:
        """What the load calls for at this moment. A queued request counts like the mean of those at the replicas."""
        mean_s = load.work_s / load.requests if load.requests > 0 else self._target_s
        for_work = (load.work_s + load.queued * mean_s) / self._target_s
        # A request stays on one replica, so a replica beyond the last request would have nothing to do.
        return math.ceil(min(for_work, load.requests + load.queued))

    def _settle(self, replicas: int, now_s: float) -> int:
        while self._wanted[0][0] < now_s - max(self._upscale_window_s, self._downscale_window_s):
            self._wanted.popleft()
        at_least = min(wanted for at_s, wanted in self._wanted if at_s >= now_s - self._upscale_window_s)
        at_most = max(wanted for at_s, wanted in self._wanted if at_s >= now_s - self._downscale_window_s)
        return min(max(replicas, at_least), at_most)
