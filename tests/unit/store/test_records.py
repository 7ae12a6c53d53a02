"""Records: the same promises in memory and in Redis."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator

import pytest

from serve_app.errors import StoreUnavailable
from serve_app.store.memory_records import MemoryRecords
from serve_app.store.records import AWAITED_S, Bounds, Change, Conflict, Full, Outcome, Record, Records, Written
from serve_app.store.redis_records import RedisRecords
from tests.redis_server import PASSWORD, RedisServer, needs_redis, running_redis

BOUNDS = Bounds(max_records=3, max_open_bytes=10, max_ended_bytes=10)
SOON_S = 0.05

Story = Callable[[Records], Awaitable[None]]
Play = Callable[[Story], None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)])
def play(request: pytest.FixtureRequest) -> Play:
    """Return a function that runs a story with empty records."""

    async def go(story: Story) -> None:
        if request.param == "memory":
            await story(MemoryRecords())
            return
        records = RedisRecords(request.getfixturevalue("server").url, PASSWORD, f"test-{uuid.uuid4().hex}")
        try:
            await story(records)
        finally:
            await records.close()

    return lambda story: asyncio.run(go(story))


def change(
    id: str, version: int = 0, *, is_open: bool = True, value: bytes = b"", keep_s: float = 60.0, size: int = 0
) -> Change:
    return Change(id, f"folder-of-{id}", version, is_open=is_open, value=value, keep_s=keep_s, size=size)


async def put(records: Records, *changes: Change, bounds: Bounds = BOUNDS) -> list[Outcome]:
    return await records.put("jobs", changes, bounds)


async def end(records: Records, *ids: str, size: int = 0) -> None:
    """Open records and end them, one after another."""
    for id in ids:
        await put(records, change(id))
        await put(records, change(id, 1, is_open=False, size=size))
        # The order of Redis is that of milliseconds.
        await asyncio.sleep(0.002)


async def known(records: Records, *ids: str) -> list[str]:
    return [id for id in ids if await records.get("jobs", id) is not None]


def test_a_record_is_what_was_put_last(play: Play) -> None:
    async def story(records: Records) -> None:
        value = bytes(range(256))
        assert await put(records, change("a", value=value, size=4)) == [Written(1, is_awaited=False)]
        found = await records.get("jobs", "a")
        assert found is not None
        assert (found.id, found.folder, found.version, found.value) == ("a", "folder-of-a", 1, value)
        assert found.is_open
        assert 50 < found.left_s <= 60
        assert await put(records, change("a", 1, is_open=False, value=b"end")) == [Written(2, is_awaited=False)]
        found = await records.get("jobs", "a")
        assert found is not None
        assert (found.version, found.is_open, found.value) == (2, False, b"end")
        assert await records.get("other", "a") is None

    play(story)


def test_of_two_changes_of_one_version_the_first_counts(play: Play) -> None:
    async def story(records: Records) -> None:
        await put(records, change("a", value=b"first"))
        [again, stale, unknown] = await put(records, change("a", value=b"again"), change("a", 2), change("b", 1))
        for conflict in (again, stale):
            assert isinstance(conflict, Conflict)
            assert conflict.found is not None
            assert (conflict.found.version, conflict.found.value) == (1, b"first")
        assert unknown == Conflict(None)
        assert await known(records, "a", "b") == ["a"]

    play(story)


def test_of_many_at_once_one_opens_a_record(play: Play) -> None:
    async def story(records: Records) -> None:
        outcomes = await asyncio.gather(*(put(records, change("a", value=b"%d" % k)) for k in range(20)))
        assert sum(isinstance(outcome, Written) for [outcome] in outcomes) == 1

    play(story)


def test_no_more_records_are_open_than_allowed_and_ended_ones_make_room(play: Play) -> None:
    async def story(records: Records) -> None:
        await end(records, "a", "b", "c")
        await put(records, change("d"))
        assert await known(records, "a", "b", "c", "d") == ["b", "c", "d"]
        await put(records, change("e"), change("f"))
        assert await known(records, "a", "b", "c", "d", "e", "f") == ["d", "e", "f"]
        assert await put(records, change("g")) == [Full(3, 0)]
        assert set((await records.sweep("jobs")).litter) == {f"folder-of-{id}" for id in "abc"}
        # What is there already may change.
        assert isinstance((await put(records, change("d", 1)))[0], Written)

    play(story)


def test_the_bytes_of_open_records_are_bounded_and_one_alone_is_taken(play: Play) -> None:
    async def story(records: Records) -> None:
        assert await put(records, change("a", size=11), change("b", size=0)) == [
            Written(1, is_awaited=False),
            Full(1, 11),
        ]
        await put(records, change("a", 1, is_open=False, size=1))
        outcomes = await put(records, change("b", size=7), change("c", size=4), change("d", size=3))
        assert outcomes == [Written(1, is_awaited=False), Full(1, 7), Written(1, is_awaited=False)]

    play(story)


def test_the_oldest_make_room_for_the_bytes_of_a_record_that_ends_but_the_newest_stays(play: Play) -> None:
    async def story(records: Records) -> None:
        await end(records, "a", "b", size=5)
        assert await known(records, "a", "b") == ["a", "b"]
        await end(records, "c", size=1)
        assert await known(records, "a", "b", "c") == ["b", "c"]
        await end(records, "d", size=100)
        assert await known(records, "b", "c", "d") == ["d"]
        assert set((await records.sweep("jobs")).litter) == {f"folder-of-{id}" for id in "abc"}

    play(story)


def test_a_record_that_is_kept_for_a_shorter_time_than_others_is_the_newest_all_the_same(play: Play) -> None:
    async def story(records: Records) -> None:
        await end(records, "a", size=8)
        await put(records, change("b"))
        await put(records, change("b", 1, is_open=False, keep_s=5.0, size=8))
        assert await known(records, "a", "b") == ["b"]

    play(story)


def test_bytes_are_counted_right_over_many_changes(play: Play) -> None:
    async def story(records: Records) -> None:
        for version in range(5):
            await put(records, change("a", version, size=version))
        await records.drop("jobs", "a")
        await put(records, change("b", size=10))
        # 10 are open now, and 0 have ended.
        assert await put(records, change("c", size=1)) == [Full(1, 10)]
        await put(records, change("b", 1, is_open=False, size=10))
        assert await put(records, change("c", size=10)) == [Written(1, is_awaited=False)]
        assert await known(records, "b", "c") == ["b", "c"]

    play(story)


def test_an_open_record_that_is_due_is_found_and_an_ended_one_is_gone(play: Play) -> None:
    async def story(records: Records) -> None:
        await put(records, change("a", keep_s=SOON_S), change("b"), change("c"))
        await put(records, change("c", 1, is_open=False, keep_s=SOON_S))
        assert (await records.sweep("jobs")).overdue == []
        await asyncio.sleep(2 * SOON_S)
        assert await known(records, "a", "b", "c") == ["a", "b"]
        swept = await records.sweep("jobs")
        [overdue] = swept.overdue
        assert (overdue.id, overdue.version, overdue.is_open) == ("a", 1, True)
        assert overdue.left_s < 0
        assert swept.litter == ["folder-of-c"]
        await records.clean("jobs", swept.litter)
        # The first process that takes it over has it.
        assert [type(outcome) for outcome in await put(records, change("a", 1), change("a", 1))] == [Written, Conflict]
        assert await records.sweep("jobs") == type(swept)([], [])

    play(story)


def test_a_record_that_is_over_is_one_that_is_not_there(play: Play) -> None:
    async def story(records: Records) -> None:
        await put(records, change("a"))
        await put(records, change("a", 1, is_open=False, keep_s=0.0))
        assert await put(records, change("a", value=b"new")) == [Written(1, is_awaited=False)]
        assert (await records.sweep("jobs")).litter == ["folder-of-a"]

    play(story)


def test_a_record_that_gets_another_folder_leaves_the_former_one_as_litter(play: Play) -> None:
    async def story(records: Records) -> None:
        await end(records, "a")
        await put(records, Change("a", "new", 2, is_open=True, value=b"", keep_s=60.0, size=0))
        assert (await records.sweep("jobs")).litter == ["folder-of-a"]
        found = await records.get("jobs", "a")
        assert found is not None
        assert found.folder == "new"

    play(story)


def test_a_record_is_dropped_once_and_only_in_the_version_that_is_asked_for(play: Play) -> None:
    async def story(records: Records) -> None:
        await put(records, change("a", size=10))
        assert not await records.drop("jobs", "a", 2)
        assert await records.drop("jobs", "a", 1)
        assert not await records.drop("jobs", "a")
        assert not await records.drop("jobs", "never there")
        assert (await records.sweep("jobs")).litter == ["folder-of-a"]
        assert await put(records, change("b", size=10)) == [Written(1, is_awaited=False)]
        assert await put(records, change("c", size=1)) == [Full(1, 10)]

    play(story)


def test_a_record_is_awaited_for_a_while_after_a_request_has_asked(play: Play) -> None:
    async def story(records: Records) -> None:
        await put(records, change("a"))
        await records.get("jobs", "a")
        assert await put(records, change("a", 1)) == [Written(2, is_awaited=False)]
        assert isinstance(await records.get("jobs", "a", awaiting=True), Record)
        assert await put(records, change("a", 2)) == [Written(3, is_awaited=True)]
        await asyncio.sleep(AWAITED_S + 0.1)
        assert await put(records, change("a", 3)) == [Written(4, is_awaited=False)]
        assert await records.get("jobs", "never there", awaiting=True) is None

    play(story)


def test_an_epoch_stays(play: Play) -> None:
    async def story(records: Records) -> None:
        assert await records.epoch() == await records.epoch() != ""

    play(story)


def test_bounds_hold_with_ten_thousand_records(play: Play) -> None:
    bounds = Bounds(max_records=10_000, max_open_bytes=10**9, max_ended_bytes=5_000)

    async def story(records: Records) -> None:
        ids = [f"{k:05}" for k in range(10_000)]
        start_s = time.monotonic()
        assert all(isinstance(outcome, Written) for outcome in await put(records, *map(change, ids), bounds=bounds))
        assert isinstance((await put(records, change("one more"), bounds=bounds))[0], Full)
        for k in range(0, 10_000, 500):
            ended = [change(id, 1, is_open=False, size=1) for id in ids[k : k + 500]]
            await put(records, *ended, bounds=bounds)
        assert len(await known(records, *ids[::100])) == 50
        litter = 0
        while folders := (await records.sweep("jobs")).litter:
            await records.clean("jobs", folders)
            litter += len(folders)
        assert litter == 5_000
        assert time.monotonic() - start_s < 60

    play(story)


@needs_redis
def test_a_store_that_loses_its_records_has_another_epoch(server: RedisServer) -> None:
    async def go() -> None:
        records = RedisRecords(server.url, PASSWORD, "lost")
        before = await records.epoch()
        await put(records, change("a"))
        with server.client() as client:
            client.flushall()
        assert await records.epoch() != before
        await records.close()

    asyncio.run(go())


@needs_redis
def test_a_redis_that_is_killed_keeps_what_it_has_answered_and_is_unavailable_meanwhile(server: RedisServer) -> None:
    async def go() -> None:
        records = RedisRecords(server.url, PASSWORD, "killed")
        epoch = await records.epoch()
        await put(records, change("a", value=b"kept"))
        server.kill()
        for call in (records.get("jobs", "a"), put(records, change("b")), records.sweep("jobs"), records.epoch()):
            with pytest.raises(StoreUnavailable) as caught:
                await call
            assert caught.value.retry_after_s
        server.start()
        found = await records.get("jobs", "a")
        assert found is not None
        assert (found.value, await records.epoch()) == (b"kept", epoch)
        await records.close()

    asyncio.run(go())


@needs_redis
def test_a_wrong_password_is_no_way_in(server: RedisServer) -> None:
    async def go() -> None:
        for password in (None, "wrong"):
            records = RedisRecords(server.url, password, "closed")
            with pytest.raises(StoreUnavailable):
                await records.check()
            await records.close()

    asyncio.run(go())


@needs_redis
def test_nothing_is_left_of_records_that_are_gone(server: RedisServer) -> None:
    async def go() -> None:
        records = RedisRecords(server.url, PASSWORD, "empty")
        await end(records, "a", "b", size=1)
        await put(records, change("c", size=1))
        for id in "abc":
            await records.drop("jobs", id)
        await records.clean("jobs", (await records.sweep("jobs")).litter)
        await records.close()
        with server.client() as client:
            left = {key: client.type(key) for key in client.scan_iter("{empty:jobs}*")}
            assert set(left) == {b"{empty:jobs}:bytes"}
            assert client.hgetall("{empty:jobs}:bytes") == {b"open": b"0", b"ended": b"0"}

    asyncio.run(go())
