"""What happens to the service while it is used: replicas are killed, the application is deployed anew."""

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

# A replica of builtin:tiny takes 10 s of a core to start: killed more often, two cores would do nothing else.
_KILL_EVERY_S = (30.0, 60.0)
# As a share of the whole time: processes that are there after it may live to the end.
_KILL_AT = 0.15
_REDEPLOY_AT = 0.3
_KILL_THE_KEEPER_AT = 0.1
_DEPLOY_S = 300.0
_LOOK_S = 2.0


@dataclass
class Chaos:
    """Bounded by `seconds`; `settings` are those that run."""

    settings: AppSettings
    seconds: float
    rng: random.Random
    kills: int = 0
    keeper_kills: int = 0
    redeploys: int = 0

    async def run(self) -> None:
        await asyncio.gather(self._kill(), self._kill_the_keeper(), self._redeploy())

    async def _kill(self) -> None:
        """A GPU replica every now and then, the youngest, so that the memory of another can be watched for long."""
        end_s = asyncio.get_running_loop().time() + self.seconds
        pause_s = self.seconds * _KILL_AT
        while asyncio.get_running_loop().time() + pause_s < end_s:
            await asyncio.sleep(pause_s)
            pause_s = self.rng.uniform(*_KILL_EVERY_S)
            # One that starts is left alone, and so are the others then: two cores take a minute to start one. There
            # would be nothing to see but waiting, and Serve gives up a version that dies six times before it is there.
            if await asyncio.to_thread(_all_run):
                os.kill(max(processes.of(APP_NAME, "ImageEditor")), signal.SIGKILL)
                self.kills += 1

    async def _kill_the_keeper(self) -> None:
        """Of the jobs."""
        await asyncio.sleep(self.seconds * _KILL_THE_KEEPER_AT)
        for pid in processes.of(APP_NAME, "JobKeeper"):
            os.kill(pid, signal.SIGKILL)
            self.keeper_kills += 1

    async def _redeploy(self) -> None:
        """With another setting, so that Serve replaces every replica of every deployment."""
        await asyncio.sleep(self.seconds * _REDEPLOY_AT)
        limits = self.settings.limits.model_copy(update={"max_images": self.settings.limits.max_images - 1})
        changed = self.settings.model_copy(update={"limits": limits})
        await asyncio.to_thread(deploy, changed)
        self.redeploys += 1


def _all_run() -> bool:
    """Whether several GPU replicas run, and none starts or stops."""
    # For a moment, an application that is deployed anew has no deployments.
    editor = serve.status().applications[APP_NAME].deployments.get("ImageEditor")
    return editor is not None and set(editor.replica_states) == {"RUNNING"} and editor.replica_states["RUNNING"] > 1


def deploy(settings: AppSettings) -> None:
    """As a configuration file does, with two GPU replicas: one is there while the other comes back.

    Returns when all replicas are those of the new settings. Raises TimeoutError.
    """
    application = {
        "name": APP_NAME,
        "import_path": "serve_app.app:build",
        "args": settings.model_dump(mode="json"),
        "deployments": [{"name": "ImageEditor", "num_replicas": 2, "health_check_period_s": 2}],
    }
    # What `serve run` calls with a file; serve.run has no way to give a deployment inside its number of replicas.
    # Not blocking: it gives up after a minute (Ray 2.60).
    _get_global_client().deploy_apps(ServeDeploySchema(applications=[application]), _blocking=False)
    give_up_s = time.monotonic() + _DEPLOY_S
    # Until the controller has looked at the new settings, all is still as before.
    time.sleep(_LOOK_S)
    while serve.status().applications[APP_NAME].status != "RUNNING":
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"not deployed within {_DEPLOY_S:g} s")
        time.sleep(_LOOK_S)
