"""Many callers at once: valid edits, hostile requests, and disconnects at any moment."""

import asyncio
import base64
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from serve_app.request import Pixels
from tests.scenes import difference
from tests.slow.soak import hostile
from tests.slow.soak.edits import Edit, read

CALLERS = 24
_HOSTILE, _LEAVING = 0.2, 0.1
_OK = 200
_PREVIEWS = 3
# The server is full or not ready, or this key's share is: the caller waits as long as the answer says, and tries again.
_TRY_LATER = frozenset({429, 503})
_PATIENCE_S = 300.0
_LONGEST_WAIT_S = 5
_POLL_S = 0.3
# Float noise between a merged edit and a lone one.
_MOST_DIFFERENCE = 1

References = dict[int, list[Pixels]]


class Fault(Exception):
    """A broken promise."""


@dataclass
class Outcomes:
    """The requests by kind and outcome. `slowest_refusals_s`: by hostile request, or by status of a valid one.

    `faults`: descriptions of broken promises.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    by_key: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    slowest_refusals_s: dict[str, float] = field(default_factory=dict)
    worst_difference: int = 0
    slowest_s: float = 0.0

    def check(self, edit: Edit, pictures: list[Pixels], references: References) -> None:
        """Raise Fault if an edit has other pictures than its own."""
        wanted = references[edit.key]
        if len(pictures) != len(wanted):
            raise Fault(f"edit {edit.key}: {len(pictures)} pictures, not {len(wanted)}")
        for place, (picture, reference) in enumerate(zip(pictures, wanted, strict=True)):
            worst = difference(picture, reference) if picture.shape == reference.shape else 256
            self.worst_difference = max(self.worst_difference, worst)
            if worst > _MOST_DIFFERENCE:
                raise Fault(f"edit {edit.key}, output {place}: differs by {worst} of 255")


async def references_of(client: httpx.AsyncClient, edits: list[Edit]) -> References:
    """Return the pictures of each edit alone, before anything else happens."""
    found = {}
    for edit in edits:
        response = await client.post(hostile.EDITS, **edit.form())
        response.raise_for_status()
        found[edit.key] = _pictures(response.json()["data"])
    return found


def _pictures(data: list[dict[str, str]]) -> list[Pixels]:
    return [read(base64.b64decode(item["b64_json"])) for item in data]


def _outputs(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the outputs of a stream in the order of an answer."""
    outputs = [event for event in events if event["type"] == "image_edit.completed"]
    return sorted(outputs, key=lambda event: (event["input_index"], event["variant_index"]))


def _place_of_preview(event: dict[str, Any]) -> tuple[int, int, int] | None:
    if event["type"] != "image_edit.partial_image":
        return None
    return event["input_index"], event["variant_index"], event["partial_image_index"]


