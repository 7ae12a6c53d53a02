"""The log line of an edit, written when its response has been sent or its caller has disconnected.

A job writes a second line when it ends. A line is a record of the logger "ray.serve" with its fields as `extra`, which
Serve's JSON encoding (Ray 2.60) puts beside its own. A line holds no pictures, and prompts only if `log.prompts` is on.
"""

import asyncio
import logging
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import EditError
from serve_app.forms.form import EditForm
from serve_app.images.geometry import Size
from serve_app.request import BatchStats, Timings
from serve_app.settings import LogSettings

# nginx's status for a closed connection: it goes into the log only, since no client is left to read it.
CLIENT_CLOSED_REQUEST = 499

logger = logging.getLogger("ray.serve")


@dataclass(slots=True)
class LogEntry:
    """The fields of one line, filled in as the request proceeds; a stream sets `status` after its headers are sent.

    Without a `request_id`, Serve writes the id of the call in which the entry was made.
    """

    settings: LogSettings
    request_id: str = ""
    key_name: str | None = None
    body_bytes: int | None = None
    form: EditForm | None = None
    is_job: bool = False
    status: int = EditError.status
    code: str | None = None
    timings: Timings | None = None
    batch: BatchStats | None = None
    serialize_s: float | None = None
    start: float = field(default_factory=time.perf_counter)

    def record_result(self, timings: Timings, batch: BatchStats, serialize_s: float) -> None:
        self.timings, self.batch, self.serialize_s = timings, batch, serialize_s

    def record_error(self, error: Exception) -> None:
        """Record the status and code that the caller gets; for a bug, those of a 500."""
        public = error if isinstance(error, EditError) else EditError
        self.status, self.code = public.status, public.code

    def record_disconnect(self) -> None:
        """Record that the caller closed the connection before the end."""
        self.status, self.code = CLIENT_CLOSED_REQUEST, None

    def write(self, message: Literal["edit", "job"]) -> None:
        """Write the line, without the fields that are not known."""
        fields: dict[str, Any] = {
            "request_id": self.request_id or None,
            "key_name": self.key_name,
            **({} if self.form is None else self._request_fields(self.form)),
            "body_bytes": self.body_bytes,
            "status": self.status,
            "code": self.code,
            **self._duration_fields(),
            **({} if self.batch is None else _batch_fields(self.batch)),
        }
        logger.info(message, extra={name: value for name, value in fields.items() if value is not None})

    def _request_fields(self, form: EditForm) -> dict[str, Any]:
        request = form.request
        fields: dict[str, Any] = {
            "user": form.user,
            "mode": "job" if self.is_job else "stream" if form.stream else "plain",
            "inputs": [str(size) for size in request.sizes],
            "size": str(request.size or "auto"),
            "fit": request.fit if request.images and isinstance(request.size, Size) else None,
            "n": request.n,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "seed": request.seed,
        }
        if self.settings.prompts:
            prompts = [request.prompt] if isinstance(request.prompt, str) else list(request.prompt)
            fields |= {"prompts": prompts, "negative_prompt": request.negative_prompt}
        return fields

    def _duration_fields(self) -> dict[str, float]:
        seconds: dict[str, float] = {} if self.timings is None else asdict(self.timings)
        if self.serialize_s is not None:
            seconds["serialize_s"] = self.serialize_s
        seconds["total_s"] = time.perf_counter() - self.start
        return {name: round(value, 3) for name, value in seconds.items()}


def _batch_fields(batch: BatchStats) -> dict[str, float]:
    return {
        "forwards": batch.forwards,
        "mean_samples": round(batch.mean_samples, 2),
        "shared_forwards": batch.shared_forwards,
    }


class EditLogMiddleware:
    """ASGI middleware of the route of edits, inside AuthMiddleware; the route's LogEntry is `scope["log_entry"]`."""

    def __init__(self, app: ASGIApp, settings: LogSettings) -> None:
        self.app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received_bytes = 0
        entry = scope["log_entry"] = LogEntry(self._settings, scope["request_id"], scope["key_name"])

        async def watched_receive() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            return message

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
            await send(message)

        try:
            await self.app(scope, watched_receive, watched_send)
        except ClientDisconnect:
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, watched_send)
        except asyncio.CancelledError:
            entry.record_disconnect()
            raise
        except Exception as error:
            entry.record_error(error)
            raise
        finally:
            entry.body_bytes = received_bytes
            entry.write("edit")
