"""The state of one job, as its caller sees it and as the store keeps it."""

import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

import orjson

from serve_app.errors import EditError
from serve_app.events import Progress
from serve_app.links.pictures import place_of
from serve_app.responses.errors import error_body
from serve_app.responses.schemas import (
    CompletedEvent,
    DoneEvent,
    EditResponse,
    ErrorObject,
    JobBody,
    LinkedOutputBody,
    OutputBody,
    PartialImageEvent,
)

GROUP = "jobs"
"""The group of records that jobs are."""

_VERSION = 1
"""Of the state. A state of another version is a job that cannot be read."""


class StoredPicture(TypedDict):
    """The last picture of one output. `event`: its event, without the picture; `blob`: the picture file."""

    blob: str
    event: PartialImageEvent | CompletedEvent


@dataclass(slots=True, eq=False)
class Job:
    """A job without the bytes that belong to it, which are blobs of its folder: its form, and its pictures.

    `caller`: the name of the key that it belongs to; None if the server had no keys. `created_s`, `ended_s`: seconds
    since the epoch; a job is open until `ended_s` is set. `starts`: how many processes have started it. `open_bytes`:
    size of its form and its decoded images, which are in memory while it is open. `generates`: it makes pictures from a
    text alone. `as_links`: its outputs are shown as links. `webhook_url`: is told of its end. `is_accepted`: its caller
    may know of it. `pictures`: by `IMAGE-VARIANT`, in the order of their events. `result`: the response without its
    pictures.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    caller: str | None = None
    created_s: float = field(default_factory=time.time)
    starts: int = 1
    open_bytes: int = 0
    generates: bool = False
    as_links: bool = False
    webhook_url: str | None = None
    is_accepted: bool = False
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 1))
    pictures: dict[str, StoredPicture] = field(default_factory=dict)
    result: EditResponse | None = None
    done: DoneEvent | None = None
    ended_s: float | None = None
    error: ErrorObject | None = None

    @property
    def short_id(self) -> str:
        """The beginning of the id, for the log. On a server without keys, the whole id is enough to fetch the job."""
        return self.id[:8]

    @property
    def status(self) -> Literal["queued", "running", "succeeded", "failed"]:
        if self.ended_s is None:
            return "queued" if self.progress.place else "running"
        return "succeeded" if self.error is None else "failed"

    def put_picture(self, place: str, picture: StoredPicture) -> None:
        """Add the picture of an output behind the others, in place of its former one."""
        self.pictures.pop(place, None)
        self.pictures[place] = picture

    def restart(self) -> None:
        """Begin anew, in another process or after the store was lost."""
        self.progress = Progress(0, self.progress.steps, place=1)
        self.pictures = {}

    def end(self) -> None:
        self.ended_s = time.time()

    def fail(self, error: EditError) -> None:
        """End with an error, as its caller may see it."""
        self.error, self.result, self.done = error_body(error)["error"], None, None
        self.pictures = {}
        self.end()

    def dump(self) -> bytes:
        return orjson.dumps({"version": _VERSION, **asdict(self)})

    @classmethod
    def load(cls, dumped: bytes) -> "Job":
        """Return the job of `dump`. Raises ValueError for the state of another version."""
        state: dict[str, Any] = orjson.loads(dumped)
        if state.pop("version") != _VERSION:
            raise ValueError("the state of another version")
        return cls(**{**state, "progress": Progress(**state["progress"])})

    @property
    def outputs(self) -> list[tuple[OutputBody, str]]:
        """The outputs without their pictures, and the blob of each, in the order of the contract."""
        data: list[OutputBody] = [] if self.result is None else self.result["data"]  # type: ignore[assignment]
        return [(output, self.pictures[place_of(output)]["blob"]) for output in data]

    def body(self, ttl_s: float, outputs: list[OutputBody] | list[LinkedOutputBody]) -> bytes:
        """Return the JobBody as JSON. `outputs`: of a job that has succeeded, with their pictures or links to them.

        `ttl_s`: how long an ended job is kept.
        """
        value: JobBody = {
            "id": self.id,
            "object": "image_edit.job",
            "status": self.status,
            "created_at": int(self.created_s),
            "expires_at": None if self.ended_s is None else int(self.ended_s + ttl_s),
            "place": self.progress.place,
            "steps_done": self.progress.steps_done,
            "steps": self.progress.steps,
            "result": None if self.result is None else self.result | {"data": outputs},
            "error": self.error,
        }
        return orjson.dumps(value)
