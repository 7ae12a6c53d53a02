"""The files of an open project: the licence, and what CONTRIBUTING.md, CHANGELOG.md and SECURITY.md name."""

import re
import tomllib

import pytest

from tests.paths import ROOT

PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_licence_is_the_one_that_the_package_names() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    title, version = (ROOT / "LICENSE").read_text().split("\n")[1:3]
    assert (title.strip(), version.strip()) == ("Apache License", "Version 2.0, January 2004")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_linked_exists(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), f"{page}: no file {link}"


def test_every_file_that_contributing_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"\b(?:tests|serve_app)/[\w./]*\w|\.ci/\w+", text):
        assert (ROOT / path).exists(), path


def test_every_target_that_contributing_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"\bmake ([a-z-]+)(?:`|  #)", (ROOT / "CONTRIBUTING.md").read_text())
    assert set(named) <= targets


def test_the_changelog_has_the_version_of_the_package_below_what_is_unreleased() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == PROJECT["version"]
