"""constraints.txt: every version with its hashes, and the installer that checks them."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.paths import ROOT

UV = Path(sys.executable).parent / "uv"
CONSTRAINTS = ROOT / "constraints.txt"


def test_every_version_has_hashes_and_no_line_names_a_host() -> None:
    text = re.sub(r"^#.*\n", "", CONSTRAINTS.read_text(), flags=re.MULTILINE)
    entries = text.replace("\\\n", " ").splitlines()
    assert len(entries) > 100
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9._-]+==\S+( ;.+?)?(\s+--hash=sha256:[0-9a-f]{64})+", entry), entry[:100]


def write_wheel(folder: Path, name: str, *requires: str) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    lines = "".join(f"Requires-Dist: {other}\n" for other in requires)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{lines}")
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


@pytest.mark.parametrize("genuine", [True, False])
def test_a_changed_package_is_not_installed_as_the_makefile_installs(tmp_path: Path, genuine: bool) -> None:
    """Also one that only another package asks for."""
    write_wheel(tmp_path, "outer", "inner")
    digest = hashlib.sha256(write_wheel(tmp_path, "inner").read_bytes()).hexdigest()
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(f"inner==1.0 --hash=sha256:{digest if genuine else 64 * '0'}\n")
    where = f"--no-index --find-links {tmp_path} --target {tmp_path / 'installed'} --cache-dir {tmp_path / 'cache'}"
    command = f"{UV} pip install --python {sys.executable} --constraint {constraints} {where} outer"
    done = subprocess.run(command.split(), capture_output=True, text=True)
    assert (done.returncode == 0) is genuine, done.stderr
    assert ("Hash mismatch for `inner==1.0`" in done.stderr) is not genuine
