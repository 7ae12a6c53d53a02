"""Edits of a few pictures by callers that often leave, on a miniature of Qwen-Image-2.1 that shares prefixes."""

import gc
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.engine.calibration import calibrate
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.sampling import SamplingDefaults
from serve_app.errors import EditError
from serve_app.images.pixels import finish_alpha
from serve_app.models.prefix_cache import PrefixCache
from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from serve_app.request import EditRequest, Pixels
from serve_app.settings import EngineSettings
from tests.model.edits import BOUND, edit, request, samples_of
from tests.random_model import build_random_21_model
from tests.scenes import difference, scene
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECONDS = 45
TIMEOUT_S = 300
CALLERS = ("ann", "ann", "bob", "bob", "cid")
PICTURES = [scene(seed, *size) for seed, size in enumerate([(64, 64), (96, 64), (64, 128)])]
LEAVING = 0.3
_MOST_GROWTH = 1.10


def edits() -> list[EditRequest]:
    """Return edits of few pictures, with one to eight references, prompts of two lengths, and guidance or none."""
    draw = random.Random(1)
    return [
        request(
            images=[picture],
            references=(PICTURES * 3)[:references],
            prompt=prompt,
            seed=draw.randrange(100),
            num_inference_steps=draw.randint(2, 5),
            guidance_scale=draw.choice([1.0, 1.0, 3.0]),
            size="64x64",
        )
        for picture in PICTURES
        for references in (0, 2, 7)
        for prompt in ("x", "make the sky blue and remove the people")
    ]


class Soak:
    """Callers in threads; each compares what it gets with the same edit alone."""

    def __init__(self, engine: EditEngine, model: StepwiseQwenImage21Pipeline) -> None:
        self._engine, self._model = engine, model
        self._edits = edits()
        self.answers = self.left = self.worst = self.most_bytes = 0
        self._lock = threading.Lock()
        self._alone = [self._made(each) for each in self._edits]

    def _made(self, each: EditRequest) -> Pixels:
        [picture] = edit(self._model, [each])
        return finish_alpha(picture, "auto")

    def call_until(self, end_s: float, number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end_s:
            index = draw.randrange(len(self._edits))
            one = self._edits[index].model_copy(update={"caller": CALLERS[number]})
            [future] = self._engine.submit([one])
            assert not isinstance(future, EditError), future
            if draw.random() < LEAVING:
                # At any moment of an edit.
                time.sleep(draw.uniform(0, 0.3))
                future.cancel()
                with self._lock:
                    self.left += 1
                continue
            worst = difference(future.result(TIMEOUT_S).pixels[0][0], self._alone[index])
            with self._lock:
                self.answers += 1
                self.worst = max(self.worst, worst)
                self.most_bytes = max(self.most_bytes, self._model.prefixes.stats.bytes)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_edits_that_share_prefixes_end_as_alone_and_leave_nothing_behind():
    model = build_random_21_model()
    model.register_to_config(native_area=64 * 64)
    # Room for a few, so that some are dropped while others use them.
    [sample] = samples_of(model, [edits()[-1]])
    most_bytes = 4 * sample.state.encoding.positive.before.nbytes
    calibration = calibrate(model, max_samples=1, default_guidance=1.0)
    served = ServedModel(model, calibration, max_samples=8, sampling=SamplingDefaults(4, 1.0))
    engine = EditEngine(served, EngineSettings(batch_tokens=10**9), timeout_s=TIMEOUT_S)
    soak = Soak(engine, model)
    del sample
    model.prefixes = PrefixCache(most_bytes)
    engine.start()
    start_s = time.monotonic()
    sizes = []
    with ThreadPoolExecutor(len(CALLERS) + 1) as pool:
        calls = [pool.submit(soak.call_until, start_s + SECONDS, number) for number in range(len(CALLERS))]
        for share in (0.5, 1.0):
            time.sleep(max(0.0, start_s + share * SECONDS - time.monotonic()))
            sizes.append(resident_bytes())
        for call in calls:
            call.result(TIMEOUT_S)
    wait_until(lambda: engine.stats().open_requests == 0, "all edits have left", TIMEOUT_S)
    stats = engine.stats()
    engine.stop()
    assert soak.answers > len(soak._alone)
    assert soak.worst <= BOUND
    assert (stats.failed, stats.waiting, stats.running, stats.paused) == (0, 0, 0, 0)
    assert stats.cancelled > 0
    prefixes = model.prefixes
    assert min(prefixes.stats.hits, prefixes.stats.misses) > len(PICTURES)
    assert 0 < soak.most_bytes <= most_bytes
    gc.collect()
    kept = {entry.prefix for entry in prefixes._entries.values()}
    assert set(model._in_use.values()) == kept
    assert sum(entry.bytes for entry in prefixes._entries.values()) == prefixes.stats.bytes <= most_bytes
    assert sizes[1] <= _MOST_GROWTH * sizes[0], sizes
