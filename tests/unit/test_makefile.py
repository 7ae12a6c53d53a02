"""The Makefile: `make help` has a line for every target."""

import re
import subprocess

from tests.paths import ROOT


def test_help_lists_every_target() -> None:
    phony = " ".join(re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    command = ["make", "--no-print-directory", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split(maxsplit=1)[0] for line in done.stdout.splitlines()}
    assert listed == set(phony.split())
