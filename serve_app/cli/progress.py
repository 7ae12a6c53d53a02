"""The report of a run: a line for each picture, and on a terminal a progress bar for each output."""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from serve_app.cli.inputs import EditTask
from serve_app.errors import EditError
from serve_app.events import Progress as Steps

Status = Literal["edited", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """The result of one picture. `seeds`: one for each output, if it was edited."""

    picture: EditTask
    status: Status
    seeds: tuple[int, ...] = ()
    error: Exception | None = None

    @property
    def words(self) -> str:
        if self.error is not None:
            return f"{self.picture.source}: {message_of(self.error)}"
        outputs = " ".join(map(str, self.picture.outputs))
        return f"{self.picture.source}: {outputs} (seed {', '.join(map(str, self.seeds))})"

    def as_json(self) -> str:
        error = None if self.error is None else error_fields(self.error)
        outputs = [
            {"path": str(path), "seed": seed} for path, seed in zip(self.picture.outputs, self.seeds, strict=False)
        ]
        return json.dumps(
            {"picture": str(self.picture.source), "status": self.status, "outputs": outputs, "error": error},
            ensure_ascii=False,
        )


def message_of(error: Exception) -> str:
    """Return what an error says to the user."""
    if isinstance(error, EditError):
        return error.message
    # An OSError's own text repeats its number and the path.
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def error_fields(error: Exception) -> dict[str, Any]:
    """Return an error as a line of JSON has it."""
    if isinstance(error, EditError):
        return {"code": error.code, "message": error.message, "param": error.param}
    return {"code": "FILE", "message": message_of(error), "param": None}


def complain(words: str) -> None:
    """Print a line to standard error."""
    print(words, file=sys.stderr)


class Report:
    """Printer of results: the lines of edited pictures go to standard output, everything else to standard error."""

    def __init__(self, pictures: int, *, as_json: bool) -> None:
        self.counts: Counter[Status] = Counter()
        self._pictures = pictures
        self._as_json = as_json
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            # Lines that are piped elsewhere must not be drawn above the bars.
            redirect_stdout=sys.stdout.isatty(),
            disable=not console.is_terminal,
            transient=True,
        )
        self._all = self._bars.add_task("all pictures", total=pictures, note="", visible=pictures > 1)
        self._tasks: dict[EditTask, list[TaskID]] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, picture: EditTask) -> None:
        self._tasks[picture] = [self._bars.add_task(str(output), total=None, note="sent") for output in picture.outputs]

    def progress(self, picture: EditTask, event: Steps) -> None:
        """Show the progress of a request on the bars of all its outputs, which step side by side."""
        tasks = self._tasks[picture]
        note = f"{event.place} in the queue" if event.place else "steps"
        for task in tasks:
            self._bars.update(
                task, total=event.steps // len(tasks), completed=event.steps_done // len(tasks), note=note
            )

    def completed(self, picture: EditTask, variant: int) -> None:
        """Mark an output as done. `variant` counts from 0."""
        self._bars.update(self._tasks[picture][variant], note="done")

    def end(self, outcome: TaskOutcome) -> None:
        self.counts[outcome.status] += 1
        for task in self._tasks.pop(outcome.picture, []):
            self._bars.remove_task(task)
        self._bars.advance(self._all)
        if self._as_json:
            print(outcome.as_json(), flush=True)
        elif outcome.status == "edited":
            print(outcome.words, flush=True)
        if outcome.status == "failed":
            complain(outcome.words)

    def sum_up(self) -> None:
        """Print how many pictures have each result; those that have begun and not ended were stopped."""
        stopped = len(self._tasks)
        left = self._pictures - self.counts.total() - stopped
        counts = {
            "edited": self.counts["edited"],
            "already done": self.counts["skipped"],
            "failed": self.counts["failed"],
            "stopped": stopped,
            "not tried": left,
        }
        words = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "edited")
        complain(words)
