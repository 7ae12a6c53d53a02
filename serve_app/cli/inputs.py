"""The pictures that a command line names, the outputs of each, and which pictures are done.

Outputs are named after their picture and its edit: `photo.jpg` becomes `photo-make-it-sepia-5d41f0-1.png` and so on;
the folders inside a folder are kept. `edits.jsonl` beside the outputs has one line for each picture and edit: its
options, and the seeds. With it, a run continues where an earlier one stopped.
"""

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.decoding.suffixes import READ_SUFFIXES

JOURNAL = "edits.jsonl"
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Of outputs, by their format."""
# What systems put into folders of pictures, beside names that begin with a dot, such as ._photo.jpg and .DS_Store.
_JUNK = frozenset({"thumbs.db", "desktop.ini"})
_WORD = re.compile(r"[^\W_]+")
# A file name has at most 255 bytes, and the picture's own name is a part of it too.
_MAX_TAG_BYTES = 40
_DIGEST_CHARS = 6


@dataclass(frozen=True, slots=True)
class EditTask:
    """One picture to edit, and the files that its variants become, in order."""

    source: Path
    outputs: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """What a command line names. `skipped`: files in its folders that are no pictures by their suffix."""

    tasks: tuple[EditTask, ...]
    skipped: tuple[Path, ...]


def edit_tag(asked: Mapping[str, Any]) -> str:
    """Return the part of an output's name that tells one edit of a picture from another.

    It has the first words of the instruction, for people, and a digest of all that is asked for.
    """
    words = "-".join(_WORD.findall(asked["prompt"].lower()))
    start = words.encode()[:_MAX_TAG_BYTES].decode(errors="ignore").rstrip("-")
    digest = _sha256(json.dumps(asked, sort_keys=True).encode())[:_DIGEST_CHARS]
    return f"{start}-{digest}" if start else digest


def select(named: Sequence[str], out: Path, *, tag: str, n: int, suffix: str) -> Selection:
    """Return the pictures that files, folders and patterns name, each once, in that order.

    A file that is named itself is a picture whatever its suffix. A name without a file stays in the list, and fails
    when it is read. `tag`: as `edit_tag` returns it. Raises ValueError if two pictures would have the same outputs, or
    if outputs would land among the pictures.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    skipped: list[Path] = []
    for name in named:
        for source, relative in _find(name, out, skipped):
            found.setdefault(source.resolve(), (source, relative))
    sources, relatives = [source for source, _ in found.values()], [relative for _, relative in found.values()]
    tasks = [
        EditTask(source, tuple(out / f"{stem}-{tag}-{variant}{suffix}" for variant in range(1, n + 1)))
        for source, stem in zip(sources, _stems(sources, relatives), strict=True)
    ]
    return Selection(tuple(tasks), tuple(skipped))


def _find(name: str, out: Path, skipped: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield the path of each picture, and its path among the outputs; add other files of a folder to `skipped`."""
    path = Path(name)
    if path.is_dir():
        yield from _find_in_folder(path, out, skipped)
    elif not path.exists() and glob.has_magic(name):
        matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        for match in [match for match in matches if match.is_file()] or [path]:
            yield match, Path(match.name)
    else:
        yield path, Path(path.name)


def _find_in_folder(folder: Path, out: Path, skipped: list[Path]) -> Iterator[tuple[Path, Path]]:
    root, target = folder.resolve(), out.resolve()
    if target == root:
        raise ValueError(f"the outputs would land among the pictures of {folder}: name another folder with -o")
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        # The outputs of an earlier run may be in a folder below: they are not pictures to edit.
        is_output = target.is_relative_to(root) and path.resolve().is_relative_to(target)
        if is_output or _is_junk(relative) or not path.is_file():
            continue
        if path.suffix.lower() in READ_SUFFIXES:
            yield path, relative
        else:
            skipped.append(path)


def _is_junk(relative: Path) -> bool:
    return relative.name.lower() in _JUNK or any(part.startswith(".") for part in relative.parts)


def _stems(sources: Sequence[Path], relatives: Sequence[Path]) -> list[str]:
    """Return the stem of each picture's outputs: its name, and its suffix too if photo.jpg stands beside photo.png."""
    times = Counter(relative.with_suffix("") for relative in relatives)
    stems = [
        str(relative if times[relative.with_suffix("")] > 1 else relative.with_suffix("")) for relative in relatives
    ]
    first: dict[str, Path] = {}
    for source, stem in zip(sources, stems, strict=True):
        if stem in first:
            raise ValueError(f"{first[stem]} and {source} would have the same outputs: edit them into two folders")
        first[stem] = source
    return stems


class Journal:
    """The record of a folder's outputs. One process at a time writes into a folder."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._path = out / JOURNAL
        self._entries: dict[tuple[str, ...], dict[str, Any]] = {}
        # File names may hold bytes that are not UTF-8, and characters at which `splitlines` would split.
        text = self._path.read_text("utf-8", "surrogateescape") if self._path.exists() else ""
        for line in text.split("\n"):
            self._read(line)
        if text and not text.endswith("\n"):
            self._append("\n")

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._entries[tuple(entry["outputs"])] = entry
        except (ValueError, TypeError, KeyError):
            # Cut off when the machine went down, before its outputs were written.
            return

    def seeds(self, picture: EditTask, content: bytes, asked: Mapping[str, Any]) -> list[int] | None:
        """Return the seeds of the outputs if all exist and come from this content and these options, else None.

        Raises FileExistsError if an output exists that comes from something else.
        """
        there = [path for path in picture.outputs if path.exists()]
        entry = self._entries.get(self._names(picture), {})
        if there and (entry.get("sha256"), entry.get("asked")) != (_sha256(content), dict(asked)):
            raise FileExistsError(f"{there[0]} is there, and not from this edit: name another -o, or --overwrite")
        return entry["seeds"] if len(there) == len(picture.outputs) else None

    def save(
        self, picture: EditTask, content: bytes, asked: Mapping[str, Any], seeds: Sequence[int], files: Sequence[bytes]
    ) -> None:
        """Write the outputs, each whole or not at all. Raises OSError.

        The journal is written before the outputs: a picture that is interrupted in between is edited again.
        """
        names = self._names(picture)
        entry = {"outputs": names, "sha256": _sha256(content), "asked": dict(asked), "seeds": list(seeds)}
        for path in picture.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        self._append(json.dumps(entry, ensure_ascii=False) + "\n")
        self._entries[names] = entry
        for path, file in zip(picture.outputs, files, strict=True):
            write_whole(path, file)

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8", errors="surrogateescape") as journal:
            journal.write(text)

    def _names(self, picture: EditTask) -> tuple[str, ...]:
        return tuple(path.relative_to(self._out).as_posix() for path in picture.outputs)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
