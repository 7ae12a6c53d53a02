"""The package as pip installs it: every file of the source tree and the licence."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.paths import ROOT


def test_a_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    # Built from a copy: setuptools leaves files in the tree, and takes those of an older build from there.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "serve_app", source / "serve_app", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # uv is what `make install` installs with.
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "build", "--wheel", "--out-dir", tmp_path, source], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
    extras = re.findall(r"^Provides-Extra: (.*)$", zipfile.ZipFile(wheel).read(metadata).decode(), re.MULTILINE)
    # The tools of development are dependency groups, which no wheel has.
    assert extras == ["c2pa", "data", "quantization"]
    held = {name for name in names if name.startswith("serve_app/")}
    assert "serve_app/api/static/index.html" in held
    files = [path for path in (source / "serve_app").rglob("*") if path.is_file()]
    assert held == {str(path.relative_to(source)) for path in files}
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
