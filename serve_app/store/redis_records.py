"""Records in Redis or Valkey. Every operation is one script, so that Redis runs it as a whole.

The keys of a group share a hash tag, as clusters of Redis need it:

    {NAMESPACE:GROUP}:record:ID   hash: version, open (1 or 0), value, folder, size, due (milliseconds of Redis's clock)
    {NAMESPACE:GROUP}:open        sorted set of the ids of open records, by due
    {NAMESPACE:GROUP}:ended       sorted set of the ids of ended records, by due
    {NAMESPACE:GROUP}:bytes       hash: the bytes of the open and of the ended records
    {NAMESPACE:GROUP}:litter      set of folders
    {NAMESPACE:GROUP}:awaited:ID  exists for a while after a request asked for a record that it waits for
    {NAMESPACE}:epoch             text
"""

import logging
import uuid
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from serve_app.errors import RETRY_AFTER_S, StoreUnavailable
from serve_app.store.records import (
    AWAITED_S,
    Bounds,
    Change,
    Conflict,
    Full,
    Outcome,
    Record,
    Sweep,
    Written,
)

logger = logging.getLogger("ray.serve")

T = TypeVar("T")

_TIMEOUT_S = 2.0
"""How long a connection or an answer may take: a request waits for it."""
_AT_ONCE = 100
"""The most records and folders of one sweep."""

_COMMON = """
local group = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function read(id)
    local found = redis.call('HMGET', group .. ':record:' .. id, 'version', 'open', 'value', 'folder', 'due')
    if not found[1] then return nil end
    return {id, found[4], found[1], found[2], found[3], tostring(found[5] - now)}
end

local function remove(id)
    local key = group .. ':record:' .. id
    local found = redis.call('HMGET', key, 'open', 'size', 'folder')
    local set = found[1] == '1' and 'open' or 'ended'
    redis.call('HINCRBY', group .. ':bytes', set, string.format('%d', 0 - found[2]))
    redis.call('ZREM', group .. ':' .. set, id)
    redis.call('DEL', key)
    return found[3]
end

local function drop(id)
    redis.call('SADD', group .. ':litter', remove(id))
end

local function living(id)
    local found = read(id)
    if found and found[4] == '0' and tonumber(found[6]) <= 0 then
        drop(id)
        return nil
    end
    return found
end

local function bytes(set)
    return tonumber(redis.call('HGET', group .. ':bytes', set) or 0)
end
"""

_PUT = """
local id, folder, version, open, value = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local keep, size = tonumber(ARGV[6]), ARGV[7]
local max_records, max_open, max_ended = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local found = living(id)
if (found and found[3] or '0') ~= version then return {'conflict', found} end
if found then
    local former = remove(id)
    if former ~= folder then redis.call('SADD', group .. ':litter', former) end
else
    local records = redis.call('ZCARD', group .. ':open')
    if records > 0 and bytes('open') + size > max_open or records >= max_records then
        return {'full', records, bytes('open')}
    end
    local over = records + redis.call('ZCARD', group .. ':ended') + 1 - max_records
    if over > 0 then
        for _, oldest in ipairs(redis.call('ZRANGE', group .. ':ended', 0, over - 1)) do drop(oldest) end
    end
end
local set = open == '1' and 'open' or 'ended'
redis.call('HSET', group .. ':record:' .. id, 'version', version + 1, 'open', open, 'value', value, 'folder', folder,
    'size', size, 'due', string.format('%.0f', now + keep))
redis.call('ZADD', group .. ':' .. set, string.format('%.0f', now + keep), id)
redis.call('HINCRBY', group .. ':bytes', set, size)
if open == '0' then
    while bytes('ended') > max_ended and redis.call('ZCARD', group .. ':ended') > 1 do
        local oldest = redis.call('ZRANGE', group .. ':ended', 0, 1)
        drop(oldest[1] == id and oldest[2] or oldest[1])
    end
end
return {'written', version + 1, redis.call('EXISTS', group .. ':awaited:' .. id)}
"""

_GET = """
local found = living(ARGV[1])
if found and ARGV[2] ~= '0' then redis.call('SET', group .. ':awaited:' .. ARGV[1], 1, 'PX', ARGV[2]) end
return found
"""

_DROP = """
local found = read(ARGV[1])
if not found or (ARGV[2] ~= '' and found[3] ~= ARGV[2]) then return 0 end
drop(ARGV[1])
return 1
"""

