"""Serve image edits: the edits of many callers share every forward of the model, and each caller gets its own pictures.

The names below are the public surface. Each is imported on first use, so that the clients and the types load neither
torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve_app.client.asynchronous import AsyncImageEdits as AsyncImageEdits
    from serve_app.client.blocking import ImageEdits as ImageEdits
    from serve_app.client.connection import BrokenOff as BrokenOff
    from serve_app.client.connection import Unreachable as Unreachable
    from serve_app.client.messages import EditOptions as EditOptions
    from serve_app.client.messages import GenerationOptions as GenerationOptions
    from serve_app.client.messages import Output as Output
    from serve_app.client.messages import StreamedOutput as StreamedOutput
    from serve_app.client.messages import StreamedPreview as StreamedPreview
    from serve_app.errors import EditError as EditError
    from serve_app.events import Completed as Completed
    from serve_app.events import Done as Done
    from serve_app.events import Preview as Preview
    from serve_app.events import Progress as Progress
    from serve_app.request import EditRequest as EditRequest
    from serve_app.request import EditResult as EditResult
    from serve_app.request import GenerationRequest as GenerationRequest

_MODULES = {
    "serve_app.client.asynchronous": ("AsyncImageEdits",),
    "serve_app.client.blocking": ("ImageEdits",),
    "serve_app.client.connection": ("BrokenOff", "Unreachable"),
    "serve_app.client.messages": ("EditOptions", "GenerationOptions", "Output", "StreamedOutput", "StreamedPreview"),
    "serve_app.errors": (
        "DeadlineExceeded",
        "EditError",
        "Forbidden",
        "GenerationError",
        "IdempotencyKeyReused",
        "InvalidInput",
        "ModelNotFound",
        "NotFound",
        "NotReady",
        "Overloaded",
        "PayloadTooLarge",
        "TooManySamples",
        "Unauthorized",
        "UnsupportedMediaType",
    ),
    "serve_app.events": ("Completed", "Done", "Preview", "Progress"),
    "serve_app.request": ("EditRequest", "EditResult", "GenerationRequest"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
