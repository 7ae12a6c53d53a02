"""The page of the documentation with the tables and the plot of the fleet's benchmarks."""

import re
from collections.abc import Sequence
from pathlib import Path

_DOCS = Path(__file__).parents[2] / "docs"
PAGE = _DOCS / "operate" / "scaling.md"
PLOT = _DOCS / "scaling.png"


def fill(text: str, name: str, lines: Sequence[str]) -> str:
    """Return the page with the table between the two marks of `name` replaced. Raises ValueError if it has no marks."""
    marked = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"the page has no place for {name}")
    return marked.sub(lambda _: "\n".join(lines) + "\n", text)
