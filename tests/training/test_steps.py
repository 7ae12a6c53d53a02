"""The table of what fewer steps cost."""

from serve_app.models import loading
from serve_app.settings import ModelSettings
from training.instructions import INSTRUCTIONS
from training.steps import curve, table


def test_fewer_steps_are_farther_from_the_full_edit() -> None:
    model = loading.load(ModelSettings(default_steps=8, native_area=64 * 64))
    [sepia] = [instruction for instruction in INSTRUCTIONS if instruction.name == "sepia"]
    full, six, two = curve(model, [6, 2], 1, [sepia])
    assert full.steps == 8
    assert full.own_db == 60
    assert 60 > six.own_db > two.own_db > 10
    assert all(0 <= row.confirmed <= 1 for row in (full, six, two))
    assert table([full, six, two]).splitlines()[3].startswith("| 6 | ")
