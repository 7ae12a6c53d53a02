"""README.zh-CN.md against README.md: the same headings, names, numbers, code blocks and links, in another language."""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import pytest

from tests.docs.pages import FENCE
from tests.paths import ROOT

README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
MEND = "README.md and README.zh-CN.md differ here: make the same change in the other language, then run this test again"

HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What a translation leaves as it is: code, error codes, numbers.
FACT = re.compile(r"`[^`]+`|[A-Z_]{6,}|\d+(?:\.\d+)?", re.ASCII)


@dataclass(frozen=True)
class Page:
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def prose(self) -> str:
        """All but the code blocks, in which # is no heading and | no table."""
        return FENCE.sub("", self.text)

    @property
    def levels(self) -> list[str]:
        return [marks for marks, _ in HEADING.findall(self.prose)]

    @property
    def anchors(self) -> list[str]:
        """Each heading's anchor: lower case without punctuation, hyphens for spaces."""
        return [re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for _, name in HEADING.findall(self.prose)]

    @property
    def links(self) -> list[str]:
        return LINK.findall(self.prose)

    @property
    def tables(self) -> list[list[str]]:
        found = re.findall(r"(?:^\|.*\|\n)+", self.prose, re.MULTILINE)
        return [table.splitlines() for table in found]

    @property
    def sections(self) -> list[str]:
        """The prose after each heading, without tables and link targets."""
        text = LINK.sub("]", re.sub(r"^\|.*\|$", "", self.prose, flags=re.MULTILINE))
        return HEADING.split(text)[3::3]


ENGLISH, TRANSLATION = Page(README), Page(CHINESE)
PAGES = [ENGLISH, TRANSLATION]


def facts(text: str) -> list[str]:
    """Sorted, since another language has another order; once, since it may name a thing twice."""
    return sorted({" ".join(fact.split()) for fact in FACT.findall(text)})


def cells(row: str) -> list[list[str]]:
    return [facts(cell) for cell in re.split(r"(?<!\\)\|", row)]


def test_the_headings_have_the_same_levels_in_the_same_order() -> None:
    assert TRANSLATION.levels == ENGLISH.levels, MEND


def test_the_code_blocks_are_identical() -> None:
    assert len(FENCE.findall(ENGLISH.text)) >= 6
    assert FENCE.findall(TRANSLATION.text) == FENCE.findall(ENGLISH.text), MEND


def test_the_tables_have_the_same_rows_with_the_same_names_and_numbers() -> None:
    assert [len(table) for table in TRANSLATION.tables] == [len(table) for table in ENGLISH.tables], MEND
    assert len(ENGLISH.tables) >= 3
    for translated, row in zip(chain(*TRANSLATION.tables), chain(*ENGLISH.tables), strict=True):
        assert cells(translated) == cells(row), f"{MEND}\n{row}\n{translated}"


def test_each_section_has_the_same_names_and_numbers() -> None:
    for name, translated, section in zip(ENGLISH.anchors, TRANSLATION.sections, ENGLISH.sections, strict=True):
        assert facts(translated) == facts(section), f"{MEND}: #{name}"


def test_the_links_lead_to_the_same_places() -> None:
    def targets(page: Page, other: Page) -> list[str | int]:
        """Headings by number, since the other page names them in its own language."""
        return [
            page.anchors.index(link[1:]) if link.startswith("#") else link
            for link in page.links
            if link != other.path.name
        ]

    assert targets(TRANSLATION, ENGLISH) == targets(ENGLISH, TRANSLATION), MEND


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)
def test_every_link_has_a_target(page: Page) -> None:
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.anchors, (
                f"{page.path.name}: no heading for {link}; name the anchor after the heading"
            )
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), f"{page.path.name}: no file {link}; mend the link"


def test_each_page_links_to_the_other_in_its_first_lines() -> None:
    for page, other in (PAGES, reversed(PAGES)):
        top = "".join(page.text.splitlines()[:3])
        assert f"]({other.path.name})" in top, f"begin {page.path.name} with a link to {other.path.name}"
