"""The ready settings for smaller GPUs: by the size of the published model, they fit, and take what they say."""

import re

import pytest

from serve_app.models.memory import estimate
from serve_app.settings import read_settings
from tests.paths import ROOT
from tests.published_size import published

GIB = 2**30
PROFILES = ROOT / "deploy" / "profiles"
# What cards that are sold so report, at least.
CARDS = {"24gb": 23.5, "16gb": 15.5}


def test_there_is_a_profile_for_each_card() -> None:
    assert {path.stem for path in PROFILES.iterdir()} == set(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_a_profile_fits_its_card_and_takes_what_it_says(name: str) -> None:
    path = PROFILES / f"{name}.yaml"
    memory = estimate(read_settings(path), published(), 2)
    assert memory.gpu_bytes < 0.97 * CARDS[name] * GIB
    said = re.search(r"([0-9.]+) GiB of GPU memory and ([0-9.]+) GiB of host memory", path.read_text())
    assert said is not None
    assert [float(figure) for figure in said.groups()] == [
        round(count / GIB, 1) for count in (memory.gpu_bytes, memory.stored_bytes)
    ]
