"""The disconnect of a caller, as ASGI has it, in place of the errors that Serve raises for it."""

from ray.exceptions import RayActorError, TaskCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class DisconnectMiddleware:
    """ASGI middleware, the outermost, under which `receive` returns `http.disconnect` once the caller has left.

    Serve's proxy (Ray 2.60) then cancels the request together with the call that would fetch the request's next
    message. If that call ends first, Serve's `receive` raises TaskCancelledError, and waits for ever at the next call.
    If the proxy itself has died, and with it the connection, `receive` raises RayActorError.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_left = False

        async def receive_or_disconnect() -> Message:
            nonlocal has_left
            if not has_left:
                try:
                    return await receive()
                except (TaskCancelledError, RayActorError):
                    has_left = True
            return {"type": "http.disconnect"}

        await self.app(scope, receive_or_disconnect, send)
