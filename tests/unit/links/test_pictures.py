"""Answers with links in place of pictures, over the application and a small editor. No Ray, no model."""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.api.keys import ApiKey
from serve_app.settings import AppSettings, AuthSettings, HttpSettings, JobSettings, ResultSettings
from serve_app.store.object_blobs import ObjectBlobs
from serve_app.store.store import OpenStore, Store
from tests.editors import Gated
from tests.http_calls import error_of, until
from tests.pictures import png
from tests.s3_server import BUCKET, running_s3
from tests.stores import SharedStore


class Caller:
    """A client of one application. Its editor works at once."""

    def __init__(self, store: Store, *, key: str | None = None, **settings: Any) -> None:
        editor = Gated()
        editor.gate.set()
        self.app = create_app(editor, AppSettings(**settings), store=store)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://localhost", headers=headers
        )

    async def post(self, query: str = "", **fields: str) -> httpx.Response:
        files = [("images", (f"{value}.png", png(value), "image/png")) for value in (10, 20)]
        data = {"prompt": "invert", "n": "2", "seed": "7", **fields}
        return await self.http.post(f"/v1/images/edits{query}", files=files, data=data)

    async def links(self, **fields: str) -> list[dict[str, Any]]:
        response = await self.post(response_format="url", **fields)
        assert response.status_code == 200, response.text
        data: list[dict[str, Any]] = response.json()["data"]
        return data

    async def get(self, url: str, **options: Any) -> httpx.Response:
        parts = urlsplit(url)
        return await self.http.get(f"{parts.path}?{parts.query}", **options)


def play(story: Callable[[SharedStore], Awaitable[None]]) -> None:
    async def go() -> None:
        await story(SharedStore())

    asyncio.run(go())


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_links_open_the_files_that_the_answer_would_have_had_in_the_same_order(output_format: str) -> None:
    async def story(store: SharedStore) -> None:
        caller, other = Caller(store), Caller(store)
        outputs = await caller.links(output_format=output_format)
        plain = (await caller.post(output_format=output_format)).json()["data"]
        assert len(outputs) == len(plain) == 4
        for output, wanted in zip(outputs, plain, strict=True):
            assert "b64_json" not in output
            assert {name: output[name] for name in ("size", "seed", "input_index", "variant_index")} == {
                name: wanted[name] for name in ("size", "seed", "input_index", "variant_index")
            }
            assert output["url"].startswith("http://localhost/v1/images/")
            # By any process.
            answer = await other.get(output["url"])
            assert answer.headers["content-type"] == f"image/{output_format}"
            assert answer.content == base64.b64decode(wanted["b64_json"])
        assert len({output["url"] for output in outputs}) == 4

    play(story)


def test_a_link_begins_with_the_address_that_callers_know() -> None:
    async def story(store: SharedStore) -> None:
        caller = Caller(store, http=HttpSettings(public_url="https://edits.example/api/"))
        [first, *_] = await caller.links()
        assert first["url"].startswith("https://edits.example/api/v1/images/")

    play(story)


