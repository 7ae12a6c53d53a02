"""Known traffic through the real application, and every figure at the node's real /metrics after it."""

import time
from collections.abc import Mapping
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from serve_app import EditRequest
from serve_app.deployments.metrics import METRICS
from serve_app.deployments.replica import ImageEditor
from serve_app.errors import DeadlineExceeded, OutOfMemory, Overloaded
from serve_app.images.geometry import Size
from serve_app.request import Pixels
from serve_app.settings import MAX_STEPS, AppSettings, EngineSettings, LimitSettings, ModelSettings
from tests import processes
from tests.cluster.client import pictures_of, png
from tests.cluster.conftest import Served, deploy
from tests.cluster.scrape import Scrape, eventually
from tests.deploy.queries import GPU_METRICS, RAY_METRICS
from tests.scenes import scene
from tests.waiting import wait_until

APP, ROUTE = "metrics", "/metrics-app"
WAIT_S = 60
LONG_S = 30.0
# Four samples in a forward, two paused, four may wait.
ENGINE = EngineSettings(batch_tokens=100_000, max_samples=4, max_paused=2, max_waiting=4)
# So late a deadline that even an edit too large for any memory is begun.
LIMITS = LimitSettings(max_outputs=4, request_timeout_s=1e24, max_area_factor=1e12)

Traffic = tuple[list[Pixels], dict[str, Any]]
# One after the other. The random model's native area is 256 × 256, and 16 pixels square are a token.
SQUARE: Traffic = ([scene(1), scene(2)], {"n": 2, "num_inference_steps": 3})
LANDSCAPE: Traffic = ([scene(3, 256, 128)], {"n": 1, "num_inference_steps": 5})
SMALL: Traffic = ([scene(4)], {"n": 2, "num_inference_steps": 2, "size": "64x128"})
COUNTS = ("waiting_samples", "preparing_samples", "running_samples", "paused_samples")
GAUGES = (*COUNTS, "oldest_waiting_seconds", "work_seconds")
LARGE: dict[str, Any] = {"prompt": "x", "size": "640x640"}


@pytest.fixture(scope="module")
def app(cluster: int, random_model_settings: ModelSettings) -> Served:
    settings = AppSettings(model=random_model_settings, engine=ENGINE, limits=LIMITS)
    return deploy(cluster, settings, APP, ROUTE, replica=ImageEditor)


@pytest.fixture(scope="module")
def timings(app: Served) -> dict[str, float]:
    """Send the known traffic; return the total seconds of each stage by Server-Timing."""
    seconds: dict[str, float] = {}
    for pictures, fields in (SQUARE, LANDSCAPE, SMALL):
        response = app.client.edit(pictures, prompt="x", seed=1, **fields)
        assert len(pictures_of(response)) == len(pictures) * fields["n"]
        for part in response.headers["Server-Timing"].split(", "):
            stage, _, milliseconds = part.partition(";dur=")
            seconds[stage] = seconds.get(stage, 0.0) + float(milliseconds) / 1000
    # Refused by the ingress, by the editor, and by the memory: the noise of such an output has 2.3 GB.
    assert app.client.edit([scene(1)], prompt="x", n=0).status_code == 400
    assert app.client.edit([scene(1)], prompt="字" * 2000).status_code == 400
    [replica] = processes.of(APP, "ImageEditor")
    with processes.limited_memory(replica, 2**30), pytest.raises(OutOfMemory):
        edit(app, size=Size(48_000, 48_000), fit="free")
    return seconds


def edit(app: Served, **fields):
    return app.editor.edit.remote(EditRequest(images=[scene(1)], **{"prompt": "x", **fields})).result()


def send_edit(app: Served, **fields) -> HTTPConnection:
    """Send an edit over HTTP and return its connection, unread."""
    url = f"{app.client.base}/v1/images/edits"
    request = requests.Request("POST", url, files={"images": png(scene(1))}, data=fields).prepare()
    connection = HTTPConnection(str(urlsplit(url).netloc))
    connection.request("POST", request.path_url, request.body, dict(request.headers))
    return connection


