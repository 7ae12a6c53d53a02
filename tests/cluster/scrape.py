"""The metrics that a node exports at /metrics."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import requests
from prometheus_client.parser import text_string_to_metric_families

WAIT_S = 60


@dataclass(frozen=True)
class Scrape:
    """The values at /metrics of one application, by name, then by the labels asked for."""

    application: str
    samples: tuple[tuple[str, Mapping[str, str], float], ...]

    @classmethod
    def of(cls, application: str) -> "Scrape":
        [node] = [node for node in ray.nodes() if node["Alive"]]
        text = requests.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=WAIT_S).text
        families = text_string_to_metric_families(text)
        return cls(application, tuple((s.name, s.labels, s.value) for family in families for s in family.samples))

    @property
    def names(self) -> set[str]:
        return {name for name, _, _ in self.samples}

    def by(self, name: str, *labels: str) -> dict[Any, float]:
        """Return the application's values of `name`, added up by one label or by several."""
        sums: dict[Any, float] = {}
        for found, tags, value in self.samples:
            if found == name and tags.get("application") == self.application:
                key = tags[labels[0]] if len(labels) == 1 else tuple(tags[label] for label in labels)
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def ours(self, name: str, *labels: str) -> dict[Any, float]:
        return self.by(f"ray_image_edits_{name}", *labels)


def eventually(application: str, check: Callable[[Scrape], None]) -> Scrape:
    """Return the first scrape that passes: figures arrive seconds after the events that they count."""
    deadline = time.monotonic() + WAIT_S
    while True:
        scrape = Scrape.of(application)
        try:
            check(scrape)
            return scrape
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)
