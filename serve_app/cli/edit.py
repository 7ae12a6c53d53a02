"""`image-edits edit`: each picture is a request of its own, several at a time.

Exit status: 0 every picture is edited · 1 some failed, the others are edited · 2 the command line cannot be used ·
3 stopped by what would fail every picture: no server, a refused key, a bad option, a full disk ·
130 Ctrl-C. The same command goes on where a run ended, and tries again what failed.
"""

import argparse
import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import cast

from serve_app.cli.inputs import EditTask, Journal, pictures
from serve_app.cli.progress import Report, TaskOutcome
from serve_app.client.asynchronous import AsyncImageEdits
from serve_app.client.connection import DEFAULT_SERVER, KEY_ENV, SERVER_ENV, BrokenOff
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

EDITED, SOME_FAILED, STOPPED, INTERRUPTED = 0, 1, 3, 130
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


def main(prog: str, words: Sequence[str]) -> int:
    """Edit what the command line names; the exit status."""
    parser = _parser(prog)
    arguments = parser.parse_intermixed_args(words)
    if os.path.exists(arguments.prompt):
        parser.error(f"the instruction comes last, and {arguments.prompt} is a file")
    try:
        client = AsyncImageEdits(arguments.server)
        found = pictures(arguments.pictures, arguments.out, n=arguments.n, suffix=_SUFFIXES[arguments.output_format])
        arguments.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not found:
        parser.error("there are no pictures in " + ", ".join(arguments.pictures))
    report = Report(len(found), as_json=arguments.json)
    run = _Run(
        client, Journal(arguments.out), report, arguments.prompt, _options(arguments), overwrite=arguments.overwrite
    )
    try:
        with report:
            asyncio.run(run.edit_all(found, arguments.jobs))
    except KeyboardInterrupt:
        report.sum_up()
        return INTERRUPTED
    report.sum_up()
    if run.stopped_by is not None:
        return STOPPED
    return SOME_FAILED if report.counts["failed"] else EDITED


class _Run:
    def __init__(
        self,
        client: AsyncImageEdits,
        journal: Journal,
        report: Report,
        prompt: str,
        options: EditOptions,
        *,
        overwrite: bool,
    ) -> None:
        self.stopped_by: Exception | None = None
        self._client = client
        self._journal = journal
        self._report = report
        self._prompt = prompt
        self._options = options
        self._overwrite = overwrite

    async def edit_all(self, found: Sequence[EditTask], jobs: int) -> None:
        """Sets `stopped_by` where it gave up before the last picture."""
        todo = iter(found)
        async with self._client:
            try:
                # Before any upload, and without a minute of retries: is a server there, and does it take the key?
                await self._client.models()
            except EditError as error:
                self.stopped_by = error
                self._report.complain(error.message)
                return
            await self._share(todo, min(jobs, len(found)))

    async def _share(self, todo: Iterator[EditTask], jobs: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                group.create_task(self._work(todo))

    async def _work(self, todo: Iterator[EditTask]) -> None:
        """One of several, which share `todo`."""
        for picture in todo:
            self._report.end(await self._edit(picture))
            if self.stopped_by is not None:
                return

    async def _edit(self, picture: EditTask) -> TaskOutcome:
        asked = {"prompt": self._prompt, **self._options}
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
        """The picture's variants, in order."""
        row: dict[int, Output] = {}
        async with aclosing(self._client.edit_stream(content, self._prompt, **self._options)) as events:
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
        return error.param in (None, "images")
    one = (GenerationError, PayloadTooLarge, TooManySamples, Overloaded, DeadlineExceeded, BrokenOff)
    return isinstance(error, one)


# --- the command line ---------------------------------------------------------------------------------------------


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [options] PICTURE [PICTURE ...] PROMPT",
        description=__doc__,
        epilog=f"The key is read from {KEY_ENV} in the environment, never from the command line.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="file, folder, or pattern such as 'in/**/*.jpg'")
    parser.add_argument("prompt", metavar="PROMPT", help="the instruction, last")
    parser.add_argument("-o", "--out", type=Path, default=Path("edited"), help="folder of the outputs (%(default)s)")
    server = os.environ.get(SERVER_ENV) or DEFAULT_SERVER
    parser.add_argument("--server", default=server, help=f"unset: {SERVER_ENV} in the environment, else (%(default)s)")
    parser.add_argument("--jobs", type=_positive, default=4, help="requests at a time (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="edit again what is done, and replace what is there")
    parser.add_argument("--json", action="store_true", help="a line of JSON on standard output for each picture")
    _add_edit_options(parser.add_argument_group("the edit", "What is left out is the server's to choose."))
    return parser


def _add_edit_options(group: argparse._ArgumentGroup) -> None:
    """Each under its name in EditOptions; what is not given does not appear."""
    group.add_argument("-n", type=_positive, default=1, help="variants of each picture (%(default)s)")
    group.add_argument("--size", default=argparse.SUPPRESS, help="auto, or WIDTHxHEIGHT in pixels")
    group.add_argument("--steps", type=int, default=argparse.SUPPRESS, help="denoising steps")
    group.add_argument(
        "--guidance", type=float, default=argparse.SUPPRESS, help="classifier-free guidance; 1 turns it off"
    )
    group.add_argument(
        "--seed", type=int, default=argparse.SUPPRESS, help="of every picture's first variant; the next has the next"
    )
    group.add_argument("--negative-prompt", default=argparse.SUPPRESS, help="what guidance steers away from")
    group.add_argument(
        "--format", dest="output_format", choices=_SUFFIXES, default="png", help="of the outputs (%(default)s)"
    )
    group.add_argument(
        "--quality", dest="output_compression", type=int, default=argparse.SUPPRESS, help="of jpeg and webp, 0 to 100"
    )
    group.add_argument("--model", default=argparse.SUPPRESS, help="the model that must answer")


def _options(arguments: argparse.Namespace) -> EditOptions:
    given = vars(arguments)
    return cast(EditOptions, {name: given[name] for name in EditOptions.__annotations__ if name in given})


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
