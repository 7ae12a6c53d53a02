"""The application's own metrics, for Prometheus through Ray: the table METRICS, and the classes that record them.

The sum of a histogram is wrong in Ray (2.60), whose agent computes it from the middles of the buckets. So each
histogram here has two counters beside it, the exact sum and the exact count of what was observed.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ray.serve import metrics as serve_metrics

from serve_app.engine.scheduler import Sample
from serve_app.engine.stats import EngineStats, PrefixStats
from serve_app.errors import EditError
from serve_app.images.geometry import Size
from serve_app.request import EditResult

SAMPLE_PERIOD_S = 1.0
"""Time between two readings of the gauges, such as the queue and the memory."""

# Bounds of the labels `area` and `aspect`, so that they have few values whatever callers send.
_AREA_EXPONENTS = (-4, 2)
_MAX_SQUARE_ASPECT = 1.1


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `labels`: besides those of every metric, which are model, application, deployment and replica."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names of the metric at /metrics."""
        endings = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        return tuple(f"ray_image_edits_{self.name}{ending}" for ending in endings[self.kind])


_SHAPE = ("area", "aspect")
_SAMPLES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 64)
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600)

EDITOR_METRICS = (
    Metric("waiting_samples", "gauge", "samples accepted and not yet encoded"),
    Metric("preparing_samples", "gauge", "waiting samples whose images are being prepared for the model"),
    Metric("running_samples", "gauge", "samples in the present forward"),
    Metric("paused_samples", "gauge", "samples encoded, and not in the present forward"),
    Metric("oldest_waiting_seconds", "gauge", "age of the oldest request with a waiting sample; 0 if none is waiting"),
    Metric("work_seconds", "gauge", "seconds that the remaining steps of open requests take; autoscaling uses it"),
    Metric("knee_tokens", "gauge", "tokens of a forward beyond which it gains no throughput: measured, or as set"),
    Metric(
        "gpu_memory_bytes", "gauge", "`allocated` by tensors, `reserved` by PyTorch, `total`; only on CUDA", ("kind",)
    ),
    Metric("prefix_bytes", "gauge", "memory of prefixes kept for later edits of the same images; Qwen-Image-2.1"),
    Metric("prefix_hits", "counter", "edits that took over the prefix of their images; Qwen-Image-2.1"),
    Metric("prefix_misses", "counter", "edits whose images had no prefix yet; Qwen-Image-2.1"),
    Metric("prefix_saved_seconds", "counter", "seconds of prefill that were saved; Qwen-Image-2.1"),
    Metric("requests", "counter", "requests that have ended, by how they ended: see below", ("code", "error")),
    Metric("outputs", "counter", "output pictures returned"),
    Metric("forwards", "counter", "forwards of the transformer", _SHAPE),
    Metric("sample_steps", "counter", "steps of samples: the samples of all forwards, added up", _SHAPE),
    Metric("forward_tokens", "counter", "tokens of all forwards", _SHAPE),
    Metric("forward_seconds", "counter", "seconds in forwards", _SHAPE),
    Metric("forward_samples", "histogram", "samples of a forward", boundaries=_SAMPLES),
)
# The ingress records the stage `serialize`, the editor the others.
STAGE_METRICS = (
    Metric("stage_seconds", "counter", "seconds of answered requests in a stage", ("stage",)),
    Metric("stage_requests", "counter", "requests that went through a stage", ("stage",)),
    Metric("stage_duration_seconds", "histogram", "seconds of a request in a stage", ("stage",), _SECONDS),
)
# Recorded by the deployment that sends edits to replicas, EditIngress.
RETRY_METRICS = (Metric("retries", "counter", "further attempts at an edit whose replica died or stopped"),)
METRICS = EDITOR_METRICS + STAGE_METRICS + RETRY_METRICS


