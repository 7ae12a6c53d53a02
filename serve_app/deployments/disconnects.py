"""The disconnect of a caller, as ASGI has it, in place of the errors that Serve raises for it."""

import asyncio

from ray.exceptions import RayActorError, TaskCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DISCONNECT = {"type": "http.disconnect"}


class DisconnectMiddleware:
    """ASGI middleware, the outermost, under which `receive` returns `http.disconnect` once the caller has left.

    Serve's proxy (Ray 2.60) then cancels the request together with the call that would fetch the request's next
    message. If that call ends first, Serve's `receive` raises TaskCancelledError, and waits for ever at the next call.
    If the proxy itself has died, and with it the connection, `receive` raises RayActorError, and nobody else cancels
    the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self.app(scope, receive, send)
            return
        messages = _Messages(receive, task)
        try:
            await self.app(scope, messages, send)
        except asyncio.CancelledError:
            if not messages.proxy_has_died:
                raise
            task.uncancel()
        finally:
            messages.close()


class _Messages:
    """The `receive` of one request. After the end of the body it waits for the disconnect, even if nobody calls it.

    Cancels `task`, which handles the request, if Serve's proxy dies.
    """

    def __init__(self, receive: Receive, task: "asyncio.Task[None]") -> None:
        self._receive = receive
        self._task = task
        self._disconnect: asyncio.Task[None] | None = None
        self._has_left = False
        self.proxy_has_died = False

    async def __call__(self) -> Message:
        if self._disconnect is not None:
            await asyncio.shield(self._disconnect)
            return _DISCONNECT
        if self._has_left:
            return _DISCONNECT
        try:
            message = await self._receive()
        except (TaskCancelledError, RayActorError):
            self._has_left = True
            return _DISCONNECT
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._disconnect = asyncio.create_task(self._wait_for_disconnect())
        return message

    async def _wait_for_disconnect(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except TaskCancelledError:
            pass
        except RayActorError:
            self.proxy_has_died = True
            self._task.cancel()

    def close(self) -> None:
        if self._disconnect is not None:
            self._disconnect.cancel()