def test_every_figure_of_known_traffic(app: Served, timings: dict[str, float]):
    # Square and landscape are of the native size, 64 × 128 is an eighth of it.
    square, landscape, small = ("1", "square"), ("1", "landscape"), ("1/8", "portrait")

    def check(scrape: Scrape) -> None:
        assert scrape.ours("requests_total", "code", "error") == {
            ("OK", ""): 3,
            ("INVALID_INPUT", "InvalidInput"): 1,
            ("GENERATION_ERROR", "OutOfMemory"): 1,
        }
        assert scrape.ours("outputs_total", "model") == {"random-model": 4 + 1 + 2}
        assert scrape.ours("forwards_total", "area", "aspect") == {square: 3, landscape: 5, small: 2}
        assert scrape.ours("sample_steps_total", "area", "aspect") == {square: 4 * 3, landscape: 5, small: 2 * 2}
        # Two rows, since there is guidance; of tokens of the output and as many of the reference: 352 × 192 for 2:1.
        assert scrape.ours("forward_tokens_total", "area", "aspect") == {
            square: 4 * 3 * 2 * (256 + 256),
            landscape: 5 * 2 * (22 * 12 + 22 * 12),
            small: 2 * 2 * 2 * (4 * 8 + 4 * 8),
        }
        assert_histogram(scrape, "forward_samples", {1.0: 5, 2.0: 2, 4.0: 3})
        stages = {"queue", "encode", "denoise", "decode", "serialize"}
        assert scrape.ours("stage_requests_total", "stage") == dict.fromkeys(stages, 3)
        assert scrape.ours("stage_duration_seconds_count", "stage") == dict.fromkeys(stages, 3)
        # Server-Timing has tenths of milliseconds, of three answers.
        assert scrape.ours("stage_seconds_total", "stage") == pytest.approx(timings, abs=3 * 0.05e-3)
        forward_seconds = scrape.ours("forward_seconds_total", "area", "aspect")
        assert set(forward_seconds) == {square, landscape, small}
        assert 0.5 * timings["denoise"] < sum(forward_seconds.values()) <= timings["denoise"]
        assert scrape.ours("knee_tokens", "model") == {"random-model": 100_000}
        for gauge in GAUGES:
            assert scrape.ours(gauge, "model") == {"random-model": 0}
        # Serve's own metric of HTTP.
        assert http_statuses(scrape) == {"200": 3, "400": 2}

    eventually(APP, check)


def assert_histogram(scrape: Scrape, name: str, counts: Mapping[float, int]) -> None:
    """Check the number of observations at each boundary."""
    buckets = scrape.ours(f"{name}_bucket", "le")
    assert len(buckets) > len(counts)
    for boundary, cumulated in buckets.items():
        assert cumulated == sum(count for value, count in counts.items() if value <= float(boundary))
    assert scrape.ours(f"{name}_count", "model") == {"random-model": sum(counts.values())}


def http_statuses(scrape: Scrape) -> dict[Any, float]:
    by_status = scrape.by("ray_serve_num_http_requests_total", "route", "status_code")
    return {status: count for (route, status), count in by_status.items() if route == f"{ROUTE}/v1/images/edits"}


def steps_for(app: Served, seconds: float) -> int:
    """Return how many steps of four LARGE samples take about that long, by two of them; many, if those were slow."""
    two_s = edit(app, n=4, num_inference_steps=2, **LARGE).timings.denoise_s
    return min(MAX_STEPS, max(20, round(2 * seconds / float(two_s))))