class _Recorder:
    """The metrics of a table as Ray's objects, thread-safe. Create it in a replica, so that Serve adds its labels."""

    def __init__(self, table: Sequence[Metric], model: str) -> None:
        self._instruments = {metric.name: _create_instrument(metric, model) for metric in table}

    def set(self, name: str, value: float, **labels: str) -> None:
        self._instruments[name].set(value, labels)

    def add(self, name: str, value: float, **labels: str) -> None:
        # Ray rejects an increment of 0, which a duration may be on a coarse clock.
        if value > 0:
            self._instruments[name].inc(value, labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._instruments[name].observe(value, labels)

    def record_stage(self, stage: str, seconds: float) -> None:
        self.add("stage_seconds", seconds, stage=stage)
        self.add("stage_requests", 1, stage=stage)
        self.observe("stage_duration_seconds", seconds, stage=stage)


def _create_instrument(metric: Metric, model: str) -> Any:
    name, keys = f"image_edits_{metric.name}", ("model", *metric.labels)
    if metric.kind == "histogram":
        instrument = serve_metrics.Histogram(name, metric.meaning, list(metric.boundaries), keys)
    elif metric.kind == "counter":
        instrument = serve_metrics.Counter(name, metric.meaning, keys)
    else:
        instrument = serve_metrics.Gauge(name, metric.meaning, keys)
    instrument.set_default_tags({"model": model})
    return instrument


class EditorMetrics:
    """The metrics of an ImageEditor replica. `native_area`: the model's native area, in pixels."""

    def __init__(self, model: str, native_area: int) -> None:
        self._recorder = _Recorder(EDITOR_METRICS + STAGE_METRICS, model)
        self._native_area = native_area
        self._prefixes = PrefixStats()

    def record_forward(self, samples: Sequence[Sample], seconds: float) -> None:
        """Record a forward. Called on the engine's thread."""
        shape = forward_labels([sample.shape.output for sample in samples], self._native_area)
        self._recorder.add("forwards", 1, **shape)
        self._recorder.add("sample_steps", len(samples), **shape)
        self._recorder.add("forward_tokens", sum(sample.tokens for sample in samples), **shape)
        self._recorder.add("forward_seconds", seconds, **shape)
        self._recorder.observe("forward_samples", len(samples))

    @contextmanager
    def count_request(self) -> Iterator[None]:
        """Count a request, by how it ends."""
        code, error = "OK", ""
        try:
            yield
        except EditError as raised:
            code, error = raised.code, type(raised).__name__
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except Exception as raised:
            code, error = EditError.code, type(raised).__name__
            raise
        finally:
            self._recorder.add("requests", 1, code=code, error=error)

    def record_result(self, result: EditResult) -> None:
        """Record the outputs of a finished request, and the duration of its stages."""
        self._recorder.add("outputs", sum(len(variants) for variants in result.pixels))
        for stage, seconds in asdict(result.timings).items():
            self._recorder.record_stage(stage.removesuffix("_s"), seconds)

    def set_gauges(self, stats: EngineStats, knee_tokens: int, memory: Mapping[str, int]) -> None:
        """Set the gauges to their values at this moment; `memory`: bytes by kind."""
        self._recorder.set("waiting_samples", stats.waiting)
        self._recorder.set("preparing_samples", stats.preparing)
        self._recorder.set("running_samples", stats.running)
        self._recorder.set("paused_samples", stats.paused)
        self._recorder.set("oldest_waiting_seconds", stats.oldest_waiting_s)
        self._recorder.set("work_seconds", stats.work_s)
        self._recorder.set("knee_tokens", knee_tokens)
        for kind, size in memory.items():
            self._recorder.set("gpu_memory_bytes", size, kind=kind)

    def record_prefixes(self, stats: PrefixStats) -> None:
        """Record what has changed since the last call."""
        self._recorder.set("prefix_bytes", stats.bytes)
        for name, now, before in (
            ("prefix_hits", stats.hits, self._prefixes.hits),
            ("prefix_misses", stats.misses, self._prefixes.misses),
            ("prefix_saved_seconds", stats.saved_s, self._prefixes.saved_s),
        ):
            self._recorder.add(name, now - before)
        self._prefixes = stats


class IngressMetrics:
    """The metrics of an EditIngress replica besides Serve's own."""

    def __init__(self, model: str) -> None:
        self._recorder = _Recorder(STAGE_METRICS + RETRY_METRICS, model)

    def count_retry(self) -> None:
        """Count a further attempt at an edit."""
        self._recorder.add("retries", 1)

    def record_serialization(self, seconds: float) -> None:
        """Record the seconds spent on building the response to an edit."""
        self._recorder.record_stage("serialize", seconds)


def forward_labels(sizes: Sequence[Size], native_area: int) -> dict[str, str]:
    """Return the labels of a forward: those of its outputs' sizes, and `mixed` where these differ."""
    each = [shape_labels(size, native_area) for size in sizes]
    values = {label: {labels[label] for labels in each} for label in each[0]}
    return {label: min(found) if len(found) == 1 else "mixed" for label, found in values.items()}


def shape_labels(size: Size, native_area: int) -> dict[str, str]:
    """Return the labels of an output size.

    `area`: in native areas, the nearest power of two from 1/16 to 4; `aspect`: portrait, square or landscape.
    """
    least, most = _AREA_EXPONENTS
    exponent = min(max(round(math.log2(size.pixels / native_area)), least), most)
    area = str(2**exponent) if exponent >= 0 else f"1/{2**-exponent}"
    if size.aspect_ratio <= _MAX_SQUARE_ASPECT:
        return {"area": area, "aspect": "square"}
    return {"area": area, "aspect": "landscape" if size.width > size.height else "portrait"}
