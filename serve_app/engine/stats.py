"""The counters of an engine and of its model."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start, and gauges of the engine's present load.

    `sample_steps` / `forwards`: the mean batch. `shared_forwards`: forwards with samples of more than one request.
    `work_s`: seconds that the remaining steps of the `open_requests` take at the present rate.
    """

    requests: int = 0
    samples: int = 0
    forwards: int = 0
    sample_steps: int = 0
    shared_forwards: int = 0
    encoded_images: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    failed: int = 0
    refused: int = 0
    preparing: int = 0
    """Waiting samples whose pictures are being prepared."""
    waiting: int = 0
    running: int = 0
    paused: int = 0
    open_requests: int = 0
    work_s: float = 0.0
    oldest_waiting_s: float = 0.0
    """Age of the oldest request with a waiting sample."""


@dataclass(slots=True)
class PrefixStats:
    """Prefixes of pictures that edits took over, since the start, and the present bytes of those that are kept.

    `saved_s`: seconds that computing them again would have taken.
    """

    hits: int = 0
    misses: int = 0
    saved_s: float = 0.0
    bytes: int = 0
