"""JSON responses of finished edits and generations, with the pictures encoded in the order of the contract."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict
from typing import Any, Literal

import orjson
import pybase64
from starlette.responses import Response

from serve_app.forms.form import EditForm
from serve_app.images.output_file import encode_marked
from serve_app.images.provenance import EDITED, GENERATED
from serve_app.request import EditResult, GenerationRequest, Picture, TokenCounts
from serve_app.responses.schemas import EditResponse, LinkedOutputBody, OutputBody, Usage

IGNORED = "x-edit-ignored"
"""The header that names the fields which were accepted without effect, so that nothing is ignored silently."""


Publish = Callable[[list[tuple[OutputBody, bytes]]], Awaitable[list[LinkedOutputBody]]]
"""Keep the files of outputs, and return the outputs with links to them."""


async def build_response(
    result: EditResult, form: EditForm, executor: Executor, started: float, publish: Publish
) -> tuple[Response, float]:
    """Return the HTTP response to an edit, and the seconds spent on building it; pictures are encoded on `executor`.

    `started`: the start of the edit, by `time.perf_counter`. `publish`: called if the outputs are answered as links.
    """
    start = time.perf_counter()
    loop = asyncio.get_running_loop()
    build: Callable[..., Any] = _build_file if form.as_links else build_output
    built = await asyncio.gather(
        *(loop.run_in_executor(executor, build, *output, form) for output in _in_order(result))
    )
    outputs = await publish(built) if form.as_links else built
    end = time.perf_counter()
    body = build_body(form, outputs, end - started, result.tokens)
    content = await loop.run_in_executor(executor, orjson.dumps, body)
    timings = {**asdict(result.timings), "serialize_s": end - start}
    headers = {"Server-Timing": _server_timing(timings)}
    return Response(content, headers=headers, media_type="application/json"), end - start


def _in_order(result: EditResult) -> Iterator[tuple[int, int, int, Picture]]:
    """Yield image index, variant index, seed and pixels: all variants of an image before those of the next."""
    for i, (variants, seeds) in enumerate(zip(result.pixels, result.seeds, strict=True)):
        for j, (pixels, seed) in enumerate(zip(variants, seeds, strict=True)):
            yield i, j, seed, pixels


def _server_timing(timings: dict[str, float]) -> str:
    return ", ".join(f"{name.removesuffix('_s')};dur={seconds * 1000:.1f}" for name, seconds in timings.items())


# --- shared with streams and jobs ---------------------------------------------------------------------------------


def build_body(
    form: EditForm, outputs: list[OutputBody] | list[LinkedOutputBody], seconds: float, tokens: TokenCounts
) -> EditResponse:
    """Return the body of a finished edit; `outputs` are in the order of the contract."""
    return {
        "created": int(time.time()),
        "data": outputs,
        "output_format": form.output_format,
        "usage": build_usage(seconds, len(form.request.images), len(outputs), tokens),
    }


def build_output(image_index: int, variant_index: int, seed: int, pixels: Picture, form: EditForm) -> OutputBody:
    """Return one output. Encodes its picture, which is too slow for an event loop."""
    picture = pybase64.b64encode_as_string(encode_file(pixels, form))
    return describe_output(image_index, variant_index, seed, pixels) | {"b64_json": picture}


def _build_file(
    image_index: int, variant_index: int, seed: int, pixels: Picture, form: EditForm
) -> tuple[OutputBody, bytes]:
    return describe_output(image_index, variant_index, seed, pixels), encode_file(pixels, form)


def describe_output(image_index: int, variant_index: int, seed: int, pixels: Picture) -> OutputBody:
    """Return one output without its picture."""
    return {
        "b64_json": "",
        "size": size_text(pixels),
        "seed": seed,
        "input_index": image_index,
        "variant_index": variant_index,
    }


def encode_file(pixels: Picture, form: EditForm) -> bytes:
    """Encode an output or a preview in the file format that the form asks for, with the marks of its provenance."""
    kind = GENERATED if isinstance(form.request, GenerationRequest) else EDITED
    return encode_marked(pixels, form.output_format, form.output_compression, kind, form.provenance)


def background(pixels: Picture, form: EditForm) -> Literal["opaque", "transparent"]:
    """Return OpenAI's word for the background of an output file."""
    return "transparent" if pixels.shape[2] == 4 and form.output_format != "jpeg" else "opaque"


def size_text(pixels: Picture) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def build_usage(seconds: float, inputs: int, outputs: int, tokens: TokenCounts) -> Usage:
    """Return the usage with our own names and, beside them, those that OpenAI's clients read."""
    input_tokens = tokens.text + tokens.reference
    return {
        "processing_time_seconds": round(seconds, 3),
        "input_images": inputs,
        "generated_images": outputs,
        "input_tokens": input_tokens,
        "output_tokens": tokens.output,
        "total_tokens": input_tokens + tokens.output,
        "input_tokens_details": {"text_tokens": tokens.text, "image_tokens": tokens.reference},
    }