@pytest.mark.parametrize("url", ["edits.example", "ftp://edits.example", "https://edits.example?a=b", "https://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"http\.public_url"):
        HttpSettings(public_url=url)


def test_a_link_ends_with_its_time_and_so_does_its_file() -> None:
    async def story(store: SharedStore) -> None:
        caller = Caller(store, results=ResultSettings(link_ttl_s=2.0))
        [first, *_] = await caller.links()
        assert (await caller.get(first["url"])).status_code == 200
        await until(lambda: time.time() > first["expires_at"])
        answer = await caller.get(first["url"])
        assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND")
        assert store.blobs.names
        store.clock.now_s += 3
        await caller.app.state.linked.sweep()
        assert store.blobs.names == []

    play(story)


def test_a_link_that_was_changed_or_made_up_opens_nothing() -> None:
    async def story(store: SharedStore) -> None:
        caller = Caller(store)
        first, second, *_ = await caller.links()
        address, _, query = first["url"].partition("?")
        expires, signature = query.split("&")
        later = f"expires={int(expires.removeprefix('expires=')) + 1000}"
        made_up = [
            address,
            f"{address}?{expires}",
            f"{address}?{expires}&signature=",
            f"{address}?{expires}&signature=%C3%A9",
            f"{address}?{expires}&{signature[:-1]}{'0' if signature[-1] != '0' else '1'}",
            f"{address}?{later}&{signature}",
            f"{second['url'].partition('?')[0]}?{query}",
            f"{address}?expires={'9' * 5000}&{signature}",
            f"{address}?expires=-1&{signature}",
            f"{address}?expires=%C2%B2&{signature}",
            f"{address.replace('0-0.png', 'form')}?{query}",
            f"http://localhost/v1/images/{'0' * 32}/0-0.png?{query}",
        ]
        answers = [await caller.get(url) for url in made_up]
        assert [answer.status_code for answer in answers] == [404] * len(made_up)
        # Nobody learns from the answer which of them exists.
        assert len({answer.content for answer in answers}) == 1

    play(story)


def test_a_link_opens_without_a_key_and_not_with_that_of_another(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{ApiKey.of(name, name).line}\n" for name in ("ann", "bob")))

    async def story(store: SharedStore) -> None:
        callers = {
            key: Caller(store, key=key, auth=AuthSettings(keys_file=keys)) for key in (None, "ann", "bob", "eve")
        }
        [first, *_] = await callers["ann"].links()
        got = {key: (await caller.get(first["url"])).status_code for key, caller in callers.items()}
        assert got == {None: 200, "ann": 200, "bob": 404, "eve": 401}
        # Only a link needs no key.
        assert (await callers[None].http.get("/v1/images/a/b/c")).status_code == 401
        assert (await callers[None].post()).status_code == 401

    play(story)


def test_the_oldest_answers_make_room_for_the_bytes_of_a_new_one() -> None:
    async def story(store: SharedStore) -> None:
        size = sum(len(base64.b64decode(item["b64_json"])) for item in (await Caller(store).post()).json()["data"])
        caller = Caller(store, results=ResultSettings(max_link_bytes=5 * size // 2))
        firsts = [(await caller.links())[0]["url"] for _ in range(4)]
        assert [(await caller.get(url)).status_code for url in firsts] == [404, 404, 200, 200]
        await caller.app.state.linked.sweep()
        assert len(store.blobs.names) == 8

    play(story)


def test_a_job_is_answered_with_links_that_end_with_it() -> None:
    async def story(store: SharedStore) -> None:
        caller = Caller(store, jobs=JobSettings(ttl_s=100))
        id = (await caller.post("?async=true", response_format="url", partial_images="1")).json()["id"]
        await until(lambda: not caller.app.state.jobs._running)
        job = (await caller.http.get(f"/v1/jobs/{id}")).json()
        plain = (await caller.post()).json()["data"]
        assert job["status"] == "succeeded", job
        for output, wanted in zip(job["result"]["data"], plain, strict=True):
            assert "b64_json" not in output
            assert output["expires_at"] <= job["expires_at"] + 1
            answer = await caller.get(output["url"])
            assert answer.content == base64.b64decode(wanted["b64_json"])
        await caller.http.delete(f"/v1/jobs/{id}")
        assert (await caller.get(job["result"]["data"][0]["url"])).status_code == 404

    play(story)


def test_a_stream_sends_pictures_and_no_links() -> None:
    async def story(store: SharedStore) -> None:
        refused = await Caller(store).post(response_format="url", stream="true")
        assert (refused.status_code, error_of(refused)["param"]) == (400, "response_format")

    play(story)


def test_while_the_store_is_away_an_answer_with_links_is_503_and_others_go_on() -> None:
    async def story(store: SharedStore) -> None:
        caller = Caller(store)
        store.line.is_cut = True
        refused = await caller.post(response_format="url")
        assert (refused.status_code, error_of(refused)["code"]) == (503, "STORE_UNAVAILABLE")
        assert (await caller.post()).status_code == 200

    play(story)


def test_where_the_store_of_results_has_signed_links_those_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(environment: dict[str, str]) -> None:
        caller = Caller(OpenStore(blobs=ObjectBlobs(f"s3://{BUCKET}/links")))
        output, *_ = await caller.links(output_format="webp")
        plain, *_ = (await caller.post(output_format="webp")).json()["data"]
        assert output["url"].startswith(environment["AWS_ENDPOINT_URL"])
        async with httpx.AsyncClient() as elsewhere:
            answer = await elsewhere.get(output["url"])
        assert answer.headers["content-type"] == "image/webp"
        assert answer.content == base64.b64decode(plain["b64_json"])

    with running_s3() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        asyncio.run(story(environment))
