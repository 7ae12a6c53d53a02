"""The whole measurement, from traces to the page, against servers that answer at once."""

import base64
import gc
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import PIL.Image
import pytest

from benchmarks.edits import Effort, mixed, photos, plain, png, scene, with_presets
from benchmarks.load import generator
from benchmarks.load.aims import aims
from benchmarks.load.baseline import BASELINE
from benchmarks.load.bench import Results, add_photos, add_presets, bench
from benchmarks.load.contender import CONTENDERS, DIRECT, Contender
from benchmarks.load.loads import MIXED, PRESETS, preset_loads
from benchmarks.load.measures import Counts
from benchmarks.load.report import PLOT, Conditions, page, plot
from benchmarks.load.traces import Arrival, Trace
from serve_app.images.geometry import Size

EFFORT = Effort(plain=1, few=1, many=2, side=16, photo_side=16)


class _Handler(BaseHTTPRequestHandler):
    """A handler that answers with `n` pictures, and with 500 to the prompt "fail"."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        variants = int((re.search(rb'name="n"\r\n\r\n(\d+)', body) or [b"", b"0"])[1])
        picture = base64.b64encode(png(scene(1, Size(16, 16)))).decode()
        answer = json.dumps({"data": [{"b64_json": picture}] * variants}).encode()
        self.send_response(500 if b"\r\n\r\nfail\r\n" in body else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _small_heap() -> Iterator[None]:
    """Keep the modules that other tests loaded out of the garbage collection before each measurement."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def base_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass(frozen=True)
class FakeServer:
    """A server over HTTP, without a process behind it."""

    contender: Contender
    base_url: str

    def resumed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def call(self, command: str, /) -> float:
        return {"saturate": 5.0}[command]

    def counts(self) -> Counts:
        return Counts(10, 20)

    def peak_bytes(self) -> int:
        return 2**30


def measure(contenders: Sequence[Contender], base_url: str) -> Results:
    servers = [FakeServer(contender, base_url) for contender in contenders]
    options: dict[str, Any] = {"seconds": 0.02, "burst": 4, "rounds": 2, "log": lambda text: None}
    results = bench(servers, plain(EFFORT), mixed(EFFORT), **options)
    results = add_presets(results, servers, with_presets(EFFORT), burst=4, rounds=2, log=options["log"])
    for_photos = [server for server in servers if server.contender.speaks_http and server.contender.loads is None]
    return add_photos(results, for_photos, photos(EFFORT), **options)


@pytest.mark.slow
def test_every_contender_is_measured_under_its_loads_and_the_page_says_so(base_url, tmp_path):
    baseline = Contender(BASELINE, "ours at 0123abc", "our server as of commit 0123abc", "ours")
    contenders = [*CONTENDERS, baseline, DIRECT]
    results = measure(contenders, base_url)
    for name, figures in results.figures.items():
        expected = {one.name for one in contenders[:-1] if one.loads is None or name in one.loads}
        if name.startswith(PRESETS):
            expected = {"step"}
        assert set(figures) == expected
        assert all(some.difference == 0 and some.failures == 0 for some in figures.values())
    conditions = Conditions(
        "python -m benchmarks",
        "tiny",
        "2 cores",
        "Python",
        threads=2,
        rounds=2,
        plain_steps=1,
        side=64,
        photo_side=64,
        minutes=1,
    )
    text = page(results, contenders, conditions)
    for contender in contenders:
        assert contender.title in text
    for load in preset_loads(with_presets(EFFORT), 4):
        assert f"\n## {load.title}\n" in text
    assert len(aims(results)) == 14
    plot(results, contenders, tmp_path / PLOT)
    with PIL.Image.open(tmp_path / PLOT) as picture:
        assert picture.width > 500


def test_without_the_naive_ones_the_aims_about_them_are_left_out(base_url):
    results = measure([one for one in CONTENDERS if one.name in ("step", "lock")] + [DIRECT], base_url)
    assert MIXED in results.figures
    texts = [aim.text for aim in aims(results)]
    assert len(texts) == 7
    assert not any("naive" in text or "FIFO" in text or "baseline" in text for text in texts)


def test_answers_come_in_the_order_of_arrivals_and_a_refused_edit_has_no_pictures(base_url):
    one, two = plain(EFFORT)[:2]
    edits = [one, replace(two, prompt="fail"), replace(two, n=3)]
    trace = Trace((Arrival(0.0, 0), Arrival(0.01, 1), Arrival(0.02, 2), Arrival(0.02, 0)))
    answers = generator.run(base_url, trace, edits)
    assert [answer.kind for answer in answers] == [0, 1, 2, 0]
    assert [None if answer.pictures is None else len(answer.pictures) for answer in answers] == [1, None, 3, 1]
    assert all(answer.due_s <= answer.sent_s <= answer.done_s for answer in answers)


def test_one_caller_sends_after_each_answer(base_url):
    answers = generator.run(base_url, Trace((Arrival(0.0, 0),) * 3, waits=True), plain(EFFORT))
    for before, after in pairwise(answers):
        assert after.due_s >= before.done_s
