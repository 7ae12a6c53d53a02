"""The real contenders: all of them make the same pictures of the same edits."""

from dataclasses import replace

import numpy as np
import pytest
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

from benchmarks.edits import DRAFT, PRESETS, Edit, Effort, photos
from benchmarks.load import generator
from benchmarks.load.contender import CONTENDERS, Contender
from benchmarks.load.contenders.direct import saturate
from benchmarks.load.contenders.stock import Counter, StockEditor
from benchmarks.load.measures import worst_difference
from benchmarks.load.servers import running
from benchmarks.load.traces import at_once
from serve_app.errors import EditError
from serve_app.images.geometry import Size
from serve_app.models import runtime
from serve_app.settings import BUILTIN_TINY, AppSettings, ModelSettings

EDITS = [
    Edit("two variants", picture_seed=1, prompt="make the sky blue", steps=2, picture=Size(64, 64), n=2, side=64),
    Edit("longer prompt", picture_seed=2, prompt="enhance colors and sharpen", steps=2, picture=Size(64, 64), side=64),
]
# Stock sums the guided rows in another order.
BOUND = 2
# The least difference of two variants, and of two edits: a mix-up shows.
DIFFERENT = 10

pytestmark = pytest.mark.slow


def by_name(name: str) -> Contender:
    return next(contender for contender in CONTENDERS if contender.name == name)


def test_all_programs_start_answer_alike_count_and_stop(tmp_path):
    contenders = [by_name(name) for name in ("step", "naive", "lock", "litserve")]
    common = ["--model", BUILTIN_TINY, "--threads", "1", "--side", "64"]
    pictures = {}
    with running(contenders, common, tmp_path) as servers:
        for server in servers:
            with server.resumed():
                answers = generator.run(server.base_url, at_once([1, 1], 2), EDITS)
                counts = server.counts()
                if server.contender.name == "step":
                    [draft] = generator.run(server.base_url, at_once([1], 1), [replace(EDITS[1], preset=DRAFT)])
                    drafted = server.counts().since(counts).sample_steps
            pictures[server.contender.name] = [answer.pictures or () for answer in answers]
            assert counts.sample_steps >= 6
            assert counts.forwards >= 2
            assert server.peak_bytes() > 100 * 2**20
    # Without guidance.
    assert draft.pictures is not None
    assert (drafted, len(draft.pictures)) == (PRESETS[DRAFT].steps, 1)
    assert worst_difference(draft.pictures, pictures["step"][1]) >= DIFFERENT
    [one, other], [longer] = pictures["lock"]
    assert min(worst_difference([one], [picture]) for picture in (other, longer)) >= DIFFERENT
    for name, found in pictures.items():
        assert [len(some) for some in found] == [2, 1], name
        for some, others in zip(found, pictures["lock"], strict=True):
            assert worst_difference(some, others) <= BOUND, name
    assert all(server.process.returncode is not None for server in servers)


def test_stock_reads_a_photo_at_the_size_at_which_ours_does(monkeypatch):
    # StockEditor sets it for the whole process.
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", pipeline_qwenimage_edit.calculate_dimensions)
    settings = ModelSettings(source=BUILTIN_TINY, native_area=72**2)
    editor = runtime.start(AppSettings(model=settings))
    stock = StockEditor(settings, Counter())
    try:
        for photo in photos(Effort(plain=2, photo_side=72))[:4]:
            [ours] = editor.engine.submit([photo.request()])
            assert not isinstance(ours, EditError)
            [[expected]], [[found]] = ours.result(60).pixels, stock.edit([photo.request()])[0].pixels
            assert np.abs(expected.astype(int) - found).max() <= BOUND, photo.name
    finally:
        editor.engine.stop()


def test_the_engine_in_one_process_takes_the_same_edits():
    engine = runtime.start(AppSettings(model=ModelSettings(cpu_threads=1))).engine
    try:
        assert saturate(engine, EDITS[1:], 2) > 0
    finally:
        engine.stop()
