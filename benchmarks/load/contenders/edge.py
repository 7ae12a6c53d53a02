"""A plain Starlette application for contenders without one, with our parser and encoders, so that edges cost alike."""

from collections.abc import Awaitable, Callable

import orjson
import pybase64
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.load.generator import PATH
from serve_app.forms.form import parse
from serve_app.images.encoding import encode
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings


def create_edge(edit: Callable[[EditRequest], Awaitable[EditResult]], settings: AppSettings) -> Starlette:
    """Return an application that answers edits, and /health as soon as it runs."""

    async def post(request: Request) -> Response:
        form = await parse(request, settings)
        return Response(body(await edit(form.request)), media_type="application/json")

    async def health(request: Request) -> Response:
        return Response(b"{}", media_type="application/json")

    return Starlette(routes=[Route(PATH, post, methods=["POST"]), Route("/health", health)])


def body(result: EditResult) -> bytes:
    """Return the part of our answer that the benchmark reads."""
    pictures = [pixels for variants in result.pixels for pixels in variants]
    data = [{"b64_json": pybase64.b64encode_as_string(encode(pixels, "png", 100))} for pixels in pictures]
    return orjson.dumps({"data": data})
