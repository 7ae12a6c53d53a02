"""The vault of jobs as a detached Ray actor, in which a new version of the application finds the older one's jobs."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from serve_app.jobs.vault import MemoryVault, Superseded

T = TypeVar("T")

_NAMESPACE = "image-edits"
# Part of the actor's name. A detached actor keeps the code that it was started with, so raise the version whenever its
# methods or the types that they exchange change. Version 1 raises `serve_app.job_vault.Superseded`, a class that this
# code cannot unpickle, and has no `keep_alive`.
_VERSION = 2
# A resource that Ray (2.60) gives to the head node, which is the one node that no autoscaler removes.
_ON_HEAD = {"node:__internal_head__": 0.001}


class JobVault:
    """The actor: a MemoryVault for the application's JobKeeper. It exits after `idle_s` seconds without a call."""

    def __init__(self, idle_s: float) -> None:
        self._vault = MemoryVault()
        self._idle_s = idle_s
        self._timer: asyncio.TimerHandle | None = None

    async def take_over(self, owner: str) -> dict[str, bytes]:
        self._restart_timer()
        return await self._vault.take_over(owner)

    async def put(self, owner: str, id: str, state: bytes, body: bytes) -> None:
        self._restart_timer()
        await self._vault.put(owner, id, state, body)

    async def body(self, owner: str, id: str) -> bytes:
        self._restart_timer()
        return await self._vault.body(owner, id)

    async def drop(self, owner: str, id: str) -> None:
        self._restart_timer()
        await self._vault.drop(owner, id)

    async def keep_alive(self) -> None:
        """Postpone the exit, as every other call does."""
        self._restart_timer()

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, _exit)


def _exit() -> None:
    ray.kill(ray.get_runtime_context().current_actor)


class ActorVault:
    """The Vault of the application of that name, in its actor, which is started if there is none.

    If the actor is lost, a new and empty one takes its place.
    """

    def __init__(self, app_name: str, idle_s: float) -> None:
        self._name = f"{app_name}-jobs-{_VERSION}"
        self._idle_s = idle_s
        self._actor = self._get_or_start_actor()

    def _get_or_start_actor(self) -> Any:
        actor_class = ray.remote(num_cpus=0, resources=_ON_HEAD)(JobVault)
        options = {"name": self._name, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True}
        return actor_class.options(**options).remote(self._idle_s)

    async def take_over(self, owner: str) -> dict[str, bytes]:
        return await self._call(owner, lambda actor: actor.take_over.remote(owner))

    async def put(self, owner: str, id: str, state: bytes, body: bytes) -> None:
        await self._call(owner, lambda actor: actor.put.remote(owner, id, state, body))

    async def body(self, owner: str, id: str) -> bytes:
        return await self._call(owner, lambda actor: actor.body.remote(owner, id))

    async def drop(self, owner: str, id: str) -> None:
        await self._call(owner, lambda actor: actor.drop.remote(owner, id))

    async def keep_alive(self) -> None:
        """Keep the actor from exiting, until this call is cancelled."""
        while True:
            await asyncio.sleep(self._idle_s / 4)
            with suppress(RayActorError):
                await self._actor.keep_alive.remote()

    async def _call(self, owner: str, start: Callable[[Any], Awaitable[T]]) -> T:
        try:
            return await _result(start(self._actor))
        except RayActorError:
            self._actor = self._get_or_start_actor()
            await _result(self._actor.take_over.remote(owner))
            return await _result(start(self._actor))


async def _result(response: Awaitable[T]) -> T:
    """Return the result of a call to the actor. Raises Superseded and KeyError as such."""
    try:
        return await response
    except RayTaskError as error:
        # Ray's exception is of the cause's class too, but has the remote traceback in its message.
        raise error.cause if isinstance(error.cause, (Superseded, KeyError)) else error from None
