"""The one log line of an edit, written when its answer has been sent, or its caller has left."""

import asyncio
import logging
import time
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import EditError

# Nobody reads it: nginx's number for a client that closed the connection.
CLIENT_CLOSED_REQUEST = 499

# Ray Serve's replicas write this logger to the replica's log file.
logger = logging.getLogger("ray.serve")


@dataclass(slots=True)
class LogEntry:
    """What the line says; filled in as the request goes on. A stream changes `status` after its headers are sent."""

    request_id: str
    user: str | None = None
    pictures: int | None = None
    n: int | None = None
    status: int = 500
    start: float = field(default_factory=time.perf_counter)

    def write(self) -> None:
        logger.info(
            "edit request_id=%s user=%r pictures=%s n=%s status=%d seconds=%.3f",
            *(self.request_id, self.user, self.pictures, self.n, self.status, time.perf_counter() - self.start),
        )


class LogEdits:
    """Around the route of edits, inside ErrorBodies. The route finds its LogEntry as `scope["log_entry"]`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        entry = scope["log_entry"] = LogEntry(scope["request_id"])

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except EditError as error:
            entry.status = error.status
            raise
        except ClientDisconnect:
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, watched_send)
        except asyncio.CancelledError:
            entry.status = CLIENT_CLOSED_REQUEST
            raise
        finally:
            entry.write()
