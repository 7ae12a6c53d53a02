"""The load generator: real HTTP in one process, which sends each edit on time without waiting for earlier answers."""

import asyncio
import base64
import gc
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np
import PIL.Image

from benchmarks.edits import CONTENT_TYPE, Edit
from benchmarks.load.traces import Arrival, Trace
from serve_app.request import Pixels

PATH = "/v1/images/edits"
_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. Times in seconds after the start of the trace; `due_s`: the time at which to send the edit.

    `pictures` is None if the server rejected the edit or failed.
    """

    kind: int
    due_s: float
    sent_s: float
    done_s: float
    pictures: tuple[Pixels, ...] | None

    @property
    def latency_s(self) -> float:
        """Seconds from the due time, so that a late generator hides nothing."""
        return self.done_s - self.due_s


@dataclass(frozen=True, slots=True)
class _Reply:
    kind: int
    due_s: float
    sent_s: float
    done_s: float
    body: bytes | None


def run(base_url: str, trace: Trace, edits: Sequence[Edit]) -> list[Answer]:
    """Send the trace; return the answers in the order of its arrivals. Pictures are decoded after the last answer."""
    bodies = [edit.body() for edit in edits]
    gc.collect()
    replies = asyncio.run(_send_all(base_url + PATH, trace, bodies))
    return [Answer(r.kind, r.due_s, r.sent_s, r.done_s, None if r.body is None else _pictures(r.body)) for r in replies]


async def _send_all(url: str, trace: Trace, bodies: Sequence[bytes]) -> list[_Reply]:
    # One connection for each edit: callers are strangers to each other.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        sender = _Sender(session, url, bodies, time.perf_counter())
        if trace.waits:
            return [await sender.send(arrival.kind, sender.now_s()) for arrival in trace.arrivals]
        return await asyncio.gather(*(sender.send_at(arrival) for arrival in trace.arrivals))


@dataclass(frozen=True, slots=True)
class _Sender:
    session: aiohttp.ClientSession
    url: str
    bodies: Sequence[bytes]
    start: float

    def now_s(self) -> float:
        return time.perf_counter() - self.start

    async def send_at(self, arrival: Arrival) -> _Reply:
        await asyncio.sleep(arrival.at_s - self.now_s())
        return await self.send(arrival.kind, arrival.at_s)

    async def send(self, kind: int, due_s: float) -> _Reply:
        sent_s = self.now_s()
        body: bytes | None
        try:
            async with self.session.post(
                self.url, data=self.bodies[kind], headers={"Content-Type": CONTENT_TYPE}
            ) as response:
                body = await response.read()
                body = body if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            body = None
        return _Reply(kind, due_s, sent_s, self.now_s(), body)


def _pictures(body: bytes) -> tuple[Pixels, ...]:
    files = (io.BytesIO(base64.b64decode(item["b64_json"])) for item in json.loads(body)["data"])
    return tuple(np.asarray(PIL.Image.open(file)) for file in files)
