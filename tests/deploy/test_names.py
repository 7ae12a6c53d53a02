"""The names of this package's modules and files in configurations and documents: each must exist."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.paths import ROOT

# CHANGELOG.md is left out, since it names what is gone.
PLACES = ("serve_config.yaml", "Makefile", "pyproject.toml", "README.md", "README.zh-CN.md", "CONTRIBUTING.md")
FOLDERS = ("deploy", "docs", "examples", "benchmarks", "training")
SUFFIXES = {".md", ".py", ".service", ".toml", ".yaml", ".yml", ""}

NAME = re.compile(r"\bserve_app((?:\.[A-Za-z_]\w*)+)(?::(\w+))?")
FILE = re.compile(r"\bserve_app/[\w./-]*\w")


def texts() -> list[Path]:
    found = [ROOT / place for place in PLACES if (ROOT / place).exists()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in SUFFIXES]
    return [path for path in found if "__pycache__" not in path.parts]


def resolves(dotted: str, attribute: str | None) -> bool:
    """Whether a dotted name is a module, or what a module holds, and has the attribute."""
    parts = ["serve_app", *dotted.strip(".").split(".")]
    for length in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in [*parts[length:], *([attribute] if attribute else [])]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_and_file_of_the_package_exists(path: Path) -> None:
    text = path.read_text()
    missing = {match[0] for match in NAME.finditer(text) if not resolves(match[1], match[2])}
    missing |= {match[0] for match in FILE.finditer(text) if not (ROOT / match[0]).exists()}
    assert missing == set()


@pytest.mark.parametrize(
    ("dotted", "attribute", "expected"),
    [
        (".deployments.autoscaling", "OpenWorkPolicy", True),
        (".api.proxy_connection.bound", None, True),
        (".autoscaling", "OpenWorkPolicy", False),
        (".deployments.autoscaling", "OpenWork", False),
        (".proxy_connection.bound", None, False),
    ],
)
def test_a_name_that_is_gone_is_found(dotted: str, attribute: str | None, expected: bool) -> None:
    assert resolves(dotted, attribute) is expected
