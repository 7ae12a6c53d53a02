"""The command line against the real model on a real cluster."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image

from tests.cluster.client import pictures_of
from tests.cluster.conftest import Served
from tests.scenes import difference, scene

COMMAND = str(Path(sys.executable).parent / "image-edits")
LIMIT_S = 300


def test_pictures_are_edited_as_the_api_edits_them(served: Served, tmp_path: Path):
    scenes = [scene(1), scene(2)]
    for index, pixels in enumerate(scenes):
        PIL.Image.fromarray(pixels).save(tmp_path / f"photo{index}.png")
    done = subprocess.run(
        [COMMAND, "edit", "photo0.png", "photo1.png", "make the sky blue", "-n", "2", "--steps", "3", "--seed", "5"],
        cwd=tmp_path,
        env={**os.environ, "IMAGE_EDITS_SERVER": served.client.base},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for index, pixels in enumerate(scenes):
        answer = served.client.edit([pixels], prompt="make the sky blue", n=2, num_inference_steps=3, seed=5)
        for variant, expected in enumerate(pictures_of(answer), 1):
            (path,) = (tmp_path / "edited").glob(f"photo{index}-*-{variant}.png")
            with PIL.Image.open(path) as picture:
                assert difference(np.asarray(picture), expected) <= 1


def test_check_reports_what_the_server_is(served: Served):
    command = [COMMAND, "check", "--server", served.client.base]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{served.client.base} is alive and ready" in done.stdout
    assert "names of its model: random-model" in done.stdout
