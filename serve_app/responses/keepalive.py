"""Answers that take longer than a proxy waits for the first byte: white space, and then the JSON."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.responses.errors import error_body, to_public_error
from serve_app.responses.log import LogEntry

_SPACE = b" "


class KeepaliveResponse(Response):
    """The response of an edit that still runs. Calling it runs the edit; a caller who leaves cancels it.

    An edit that ends within `keepalive_s` is answered as without this class: with its own status and headers, or by
    raising its error. Otherwise the answer begins with status 200, since nobody knows a better one yet, and has white
    space every `keepalive_s` seconds, which readers of JSON skip. An error then stands in the body.
    """

    def __init__(self, edit: Coroutine[Any, Any, Response], keepalive_s: float, entry: LogEntry) -> None:
        # Without this header, nginx keeps the white space to itself.
        super().__init__(headers={"X-Accel-Buffering": "no"}, media_type="application/json")
        # It would be that of an empty body.
        del self.headers["Content-Length"]
        self._edit = edit
        self._keepalive_s = keepalive_s
        self._entry = entry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the edit and send its response. Raises the error of an edit that fails within `keepalive_s`."""
        edit = asyncio.create_task(self._edit)
        try:
            await asyncio.wait([edit], timeout=self._keepalive_s)
            if edit.done():
                await edit.result()(scope, receive, send)
            else:
                await self._keep_alive(edit, receive, send)
        finally:
            await _end(edit)

    async def _keep_alive(self, edit: "asyncio.Task[Response]", receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        left = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            while not edit.done() and not left.done():
                await send({"type": "http.response.body", "body": _SPACE, "more_body": True})
                await asyncio.wait([edit, left], timeout=self._keepalive_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(left)
        if edit.done():
            await send({"type": "http.response.body", "body": self._body(edit)})
        else:
            self._entry.record_disconnect()

    def _body(self, edit: "asyncio.Task[Response]") -> bytes:
        """Return the body of the edit's response; of its error, after recording the status that it would have had."""
        try:
            return bytes(edit.result().body)
        except ClientDisconnect:
            self._entry.record_disconnect()
            return b""
        except Exception as error:
            public = to_public_error(error, self._entry.request_id)
            self._entry.record_error(public)
            return orjson.dumps(error_body(public))


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(task: "asyncio.Task[Any]") -> None:
    """Cancel a task, unless it is done, and wait until it has ended."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        # An error that nobody asks for is logged otherwise.
        task.exception()
