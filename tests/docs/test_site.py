"""The site that `make docs` builds: every link has a target, every page is found, nothing comes from elsewhere."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, FENCE, PAGES
from tests.paths import ROOT

CONFIGURATION = ROOT / "zensical.toml"
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Elements that load what they name; <a> does not.
LOADED = re.compile(r"<(?:script|link|img|source|iframe)\b[^>]*?\b(?:src|href)=[\"']?([^\"'\s>]+)")
NAMED_FILE = re.compile(r"`((?:tests|deploy|examples|benchmarks|training|serve_app)/[\w./-]+)`")
# Written by a command that the page names, and not kept.
MADE = {"benchmarks/GPU.md"}


def build(folder: Path, docs: Path) -> subprocess.CompletedProcess[str]:
    """Build a copy of the site in `folder`, as `make docs` does."""
    shutil.copytree(docs, folder / "docs")
    shutil.copy(CONFIGURATION, folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder, DOCS)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


def entries(navigation: object) -> Iterator[str]:
    """Yield the pages of a navigation, at any depth."""
    match navigation:
        case str():
            yield navigation
        case list():
            for entry in navigation:
                yield from entries(entry)
        case dict():
            yield from entries(list(navigation.values()))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return each heading's anchor: lower case without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in headings}


def test_every_page_is_built_and_is_in_the_navigation(site: Path) -> None:
    named = list(entries(tomllib.loads(CONFIGURATION.read_text())["project"]["nav"]))
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in PAGES)
    for name in named:
        path = Path(name).with_suffix("")
        assert (site / (path.parent if path.name == "index" else path) / "index.html").exists()


@pytest.mark.parametrize("link", ["[gone](nowhere.md)", "[gone](quickstart.md#nowhere)"], ids=["page", "anchor"])
def test_a_link_without_a_target_stops_the_build(link: str, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(DOCS, changed)
    with (changed / "index.md").open("a") as page:
        page.write(f"\n{link}\n")
    (tmp_path / "copy").mkdir()
    assert build(tmp_path / "copy", changed).returncode != 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_link_has_a_target(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), link
        # The site has no other files.
        assert target.is_relative_to(DOCS), f"{link}: name a file outside of docs/ without a link"
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    missing = {name for name in NAMED_FILE.findall(page.read_text()) if not (ROOT / name).exists()}
    assert missing <= MADE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_begins_with_a_title_and_says_what_it_is_about(page: Path) -> None:
    title, empty, introduction, *_ = page.read_text().splitlines()
    assert title.startswith("# ")
    assert not empty
    assert re.match(r"[A-Z`]", introduction), introduction


def test_the_site_loads_nothing_from_another_origin(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        assert [name for name in LOADED.findall(page.read_text()) if re.match(r"(https?:)?//", name)] == []
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text()) == []
