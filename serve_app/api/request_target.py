"""The refusal of requests that do not name a path, in Ray Serve's proxy (2.60), which answers them in plain text."""

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import InvalidInput
from serve_app.responses.errors import error_response

_QUOTED_CHARS = 100


class RequestTargetMiddleware:
    """ASGI middleware that answers 400 to whole URLs, as a client sends them to a proxy for other servers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/"):
            await self.app(scope, receive, send)
            return
        target = scope["path"][:_QUOTED_CHARS]
        message = f"Ask for a path, such as /v1/models, and not for {target!r}: this is not a proxy for other servers"
        await error_response(InvalidInput(message))(scope, receive, send)
