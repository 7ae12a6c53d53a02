"""The report: Markdown tables in one file. Each run replaces the sections that it measured."""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.markdown import table

Row = Sequence[str]
Rows = Generator[Row, None, None]
"""The rows that a section yields while it measures, with one cell for each column."""

_HEAD = """# Measured on a GPU

Written by `python -m benchmarks.gpu`; a run replaces the sections that it measured. Qwen-Image-Edit at its published
size unless a section says otherwise, with random weights: speed is the same, pictures mean nothing. Times are medians
after a warm-up, the device idle before and after each. *Share* is the floor over the time: the FLOP that the
transformer needs for these tokens, texts without padding, at the device's dense bf16 peak (`benchmarks/gpu/floor.py`).
"""
_SECTION = re.compile(r"<!-- (?P<name>\w+) -->\n.*?<!-- /(?P=name) -->\n", re.DOTALL)


@dataclass
class Table:
    """The table of one section, which grows while the section is measured."""

    name: str
    title: str
    columns: Row
    notes: Sequence[str] = ()
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """Deviations from the plan."""

    def markdown(self, provenance: str) -> str:
        """Return the section between its markers; `provenance`: device, versions, date and command."""
        rows = "\n".join(table(self.columns, self.rows))
        paragraphs = [f"## {self.title}", provenance, *self.notes, rows, *self.remarks]
        body = "\n\n".join(paragraphs)
        return f"<!-- {self.name} -->\n{body}\n<!-- /{self.name} -->\n"


def yes_no(condition: bool) -> str:
    return "yes" if condition else "no"


def ms(seconds: float) -> str:
    """Return milliseconds with three digits or more."""
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def update(path: Path, name: str, markdown: str, order: Sequence[str]) -> None:
    """Write a section into the file, in its place among the others by `order`; other sections stay as they are."""
    text = path.read_text() if path.exists() else ""
    sections = {match["name"]: match[0] for match in _SECTION.finditer(text)}
    sections[name] = markdown
    path.write_text("\n".join([_HEAD, *(sections[each] for each in order if each in sections)]))
