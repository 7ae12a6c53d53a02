"""The page of the architecture against the package: its files, and its layers."""

import re
import tomllib
from pathlib import Path

from tests.docs.pages import DOCS, between, blocks
from tests.paths import ROOT

ARCHITECTURE = DOCS / "design" / "architecture.md"
PACKAGE = ROOT / "serve_app"
# No file of Python, but a folder that the tree names.
DATA = {"api/static/", "api/swagger/", "models/builtin_tiny/", "models/builtin_tiny_plus/"}


def tree() -> list[str]:
    """Return the paths that the tree names, folders with a slash at the end."""
    (block,) = [block for block in blocks("", [ARCHITECTURE]) if block.startswith("serve_app/\n")]
    named: list[str] = []
    folder = ""
    for line in block.splitlines()[1:]:
        indent, name, text = re.fullmatch(r"( +)(\S+)(?: +(\S.*))?", line).groups()  # type: ignore[union-attr]
        if len(indent) == 2:
            folder = name if name.endswith("/") else ""
            assert folder or text, line
            named.append(name)
        else:
            assert text, line
            named.append(folder + name)
    return named


def test_the_tree_names_every_file_and_package_once() -> None:
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    packages = {path.parent for path in files if path.name == "__init__.py"} - {Path()}
    # The line of a package stands for its __init__.py.
    expected = {str(path) for path in files if path.name != "__init__.py" or path.parent == Path()}
    expected |= {f"{package}/" for package in packages} | DATA
    assert sorted(tree()) == sorted(expected)
    assert all((PACKAGE / folder).is_dir() for folder in DATA)


def test_the_layers_are_those_that_import_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["name"] == "Imports run downwards"]
    (table,) = between("layers").findall(ARCHITECTURE.read_text())
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert [re.findall(r"`(\w+)`", cell) for cell in cells] == [re.findall(r"\w+", layer) for layer in layers]
