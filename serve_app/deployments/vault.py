"""The vault as a Ray actor that outlives the deployments: a new version of the application finds its jobs there."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from serve_app.jobs.vault import MemoryVault, Superseded

T = TypeVar("T")

_NAMESPACE = "image-edits"
# Part of the actor's name. A detached actor keeps the code it was started with, so raise this with every change of what
# crosses between it and its owner. Version 1 raised `serve_app.job_vault.Superseded`, which cannot be unpickled here.
_VERSION = 2
# The head node is the one that no autoscaler takes away. (A resource that Ray gives it, 2.60.)
_ON_HEAD = {"node:__internal_head__": 0.001}


class JobVault:
    """A MemoryVault for the application's JobKeeper. It ends itself once nobody has called for `idle_s` seconds."""

    def __init__(self, idle_s: float) -> None:
        self._vault = MemoryVault()
        self._idle_s = idle_s
        self._timer: asyncio.TimerHandle | None = None

    async def take_over(self, owner: str) -> dict[str, bytes]:
        self._stay()
        return await self._vault.take_over(owner)

    async def put(self, owner: str, id: str, note: bytes, body: bytes) -> None:
        self._stay()
        await self._vault.put(owner, id, note, body)

    async def body(self, owner: str, id: str) -> bytes:
        self._stay()
        return await self._vault.body(owner, id)

    async def drop(self, owner: str, id: str) -> None:
        self._stay()
        await self._vault.drop(owner, id)

    async def here(self) -> None:
        """Somebody still wants it."""
        self._stay()

    def _stay(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, _end)


def _end() -> None:
    ray.kill(ray.get_runtime_context().current_actor)


class ActorVault:
    """The vault of the application named, made where there is none; implements Vault.

    Where its process is lost a new one takes its place, and what was written down is gone.
    """

    def __init__(self, app_name: str, idle_s: float) -> None:
        self._name = f"{app_name}-jobs-{_VERSION}"
        self._idle_s = idle_s
        self._actor = self._found()

    def _found(self) -> Any:
        actor_class = ray.remote(num_cpus=0, resources=_ON_HEAD)(JobVault)
        options = {"name": self._name, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True}
        return actor_class.options(**options).remote(self._idle_s)

    async def take_over(self, owner: str) -> dict[str, bytes]:
        return await self._ask(owner, lambda actor: actor.take_over.remote(owner))

    async def put(self, owner: str, id: str, note: bytes, body: bytes) -> None:
        await self._ask(owner, lambda actor: actor.put.remote(owner, id, note, body))

    async def body(self, owner: str, id: str) -> bytes:
        return await self._ask(owner, lambda actor: actor.body.remote(owner, id))

    async def drop(self, owner: str, id: str) -> None:
        await self._ask(owner, lambda actor: actor.drop.remote(owner, id))

    async def stay(self) -> None:
        """Keep it from ending itself, until cancelled."""
        while True:
            await asyncio.sleep(self._idle_s / 4)
            with suppress(RayActorError):
                await self._actor.here.remote()

    async def _ask(self, owner: str, ask: Callable[[Any], Awaitable[T]]) -> T:
        try:
            return await _answer(ask(self._actor))
        except RayActorError:
            self._actor = self._found()
            await _answer(self._actor.take_over.remote(owner))
            return await _answer(ask(self._actor))


async def _answer(response: Awaitable[T]) -> T:
    try:
        return await response
    except RayTaskError as error:
        # Ray raises what is both its own and the cause's class, with the remote traceback in its message.
        raise error.cause if isinstance(error.cause, (Superseded, KeyError)) else error from None