@dataclass
class Caller:
    """A caller with the key of that name, who sends one request after another until `end_s` of the loop's clock."""

    key: str
    client: httpx.AsyncClient
    edits: list[Edit]
    references: References
    outcomes: Outcomes
    rng: random.Random

    async def call_until(self, end_s: float) -> None:
        while asyncio.get_running_loop().time() < end_s:
            try:
                await self._call()
            except Exception as error:
                self.outcomes.faults.append(f"{type(error).__name__}: {error}"[:300])

    async def _call(self) -> None:
        draw, edit = self.rng.random(), self.rng.choice(self.edits)
        if draw < _HOSTILE:
            await self._attack(edit)
        elif draw < _HOSTILE + _LEAVING:
            await self._leave(edit)
        else:
            start_s = time.monotonic()
            await self.rng.choice((self._edit, self._edit, self._twice, self._stream, self._page, self._job))(edit)
            self.outcomes.slowest_s = max(self.outcomes.slowest_s, time.monotonic() - start_s)

    async def _attack(self, edit: Edit) -> None:
        what = self.rng.choice(hostile.ALL)
        start_s = time.monotonic()
        status = await what.send(self.client, edit)
        self._refused_since(start_s, what.name)
        self.outcomes.counts["hostile"] += 1
        # A full queue refuses requests unread.
        if status not in what.statuses | _TRY_LATER:
            raise Fault(f"hostile, {what.name}: {status}")

    async def _leave(self, edit: Edit) -> None:
        """Disconnect during the upload, while waiting, at some step, or while the answer is sent."""
        call = asyncio.create_task(self.client.post(hostile.EDITS, **edit.form(**self._maybe_stream())))
        await asyncio.wait({call}, timeout=self.rng.choice((0.0, 0.01, 0.1, 0.5, 2.0)) * self.rng.random())
        if call.cancel():
            self.outcomes.counts["left"] += 1
        await asyncio.gather(call, return_exceptions=True)

    def _maybe_stream(self) -> dict[str, str]:
        return self.rng.choice(({}, {"stream": "true", "partial_images": "2"}))

    async def _edit(self, edit: Edit) -> None:
        response = await self._answered(hostile.EDITS, edit.form(), status=200)
        self._right("edits", edit, response.json()["data"])

    async def _twice(self, edit: Edit) -> None:
        """Send the same edit twice, the second time before the first is answered."""
        form = {**edit.form(), "headers": {"Idempotency-Key": f"{self.rng.getrandbits(64):x}"}}
        for response in await asyncio.gather(*(self._answered(hostile.EDITS, form, status=200) for _ in range(2))):
            self._right("retries", edit, response.json()["data"])

    async def _stream(self, edit: Edit) -> None:
        response = await self._answered(hostile.EDITS, edit.form(stream="true", partial_images="1"), status=200)
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        if not events or events[-1]["type"] != "image_edit.done":
            raise Fault(f"a stream without its end: {response.text[-200:]}")
        self._right("streams", edit, _outputs(events))

    async def _page(self, edit: Edit) -> None:
        """Read a stream event by event, with all previews, and see that none comes twice."""
        form = edit.form(stream="true", partial_images=str(_PREVIEWS))
        start_s = time.monotonic()
        async with self.client.stream("POST", hostile.EDITS, **form) as response:
            if response.status_code in _TRY_LATER:
                self.outcomes.refused[response.status_code] += 1
                self._refused_since(start_s, str(response.status_code))
                return
            if response.status_code != _OK:
                raise Fault(f"page: {response.status_code} {(await response.aread())[:200]!r}")
            events = [json.loads(line[6:]) async for line in response.aiter_lines() if line.startswith("data: {")]
        if not events or events[-1]["type"] != "image_edit.done":
            raise Fault(f"page: a stream without its end: {str(events[-1:])[:200]}")
        previews = Counter(map(_place_of_preview, events)).items()
        if twice := [place for place, times in previews if place is not None and times > 1]:
            raise Fault(f"page: previews sent twice: {twice}")
        self._right("pages", edit, _outputs(events))

    async def _job(self, edit: Edit) -> None:
        response = await self._answered(f"{hostile.EDITS}?async=true", edit.form(), status=202)
        url, status = f"/v1/jobs/{response.json()['id']}", "queued"
        while status in ("queued", "running"):
            await asyncio.sleep(_POLL_S)
            response = await self.client.get(url)
            if response.status_code in _TRY_LATER:
                self.outcomes.refused[response.status_code] += 1
                continue
            job = response.json()
            status = job.get("status")
        if status != "succeeded":
            raise Fault(f"job: {str(job)[:200]}")
        self._right("jobs", edit, job["result"]["data"])
        if (deleted := await self.client.delete(url)).status_code not in {_OK} | _TRY_LATER:
            raise Fault(f"job: deleting it: {deleted.status_code}")

    def _refused_since(self, start_s: float, what: str) -> None:
        slowest = self.outcomes.slowest_refusals_s
        slowest[what] = max(slowest.get(what, 0.0), round(time.monotonic() - start_s, 2))

    def _right(self, kind: str, edit: Edit, data: list[dict[str, str]]) -> None:
        self.outcomes.counts[kind] += 1
        self.outcomes.by_key[self.key] += 1
        self.outcomes.check(edit, _pictures(data), self.references)

    async def _answered(self, url: str, form: dict[str, Any], *, status: int) -> httpx.Response:
        """Return the answer once the server has room. Raise Fault if it never has, or answers with another status."""
        give_up_s = time.monotonic() + _PATIENCE_S
        while True:
            start_s = time.monotonic()
            response = await self.client.post(url, **form)
            if response.status_code == status:
                return response
            if response.status_code not in _TRY_LATER or time.monotonic() > give_up_s:
                raise Fault(f"{url}: {response.status_code} {response.text[:200]}")
            self.outcomes.refused[response.status_code] += 1
            self._refused_since(start_s, str(response.status_code))
            await asyncio.sleep(min(int(response.headers["Retry-After"]), _LONGEST_WAIT_S) * self.rng.random())
