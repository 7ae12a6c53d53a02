"""The events of a job as server-sent events, for a caller who may come late, leave, and come again."""

import asyncio
from collections.abc import AsyncGenerator

from sse_starlette import EventSourceResponse

from serve_app.errors import EditError
from serve_app.jobs.feed import News
from serve_app.jobs.store import Jobs
from serve_app.responses.errors import error_body
from serve_app.responses.stream import END, LINE_END, encode_event

_POLL_S = 0.25
"""How often the process of the jobs is asked. A call that waits there would take one of its places."""


async def build_response(jobs: Jobs, id: str, caller: str | None) -> EventSourceResponse:
    """Return the response that streams the events of a job of that caller. Raises NotFound."""
    first = await jobs.news(id, caller, 0)
    return EventSourceResponse(_frames(jobs, id, caller, first), sep=LINE_END)


async def _frames(jobs: Jobs, id: str, caller: str | None, news: News) -> AsyncGenerator[bytes, None]:
    while True:
        for event in news.events:
            yield encode_event(event)
            if event["type"] == "error":
                return
        if not news.is_open:
            yield END
            return
        await asyncio.sleep(_POLL_S)
        try:
            news = await jobs.news(id, caller, news.seen)
        except EditError as error:
            yield encode_event({"type": "error", **error_body(error)})
            return