_SWEEP = """
local function due(set)
    return redis.call('ZRANGEBYSCORE', group .. ':' .. set, '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
end
for _, id in ipairs(due('ended')) do drop(id) end
local overdue = {}
for _, id in ipairs(due('open')) do table.insert(overdue, read(id)) end
return {overdue, redis.call('SRANDMEMBER', group .. ':litter', ARGV[1])}
"""


class RedisRecords:
    """The Records behind a URL such as `redis://host:6379/0`. Makes its connections on the event loop of its callers.

    Raises ValueError for a URL that redis-py does not know.
    """

    def __init__(self, url: str, password: str | None, namespace: str) -> None:
        self._namespace = namespace
        # One more try at once: a connection that Redis closed meanwhile fails when it is used again.
        retry = Retry(ExponentialBackoff(base=0.05), 1)
        options: dict[str, Any] = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S, "retry": retry}
        if password:
            options["password"] = password
        self._redis: redis.asyncio.Redis = redis.asyncio.from_url(url, **options)
        self._scripts = {
            name: self._redis.register_script(_COMMON + text)
            for name, text in {"put": _PUT, "get": _GET, "drop": _DROP, "sweep": _SWEEP}.items()
        }

    async def put(self, group: str, changes: Sequence[Change], bounds: Bounds) -> list[Outcome]:
        """As Records.put."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for change in changes:
                await self._script("put", group, *_arguments(change, bounds), client=pipeline)
            return [_outcome(answer) for answer in await _answer(pipeline.execute())]

    async def get(self, group: str, id: str, *, awaiting: bool = False) -> Record | None:
        """As Records.get."""
        found = await _answer(self._script("get", group, id, int(AWAITED_S * 1000) if awaiting else 0))
        return _record(found) if found else None

    async def drop(self, group: str, id: str, version: int | None = None) -> bool:
        """As Records.drop."""
        return bool(await _answer(self._script("drop", group, id, "" if version is None else version)))

    async def sweep(self, group: str) -> Sweep:
        """As Records.sweep."""
        overdue, litter = await _answer(self._script("sweep", group, _AT_ONCE))
        return Sweep([_record(found) for found in overdue], [folder.decode() for folder in litter])

    async def clean(self, group: str, folders: Sequence[str]) -> None:
        """As Records.clean."""
        if folders:
            await _answer(self._redis.srem(f"{self._key(group)}:litter", *folders))

    async def epoch(self) -> str:
        """As Records.epoch."""
        key, new = f"{self._namespace}:epoch", uuid.uuid4().hex
        await _answer(self._redis.set(key, new, nx=True))
        kept = await _answer(self._redis.get(key))
        return str(kept)

    async def check(self) -> None:
        """Write and delete a record."""
        bounds = Bounds(1, 0, 0)
        await self.put("check", [Change("probe", "probe", 0, is_open=True, value=b"", keep_s=1, size=0)], bounds)
        await self.drop("check", "probe")
        await self.clean("check", ["probe"])

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _script(self, name: str, group: str, *arguments: Any, client: Any = None) -> Awaitable[Any]:
        return self._scripts[name](keys=[self._key(group)], args=arguments, client=client)

    def _key(self, group: str) -> str:
        return f"{{{self._namespace}:{group}}}"


def _arguments(change: Change, bounds: Bounds) -> tuple[Any, ...]:
    keep_ms = round(change.keep_s * 1000)
    return (
        *(change.id, change.folder, change.version, int(change.is_open), change.value, keep_ms, change.size),
        *(bounds.max_records, bounds.max_open_bytes, bounds.max_ended_bytes),
    )


def _outcome(answer: list[Any]) -> Outcome:
    kind, *rest = answer
    if kind == b"written":
        return Written(int(rest[0]), bool(rest[1]))
    if kind == b"full":
        return Full(int(rest[0]), int(rest[1]))
    return Conflict(_record(rest[0]) if rest and rest[0] else None)


def _record(found: list[bytes]) -> Record:
    id, folder, version, is_open, value, left_ms = found
    return Record(id.decode(), folder.decode(), int(version), is_open == b"1", value, float(left_ms) / 1000)


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except (RedisError, OSError, TimeoutError) as error:
        logger.warning("The store of jobs fails: %s", error)
        raise StoreUnavailable("The store of jobs does not answer", retry_after_s=RETRY_AFTER_S) from error
