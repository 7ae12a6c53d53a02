"""The state of one job, as its caller sees it and as the vault keeps it."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from serve_app.events import Progress
from serve_app.jobs.feed import Feed, News
from serve_app.responses.errors import error_body, to_public_error
from serve_app.responses.log import LogEntry
from serve_app.responses.schemas import ErrorDetail, ErrorObject, JobBody
from serve_app.settings import LogSettings


def new_id() -> str:
    """Return a new, unguessable job id."""
    return uuid.uuid4().hex


@dataclass(slots=True, eq=False)
class Job:
    """A job without its form and its result, which are in the vault.

    `caller`: the name of the key that it belongs to; None if the server had no keys. `created_s`, `ended_s`: seconds
    since the epoch; a job is open until `ended_s` is set. `starts`: how many processes have started it. `open_bytes`:
    size of its decoded images, which are in memory while it is open.
    """

    entry: LogEntry
    id: str
    caller: str | None = None
    created_s: float = field(default_factory=time.time)
    starts: int = 1
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 1))
    ended_s: float | None = None
    open_bytes: int = 0
    result_bytes: int = 0
    error: ErrorObject | None = None
    feed: Feed = field(default_factory=Feed)

    @property
    def short_id(self) -> str:
        """The beginning of the id, for the log. On a server without keys, who reads the whole id may fetch the job."""
        return self.id[:8]

    @property
    def status(self) -> Literal["queued", "running", "succeeded", "failed"]:
        if self.ended_s is None:
            return "queued" if self.progress.place else "running"
        return "succeeded" if self.error is None else "failed"

    def fail(self, error: Exception) -> None:
        """Set the error with which the job ends, as its caller may see it."""
        public = to_public_error(error, self.short_id)
        self.entry.record_error(public)
        self.error = error_body(public)["error"]

    def news(self, seen: int) -> News:
        """Return the events after those that a reader has seen; those of a failed job end with its error."""
        news = self.feed.after(seen, is_open=self.ended_s is None)
        if self.error is not None and not news.is_open:
            detail: ErrorDetail = {"error": self.error["code"], "message": self.error["message"]}
            news.events.append({"type": "error", "detail": detail, "error": self.error})
        return news

    def dump_state(self, *, ended_s: float | None = None, result_bytes: int = 0) -> bytes:
        """Return as JSON what a later process needs, besides the form or the result."""
        progress = {"steps_done": self.progress.steps_done, "steps": self.progress.steps}
        state = {"caller": self.caller, "created_s": self.created_s, "starts": self.starts, "error": self.error}
        return orjson.dumps({**state, "progress": progress, "ended_s": ended_s, "result_bytes": result_bytes})

    @classmethod
    def from_state(cls, id: str, dumped: bytes, log: LogSettings) -> "Job":
        """Return the job whose state `dump_state` has written; an open job is queued again."""
        # A state of an older version has no caller: with keys, nobody gets such a job.
        state = orjson.loads(dumped)
        progress = Progress(**state.pop("progress"), place=0)
        if state["ended_s"] is None:
            progress = Progress(0, progress.steps, place=1)
        return cls(LogEntry(log, key_name=state.get("caller"), is_job=True), id, progress=progress, **state)

    def body(self, ttl_s: float, result: bytes | None) -> bytes:
        """Return the JobBody as JSON; `result`: an EditResponse as JSON, `ttl_s`: how long an ended job is kept."""
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
