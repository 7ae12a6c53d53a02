"""The tables of the pages that are made of the code. `python -m tests.docs.tables` writes them into the pages."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from serve_app import errors
from serve_app.deployments.metrics import METRICS
from serve_app.errors import EditError
from serve_app.settings import AppSettings
from tests.docs.pages import DOCS, between
from training.instructions import IDENTITY, INSTRUCTIONS


@dataclass(frozen=True)
class Table:
    """A generated table: between `<!-- name -->` and `<!-- /name -->` on its page."""

    page: Path
    make: Callable[[], str]


def _table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def settings_table() -> str:
    return _table(("name", "default", "meaning"), _settings(AppSettings, ""))


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, setting in model.model_fields.items():
        kind = setting.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{prefix}{name}.")
            continue
        default = "required" if setting.is_required() else _default(setting.default)
        others = [f"`{value}`" for value in get_args(kind) if value != setting.default]
        if get_origin(kind) is Literal:
            default += f" (or {', '.join(others)})"
        yield f"`{prefix}{name}`", default, str(setting.description)
        if get_origin(kind) is tuple and issubclass(get_args(kind)[0], BaseModel):
            yield from _settings(get_args(kind)[0], f"{prefix}{name}[].")


def _default(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def error_classes() -> list[type[EditError]]:
    """Return the whole tree without its root, in the order of the file."""
    members = [member for member in vars(errors).values() if isinstance(member, type)]
    return [member for member in members if issubclass(member, EditError) and member is not EditError]


def error_table() -> str:
    codes = {(cls.status, cls.code): cls.when for cls in error_classes()}
    rows = ((str(status), code, when) for (status, code), when in sorted(codes.items()))
    return _table(("status", "code", "when"), rows)


def metrics_table() -> str:
    def row(metric: Any) -> tuple[str, ...]:
        names = ", ".join(f"`{name}`" for name in metric.exported)
        return names, metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.meaning

    return _table(("name", "type", "labels", "meaning"), map(row, METRICS))


def instruction_table() -> str:
    """Return a wording in English and one in Chinese of each instruction; a file lists the English ones first."""
    known = [instruction for instruction in INSTRUCTIONS if instruction is not IDENTITY]
    rows = (
        (one.name, next(filter(str.isascii, one.wordings)), next(text for text in one.wordings if not text.isascii()))
        for one in known
    )
    return _table(("instruction", "in English", "in Chinese"), rows)


TABLES = {
    "settings": Table(DOCS / "operate" / "settings.md", settings_table),
    "errors": Table(DOCS / "api" / "errors.md", error_table),
    "metrics": Table(DOCS / "operate" / "metrics.md", metrics_table),
    "instructions": Table(DOCS / "quickstart.md", instruction_table),
}


def main() -> None:
    for name, table in TABLES.items():
        text = table.make()
        table.page.write_text(between(name).sub(lambda _, text=text: text, table.page.read_text()))  # type: ignore[misc]


if __name__ == "__main__":
    main()
