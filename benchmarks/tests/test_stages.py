"""The cost of each stage by the number of samples: the arithmetic of the table, and one real measurement."""

from benchmarks.engine.stages import Stages, measure, page
from serve_app.models import loading
from serve_app.settings import ModelSettings


def test_gains_are_of_whole_edits_over_edits_alone():
    text = page(64, {1: Stages(30, 40, 30), 4: Stages(10, 20, 10)})
    *_, alone, merged = text.splitlines()
    assert alone == "| 1 | 30.0 | 40.0 | 30.0 | 1.00× | 1.00× | 1.00× |"
    # 220 / 100, 860 / 420 and 2060 / 1020.
    assert merged == "| 4 | 10.0 | 20.0 | 10.0 | 2.20× | 2.05× | 2.02× |"


def test_every_batch_is_measured_on_the_real_model():
    model = loading.load(ModelSettings(native_area=4096, cpu_threads=1))
    found = measure(model, 64, [1, 2], rounds=1)
    assert list(found) == [1, 2]
    assert all(min(stages.encode_ms, stages.step_ms, stages.decode_ms) > 0 for stages in found.values())
