"""`image-edits edit`: each picture is a request of its own, several at a time."""

import asyncio
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, cast

import click

from serve_app.cli.inputs import SUFFIXES, EditTask, Journal, edit_tag, select
from serve_app.cli.progress import Report, TaskOutcome, complain
from serve_app.client.asynchronous import AsyncImageEdits
from serve_app.client.connection import BrokenOff
from serve_app.client.messages import EditOptions, Output, StreamedOutput
from serve_app.errors import (
    DeadlineExceeded,
    EditError,
    GenerationError,
    InvalidInput,
    Overloaded,
    PayloadTooLarge,
    TooManySamples,
)
from serve_app.events import Progress

EDITED, SOME_FAILED, STOPPED = 0, 1, 3
_MAX_NAMES = 10
_FILES: tuple[Literal["references", "mask"], ...] = ("references", "mask")


def edit_pictures(
    named: Sequence[str],
    prompt: str,
    options: EditOptions,
    *,
    out: Path,
    server: str,
    jobs: int,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Edit what files, folders and patterns name, and return the exit status. Raises click.UsageError."""
    if os.path.exists(prompt):
        raise click.UsageError(f"the instruction comes last, and {prompt} is a file")
    if not named:
        raise click.UsageError("there is no picture before the instruction")
    try:
        client = AsyncImageEdits(server)
        options = _with_contents(options)
        tag, suffix = edit_tag(_asked(prompt, options)), SUFFIXES[options["output_format"]]
        found = select(named, out, tag=tag, n=options["n"], suffix=suffix)
        masks = _masks(found.tasks, options)
        out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from None
    if found.skipped:
        complain(f"Left out, since their suffixes are none of pictures: {_list(found.skipped)}")
    if not found.tasks:
        raise click.UsageError("there are no pictures in " + ", ".join(named))
    report = Report(len(found.tasks), as_json=as_json)
    run = _Run(client, Journal(out), report, prompt, options, masks, overwrite=overwrite)
    try:
        with report:
            asyncio.run(run.edit_all(found.tasks, jobs))
    except KeyboardInterrupt:
        report.sum_up()
        complain("The same command goes on from here.")
        raise
    report.sum_up()
    if run.stopped_by is not None:
        return STOPPED
    return SOME_FAILED if report.counts["failed"] else EDITED


def _with_contents(options: EditOptions) -> EditOptions:
    """Return the options with the contents of their files in place of paths. Raises OSError if one cannot be read."""
    paths = {name: cast(Sequence[Path], options[name]) for name in _FILES if name in options}
    contents = {name: [path.read_bytes() for path in of_one] for name, of_one in paths.items()}
    return cast(EditOptions, {**options, **contents})


def _asked(prompt: str, options: EditOptions) -> dict[str, Any]:
    """Return what is asked for, as JSON has it, with digests in place of files."""
    files = {name: cast(Sequence[bytes], options[name]) for name in _FILES if name in options}
    digests = {name: [hashlib.sha256(content).hexdigest() for content in of_one] for name, of_one in files.items()}
    return {"prompt": prompt, **options, **cast(dict[str, Any], digests)}


def _masks(tasks: Sequence[EditTask], options: EditOptions) -> dict[EditTask, bytes]:
    """Return the mask of each picture; empty if there is none. Raises ValueError for another number of masks."""
    masks = cast(list[bytes], options.get("mask", []))
    if len(masks) == 1:
        masks = masks * len(tasks)
    if len(masks) not in (0, len(tasks)):
        raise ValueError(
            f"--mask is given {len(masks)} times, for {len(tasks)} pictures: give it once for all of them, or once for "
            "each, in the order in which they are named; the pictures of a folder are in the order of their names"
        )
    return dict(zip(tasks, masks, strict=False))


def _list(paths: Sequence[Path]) -> str:
    names = ", ".join(map(str, paths[:_MAX_NAMES]))
    return names if len(paths) <= _MAX_NAMES else f"{names} and {len(paths) - _MAX_NAMES} more"


class _Run:
    """One run of the command: several workers that share the pictures."""

    def __init__(
        self,
        client: AsyncImageEdits,
        journal: Journal,
        report: Report,
        prompt: str,
        options: EditOptions,
        masks: Mapping[EditTask, bytes],
        *,
        overwrite: bool,
    ) -> None:
        self.stopped_by: Exception | None = None
        self._client = client
        self._journal = journal
        self._report = report
        self._prompt = prompt
        self._options = options
        self._masks = masks
        self._overwrite = overwrite

    async def edit_all(self, found: Sequence[EditTask], jobs: int) -> None:
        """Edit the pictures, `jobs` at a time. Sets `stopped_by` if it gives up before the last one."""
        todo = iter(found)
        async with self._client:
            try:
                # Find out before any upload, and without a minute of retries: is there a server that accepts the key?
                await self._client.models()
            except EditError as error:
                self.stopped_by = error
                complain(error.message)
                return
            await self._share(todo, min(jobs, len(found)))

    async def _share(self, todo: Iterator[EditTask], jobs: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                group.create_task(self._work(todo))

    async def _work(self, todo: Iterator[EditTask]) -> None:
        """Edit pictures of `todo`, which other workers share, until none is left."""
        for picture in todo:
            self._report.end(await self._edit(picture))
            if self.stopped_by is not None:
                return

    async def _edit(self, picture: EditTask) -> TaskOutcome:
        asked = _asked(self._prompt, self._options)
        try:
            content = await asyncio.to_thread(picture.source.read_bytes)
            seeds = None if self._overwrite else self._journal.seeds(picture, content, asked)
        except OSError as error:
            return TaskOutcome(picture, "failed", error=error)
        if seeds is not None:
            return TaskOutcome(picture, "skipped", tuple(seeds))
        self._report.begin(picture)
        try:
            row = await self._row(picture, content)
            seeds = [output.seed for output in row]
            self._journal.save(picture, content, asked, seeds, [output.file for output in row])
        except (EditError, OSError) as error:
            if not _concerns_one_picture(error):
                self.stopped_by = error
            return TaskOutcome(picture, "failed", error=error)
        return TaskOutcome(picture, "edited", tuple(seeds))

    async def _row(self, picture: EditTask, content: bytes) -> list[Output]:
        """Return the picture's variants, in order."""
        row: dict[int, Output] = {}
        options = self._options
        if picture in self._masks:
            options = {**options, "mask": self._masks[picture]}
        async with aclosing(self._client.edit_stream(content, self._prompt, **options)) as events:
            async for event in events:
                match event:
                    case Progress():
                        self._report.progress(picture, event)
                    case StreamedOutput(_, variant, output):
                        row[variant] = output
                        self._report.completed(picture, variant)
        return [output for _, output in sorted(row.items())]


def _concerns_one_picture(error: Exception) -> bool:
    if isinstance(error, InvalidInput):
        return error.param in (None, "images", "mask")
    one = (GenerationError, PayloadTooLarge, TooManySamples, Overloaded, DeadlineExceeded, BrokenOff)
    return isinstance(error, one)
