"""A finished edit as JSON: its pictures become text on the picture pool, in the order of the contract."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import pybase64
from starlette.responses import Response

from serve_app.form import EditForm
from serve_app.images import encode
from serve_app.request import EditResult, Pixels


async def respond(result: EditResult, form: EditForm, executor: Executor, started: float) -> tuple[Response, float]:
    """The answer, and the seconds that it took to make. `started`: when the edit was, by `time.perf_counter`."""
    start = time.perf_counter()
    loop = asyncio.get_running_loop()
    data = await _data(result, form, executor)
    end = time.perf_counter()
    answer = {
        "created": int(time.time()),
        "data": data,
        "output_format": form.output_format,
        "usage": usage(end - started, len(form.request.images), len(data)),
    }
    body = await loop.run_in_executor(executor, orjson.dumps, answer)
    timings = {**asdict(result.timings), "serialize_s": end - start}
    headers = {"Server-Timing": _server_timing(timings)}
    return Response(body, headers=headers, media_type="application/json"), end - start


async def _data(result: EditResult, form: EditForm, executor: Executor) -> list[dict[str, Any]]:
    """All variants of the first picture, then all of the second, and so on."""
    loop = asyncio.get_running_loop()
    outputs = list(_in_order(result))
    texts = await asyncio.gather(
        *(loop.run_in_executor(executor, to_base64, output.pixels, form) for output in outputs)
    )
    return [
        {
            "b64_json": text,
            "size": size_text(output.pixels),
            "seed": output.seed,
            "input_index": output.input_index,
            "variant_index": output.variant_index,
        }
        for output, text in zip(outputs, texts, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Output:
    pixels: Pixels
    seed: int
    input_index: int
    variant_index: int


def _in_order(result: EditResult) -> Iterator[_Output]:
    for i, (variants, seeds) in enumerate(zip(result.pixels, result.seeds, strict=True)):
        for j, (pixels, seed) in enumerate(zip(variants, seeds, strict=True)):
            yield _Output(pixels, seed, i, j)


def _server_timing(timings: dict[str, float]) -> str:
    return ", ".join(f"{name.removesuffix('_s')};dur={seconds * 1000:.1f}" for name, seconds in timings.items())


# --- what a stream says of its outputs too ------------------------------------------------------------------------


def to_base64(pixels: Pixels, form: EditForm) -> str:
    """The picture file that the form asks for, as text."""
    return pybase64.b64encode_as_string(encode(pixels, form.output_format, form.output_compression))


def size_text(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def usage(seconds: float, inputs: int, outputs: int) -> dict[str, Any]:
    return {"processing_time_seconds": round(seconds, 3), "input_images": inputs, "generated_images": outputs}
