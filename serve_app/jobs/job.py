"""One job: where it is in its life, what its caller sees of it, and what a later process has to know."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from serve_app.events import Progress
from serve_app.responses.errors import error_body, to_public_error
from serve_app.responses.log import LogEntry
from serve_app.responses.schemas import ErrorObject, JobBody
from serve_app.settings import LogSettings


def new_id() -> str:
    """Nobody guesses it."""
    return uuid.uuid4().hex


@dataclass(slots=True, eq=False)
class Job:
    """`ended_s`: seconds since the epoch, None while it is open. Its result, where it succeeded, is in the vault.

    `starts`: in how many processes it has been begun. `open_bytes`: of the pictures that it is made from.
    """

    entry: LogEntry
    id: str
    created_s: float = field(default_factory=time.time)
    starts: int = 1
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 1))
    ended_s: float | None = None
    open_bytes: int = 0
    result_bytes: int = 0
    error: ErrorObject | None = None

    @property
    def status(self) -> Literal["queued", "running", "succeeded", "failed"]:
        if self.ended_s is None:
            return "queued" if self.progress.place else "running"
        return "succeeded" if self.error is None else "failed"

    def fail(self, error: Exception) -> None:
        """It ends with this, of which its caller is told what may be told."""
        seen = to_public_error(error, self.id)
        self.entry.record_error(seen)
        self.error = error_body(seen)["error"]

    def note(self, *, ended_s: float | None = None, result_bytes: int = 0) -> bytes:
        """What a later process has to know, besides the form or the result."""
        progress = {"steps_done": self.progress.steps_done, "steps": self.progress.steps}
        known = {"created_s": self.created_s, "starts": self.starts, "error": self.error}
        return orjson.dumps({**known, "progress": progress, "ended_s": ended_s, "result_bytes": result_bytes})

    @classmethod
    def noted(cls, id: str, note: bytes, log: LogSettings) -> "Job":
        """The job of that note."""
        known = orjson.loads(note)
        progress = Progress(**known.pop("progress"), place=0)
        if known["ended_s"] is None:
            # It begins again.
            progress = Progress(0, progress.steps, place=1)
        return cls(LogEntry(log, is_job=True), id, progress=progress, **known)

    def body(self, ttl_s: float, result: bytes | None) -> bytes:
        """What its caller sees, as JSON; `result`: an EditResponse, as JSON."""
        fragment: Any = None if result is None else orjson.Fragment(result)
        value: JobBody = {
            "id": self.id,
            "object": "image_edit.job",
            "status": self.status,
            "created_at": int(self.created_s),
            "expires_at": None if self.ended_s is None else int(self.ended_s + ttl_s),
            "place": self.progress.place,
            "steps_done": self.progress.steps_done,
            "steps": self.progress.steps,
            "result": fragment,
            "error": self.error,
        }
        return orjson.dumps(value)
