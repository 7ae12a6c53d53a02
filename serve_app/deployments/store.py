"""The store of an application: by default a detached Ray actor, in which a new version finds the older one's jobs."""

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from serve_app.errors import RETRY_AFTER_S, StoreUnavailable
from serve_app.settings import MEMORY, AppSettings
from serve_app.store.blobs import BYTES, MemoryBlobs
from serve_app.store.memory_records import MemoryRecords
from serve_app.store.opening import open_outside
from serve_app.store.records import Bounds, Change, Outcome, Record, Sweep
from serve_app.store.store import OpenStore, Store

_NAMESPACE = "image-edits"
# Part of the actor's name. A detached actor keeps the code that it was started with, so raise the version whenever its
# methods or the types that they exchange change. Versions 1 and 2 were vaults, which knew jobs only.
_VERSION = 3
# A resource that Ray (2.60) gives to the head node, which is the one node that no autoscaler removes.
_ON_HEAD = {"node:__internal_head__": 0.001}
_MIN_IDLE_S = 3600.0
"""Least time for which the actor outlives its application: a new version may start later than jobs are kept."""
_CALL_TIMEOUT_S = 30.0


def open_store(settings: AppSettings, app_name: str) -> Store:
    """Return the store that the settings name. `app_name`: the Serve application, which has a memory of its own."""
    if settings.store.url == MEMORY:
        return in_actor(app_name, max(settings.jobs.ttl_s, _MIN_IDLE_S))
    return open_outside(settings)


def in_actor(app_name: str, idle_s: float) -> Store:
    """Return the store in an application's actor, which ends `idle_s` seconds after its last call."""
    actor = _Actor(app_name, idle_s)
    return OpenStore(ActorRecords(actor), ActorBlobs(actor))


class StoreActor:
    """The actor: a store in its memory. It exits after `idle_s` seconds without a call."""

    def __init__(self, idle_s: float) -> None:
        self._parts: dict[str, Any] = {"records": MemoryRecords(), "blobs": MemoryBlobs()}
        self._idle_s = idle_s
        self._timer: asyncio.TimerHandle | None = None

    async def call(self, part: str, method: str, *arguments: Any, **options: Any) -> Any:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, _exit)
        return await getattr(self._parts[part], method)(*arguments, **options)


def _exit() -> None:
    ray.kill(ray.get_runtime_context().current_actor)


class _Actor:
    """The actor of the application of that name, which is started if there is none; if it is lost, an empty one."""

    def __init__(self, app_name: str, idle_s: float) -> None:
        self._name = f"{app_name}-store-{_VERSION}"
        self._idle_s = idle_s
        self._handle = self._get_or_start()

    def _get_or_start(self) -> Any:
        actor_class = ray.remote(num_cpus=0, resources=_ON_HEAD)(StoreActor)
        options = {
            "name": self._name,
            "namespace": _NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            # Ray (2.60) keeps 3 kB of each of the last 100 000 calls in its GCS, for its dashboard.
            "enable_task_events": False,
        }
        return actor_class.options(**options).remote(self._idle_s)

    async def call(self, part: str, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of a part. Raises its KeyError, and StoreUnavailable for every failure of the actor."""
        try:
            try:
                return await self._call(part, method, *arguments, **options)
            except RayActorError:
                self._handle = self._get_or_start()
                return await self._call(part, method, *arguments, **options)
        except RayTaskError as error:
            # Ray's exception is of the cause's class too, but has the remote traceback in its message.
            raise error.cause if isinstance(error.cause, KeyError) else error from None
        except (RayError, TimeoutError) as error:
            raise StoreUnavailable("The store of jobs does not answer", retry_after_s=RETRY_AFTER_S) from error

    async def _call(self, part: str, method: str, *arguments: Any, **options: Any) -> Any:
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            return await self._handle.call.remote(part, method, *arguments, **options)


class ActorRecords:
    """The Records in the actor."""

    def __init__(self, actor: _Actor) -> None:
        self._actor = actor

    async def put(self, group: str, changes: Sequence[Change], bounds: Bounds) -> list[Outcome]:
        """As Records.put."""
        outcomes: list[Outcome] = await self._actor.call("records", "put", group, changes, bounds)
        return outcomes

    async def get(self, group: str, id: str, *, awaiting: bool = False) -> Record | None:
        """As Records.get."""
        record: Record | None = await self._actor.call("records", "get", group, id, awaiting=awaiting)
        return record

    async def drop(self, group: str, id: str, version: int | None = None) -> bool:
        """As Records.drop."""
        return bool(await self._actor.call("records", "drop", group, id, version))

    async def sweep(self, group: str) -> Sweep:
        """As Records.sweep."""
        sweep: Sweep = await self._actor.call("records", "sweep", group)
        return sweep

    async def clean(self, group: str, folders: Sequence[str]) -> None:
        """As Records.clean."""
        if folders:
            await self._actor.call("records", "clean", group, folders)

    async def epoch(self) -> str:
        """As Records.epoch."""
        return str(await self._actor.call("records", "epoch"))


class ActorBlobs:
    """The Blobs in the actor."""

    def __init__(self, actor: _Actor) -> None:
        self._actor = actor

    async def put(self, name: str, data: bytes, media_type: str = BYTES) -> None:
        """As Blobs.put."""
        await self._actor.call("blobs", "put", name, data, media_type)

    async def get(self, name: str) -> bytes:
        """As Blobs.get."""
        data: bytes = await self._actor.call("blobs", "get", name)
        return data

    async def delete(self, name: str) -> None:
        """As Blobs.delete."""
        await self._actor.call("blobs", "delete", name)

    async def delete_folder(self, folder: str) -> None:
        """As Blobs.delete_folder."""
        await self._actor.call("blobs", "delete_folder", folder)

    async def sign(self, name: str, ttl_s: float) -> str | None:
        """As Blobs.sign."""
        return None
