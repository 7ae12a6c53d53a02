"""Send a burst to a cluster of three nodes with one fake GPU each: `python -m tests.slow.scaling_run FILE`.

A process of its own, since a process can be part of one Ray cluster only. Writes its observations to FILE, as JSON.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.autoscaling import OpenWorkPolicy
from serve_app.deployments.replica import ImageEditor
from serve_app.request import EditRequest
from serve_app.settings import AppSettings, EngineSettings, ModelSettings
from tests.scenes import scene

APP = "image-edits"
GPUS = 3
PHASE_S = 900
CALLERS = 8
OPTIONS = {
    # The rest of the burst waits in front of all replicas, so that new ones find work.
    "max_ongoing_requests": 4,
    "graceful_shutdown_timeout_s": 600,
    "ray_actor_options": {"num_cpus": 1, "num_gpus": 1},
    "autoscaling_config": {
        "min_replicas": 1,
        "max_replicas": GPUS,
        "look_back_period_s": 15,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "policy": {
            "policy_function": f"{OpenWorkPolicy.__module__}:{OpenWorkPolicy.__name__}",
            "policy_kwargs": {"target_s": 2, "upscale_window_s": 1, "downscale_window_s": 10},
        },
    },
}


@dataclass
class Traffic:
    """Callers who send edits of two variants, one after another. `errors`: those that failed."""

    editor: DeploymentHandle
    steps: int = 10
    answers: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    calm: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)

    def call(self, seed: int) -> None:
        """Send edits until `stop`; all callers but the first only until `calm`."""
        while not self.stop.is_set() and (seed == 0 or not self.calm.is_set()):
            request = EditRequest(images=[scene(seed)], prompt="x", n=2, num_inference_steps=self.steps)
            try:
                result = self.editor.edit.remote(request).result(timeout_s=PHASE_S)
                self.answers.append(len(result.images[0]))
            except Exception as error:
                self.errors.append(repr(error))


@dataclass
class Seen:
    """Observations. `replicas`: the numbers of running replicas, in turn. `calm_after`: answers before `calm`."""

    replicas: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    calm_after: int = 0
    seconds: float = 0.0

    def watch(self, done: Callable[[dict[str, int]], bool]) -> None:
        """Record the number of running replicas until `done`, given the replicas by state, returns true."""
        deadline = time.monotonic() + PHASE_S
        while True:
            states = serve.status().applications[APP].deployments["ImageEditor"].replica_states
            count = states.get("RUNNING", 0)
            if self.replicas[-1:] != [count]:
                self.replicas.append(count)
            if done(states):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"replicas {self.replicas}, now {states}")
            time.sleep(0.3)


def burst(editor: DeploymentHandle) -> Seen:
    traffic, seen, start_s = Traffic(editor), Seen(), time.monotonic()
    callers = [threading.Thread(target=traffic.call, args=(seed,)) for seed in range(CALLERS)]
    seen.watch(lambda states: True)
    for caller in callers:
        caller.start()
    try:
        seen.watch(lambda states: states.get("RUNNING") == GPUS)
        seen.calm_after = len(traffic.answers)
        # The caller that is left needs one replica, however slow it is, and calls the others until they are gone.
        traffic.steps = 1
        traffic.calm.set()
        seen.watch(lambda states: states == {"RUNNING": 1})
    finally:
        traffic.stop.set()
        for caller in callers:
            caller.join()
    seen.answers, seen.errors, seen.seconds = traffic.answers, traffic.errors, time.monotonic() - start_s
    return seen


def main() -> None:
    # Ray's workers have niceness 15 by default, with which they get hardly any time on a busy machine.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray spells it
    node = {"num_cpus": 1, "num_gpus": 1}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(GPUS - 1):
            cluster.add_node(**node)
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
        serve.start(proxy_location="Disabled")
        settings = AppSettings(
            model=ModelSettings(device="cpu", cpu_threads=1),
            # Given, so that it need not be measured.
            engine=EngineSettings(batch_tokens=4096),
        )
        application = ImageEditor.options(**OPTIONS).bind(settings)  # type: ignore[attr-defined]
        seen = burst(serve.run(application, name=APP, route_prefix=None))
        Path(sys.argv[1]).write_text(json.dumps(asdict(seen)))
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