def be_late(app: Served) -> None:
    """Begin an edit that can be done before its deadline, and stop the replica until it cannot."""
    [replica] = [psutil.Process(pid) for pid in processes.of(APP, "ImageEditor")]
    four_s = edit(app, num_inference_steps=4).timings.denoise_s
    steps = 40
    request = EditRequest(images=[scene(1)], prompt="x", num_inference_steps=steps)
    timeout_s = 2 * steps / 4 * four_s
    late = app.editor.edit.remote(request, timeout_s=timeout_s)
    wait_until(lambda: app.stats().running == 1, "it runs", WAIT_S)
    replica.suspend()
    time.sleep(timeout_s)
    replica.resume()
    with pytest.raises(DeadlineExceeded):
        late.result()


def test_what_waits_runs_pauses_and_how_it_leaves(app: Served, timings: dict[str, float]):
    # It fills the forward to the end.
    steps = steps_for(app, LONG_S)
    long = app.editor.edit.remote(EditRequest(images=[scene(1)], n=4, num_inference_steps=steps, **LARGE))
    wait_until(lambda: app.stats().running == 4, "the forward is full", WAIT_S)
    # It has less work, so it goes first, and two of the four pause. Then there is no room to encode more.
    leaving = send_edit(app, n=2, num_inference_steps=steps, **LARGE)
    wait_until(lambda: app.stats().paused == 2, "two pause", WAIT_S)
    since = time.monotonic()
    waiting = app.editor.edit.remote(EditRequest(images=[scene(1)], n=3, num_inference_steps=steps, **LARGE))
    wait_until(lambda: app.stats().waiting == 3, "three wait", WAIT_S)
    with pytest.raises(Overloaded):
        edit(app, n=2, num_inference_steps=steps, **LARGE)

    def check_gauges(scrape: Scrape) -> None:
        gauges = {gauge: scrape.ours(gauge, "model")["random-model"] for gauge in GAUGES}
        assert [gauges[count] for count in COUNTS] == [3, 0, 4, 2]
        assert 0 < gauges["oldest_waiting_seconds"] < time.monotonic() - since
        assert 0.5 * app.stats().work_s < gauges["work_seconds"] < 2 * app.stats().work_s

    eventually(APP, check_gauges)
    waiting.cancel()
    leaving.close()
    long.cancel()
    wait_until(lambda: app.stats().open_requests == 0, "all have left", WAIT_S)
    be_late(app)

    def check(scrape: Scrape) -> None:
        assert scrape.ours("requests_total", "code") == {
            "OK": 5, "INVALID_INPUT": 1, "GENERATION_ERROR": 1, "OVERLOADED": 1, "CANCELLED": 3, "TIMEOUT": 1,
        }  # fmt: skip
        stats = app.stats()
        assert sum(scrape.ours("forwards_total", "model").values()) == stats.forwards
        assert sum(scrape.ours("sample_steps_total", "model").values()) == stats.sample_steps
        # The largest class holds all that is larger.
        assert ("4", "square") in scrape.ours("forwards_total", "area", "aspect")
        for gauge in GAUGES:
            assert scrape.ours(gauge, "model") == {"random-model": 0}
        assert scrape.ours("outputs_total", "model") == {"random-model": 7 + 4 + 1}

    eventually(APP, check)
    stats = app.stats()
    assert (stats.refused, stats.cancelled, stats.expired, stats.failed) == (1, 3, 1, 1)


def test_every_name_exists_that_the_table_the_dashboard_and_the_alerts_use(timings: dict[str, float]):
    ours = {name for metric in METRICS for name in metric.exported}
    # No replica dies here, and its model has no prefixes: test_deaths.py and test_qwen_image_21.py check these.
    others = [metric for metric in METRICS if metric.name == "retries" or metric.name.startswith("prefix_")]
    elsewhere = {name for metric in others for name in metric.exported}

    def check(scrape: Scrape) -> None:
        assert ours - elsewhere - GPU_METRICS - scrape.names == set()
        assert RAY_METRICS - GPU_METRICS - scrape.names == set()
        # Nothing is exported under our name that the table lacks.
        assert {name for name in scrape.names if name.startswith("ray_image_edits_")} <= ours

    eventually(APP, check)
