"""deploy/Dockerfile: linted, of the pinned versions, and fed with files that exist and reach the build."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

from serve_app.deployments.environment import VARIABLES
from tests.paths import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [(name, rest) for name, _, rest in (line.strip().partition(" ") for line in text.splitlines() if line)]


def copied() -> list[str]:
    return [source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    admitted = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert set(copied()) == admitted
    assert all((ROOT / source).exists() for source in copied())


def test_ray_has_its_environment() -> None:
    words = [word for name, rest in instructions() if name == "ENV" for word in rest.split()]
    assert {f"{name}={value}" for name, value in VARIABLES.items()} <= set(words)


def test_ray_asks_for_its_token() -> None:
    assert any(name == "ENV" and "RAY_AUTH_MODE=token" in rest for name, rest in instructions())


def test_dependencies_are_installed_before_the_code_is_there() -> None:
    lines = [f"{name} {rest}" for name, rest in instructions()]
    [pinned] = [line for line in lines if "--constraint constraints.txt" in line]
    [code] = [line for line in lines if line.startswith("COPY") and "serve_app" in line]
    assert lines.index(pinned) < lines.index(code)


def test_the_wheel_holds_the_built_in_model(tmp_path: Path) -> None:
    # The files of the image, and none that an earlier build left behind.
    for source in copied():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "dist", "."],
        cwd=tmp_path,
        check=True,
    )
    [wheel] = tmp_path.glob("dist/*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "serve_app").rglob("*") if path.is_file()}
    assert {file for file in files if "__pycache__" not in file} <= packed


def test_cuda_is_that_of_the_wheels() -> None:
    [base] = re.findall(r"^ARG CUDA=(\d+\.\d+)\.\d+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert version("cuda-toolkit").startswith(f"{base}.")


def test_no_process_is_root_and_the_check_asks_for_a_warm_model() -> None:
    [user] = [rest for name, rest in instructions() if name == "USER"]
    assert user == "1000:1000"
    [check] = [rest for name, rest in instructions() if name == "HEALTHCHECK"]
    assert "/health/ready" in json.loads(check[check.index("[") :])[2]
