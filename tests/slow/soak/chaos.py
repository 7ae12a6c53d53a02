"""Faults of the service while it is used: replicas are killed, the application is deployed anew."""

import asyncio
import os
import random
import signal
import time
from dataclasses import dataclass

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from serve_app.app import APP_NAME
from serve_app.settings import AppSettings
from tests import processes
from tests.redis_server import RedisServer

# A replica of builtin:tiny takes 10 s of a core to start: killed more often, two cores would do nothing else.
_KILL_EVERY_S = (30.0, 60.0)
# As shares of the whole time; processes that start later may live to its end.
_KILL_AT = 0.15
_REDEPLOY_AT = 0.3
_KILL_THE_STORE_AT = 0.1
_STORE_AWAY_S = 4.0
_DEPLOY_S = 300.0
_LOOK_S = 2.0


@dataclass
class Chaos:
    """Faults within `seconds` of the application that runs with `settings`. `store`: the Redis of its jobs, if any."""

    settings: AppSettings
    seconds: float
    rng: random.Random
    store: RedisServer | None = None
    kills: int = 0
    store_kills: int = 0
    redeploys: int = 0

    async def run(self) -> None:
        await asyncio.gather(self._kill(), self._kill_the_store(), self._redeploy())

    async def _kill(self) -> None:
        """Kill the youngest GPU replica now and then, so that the memory of another can be watched for long."""
        end_s = asyncio.get_running_loop().time() + self.seconds
        pause_s = self.seconds * _KILL_AT
        while asyncio.get_running_loop().time() + pause_s < end_s:
            await asyncio.sleep(pause_s)
            pause_s = self.rng.uniform(*_KILL_EVERY_S)
            # No replica is killed while one starts, which takes two cores a minute: callers would only wait, and Serve
            # gives up a version that dies six times before it is ready.
            if await asyncio.to_thread(_all_run):
                os.kill(max(processes.of(APP_NAME, "ImageEditor")), signal.SIGKILL)
                self.kills += 1

    async def _kill_the_store(self) -> None:
        """Kill the Redis of the jobs, and start it again after a while."""
        if self.store is None:
            return
        await asyncio.sleep(self.seconds * _KILL_THE_STORE_AT)
        self.store.kill()
        await asyncio.sleep(_STORE_AWAY_S)
        await asyncio.to_thread(self.store.start)
        self.store_kills += 1

    async def _redeploy(self) -> None:
        """Deploy with another setting, so that Serve replaces every replica of every deployment."""
        await asyncio.sleep(self.seconds * _REDEPLOY_AT)
        limits = self.settings.limits.model_copy(update={"max_images": self.settings.limits.max_images - 1})
        changed = self.settings.model_copy(update={"limits": limits})
        await asyncio.to_thread(deploy, changed)
        self.redeploys += 1


def _all_run() -> bool:
    """Return whether several GPU replicas run, and none starts or stops."""
    # For a moment, a redeployed application has no deployments.
    editor = serve.status().applications[APP_NAME].deployments.get("ImageEditor")
    return editor is not None and set(editor.replica_states) == {"RUNNING"} and editor.replica_states["RUNNING"] > 1


def deploy(settings: AppSettings) -> None:
    """Deploy as a configuration file does, with two GPU replicas: one serves while the other restarts.

    Return when all replicas have the new settings. Raise TimeoutError.
    """
    application = {
        "name": APP_NAME,
        "import_path": "serve_app.app:build",
        "args": settings.model_dump(mode="json"),
        "deployments": [{"name": "ImageEditor", "num_replicas": 2, "health_check_period_s": 2}],
    }
    # `serve run` with a file calls it; serve.run cannot set the number of replicas of an inner deployment.
    # Not blocking: it gives up after a minute (Ray 2.60).
    _get_global_client().deploy_apps(ServeDeploySchema(applications=[application]), _blocking=False)
    give_up_s = time.monotonic() + _DEPLOY_S
    # Until the controller has read the new settings, the status is the old one.
    time.sleep(_LOOK_S)
    while serve.status().applications[APP_NAME].status != "RUNNING":
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"not deployed within {_DEPLOY_S:g} s")
        time.sleep(_LOOK_S)
