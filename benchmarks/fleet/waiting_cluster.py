"""A local Ray cluster of three nodes with fake GPUs, waiting editors on it, and senders with handles of their own."""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.config import DeploymentActorConfig, RequestRouterConfig
from ray.serve.experimental.capacity_queue import CapacityQueue
from ray.serve.handle import DeploymentHandle

from benchmarks.fleet.replica import Edit
from benchmarks.fleet.runs import REPLICAS
from benchmarks.fleet.sharing_router import SharingRouter
from benchmarks.fleet.waiting_editor import WaitingEditor
from benchmarks.fleet.waiting_model import edit_request, picture
from serve_app.request import EditRequest

_DEPLOYMENT = "ImageEditor"
# As in the application: Serve sends every request on, and the engine rejects those beyond its limits.
_MAX_ONGOING = 768
_GREET_S = 60.0

_QUEUE = "capacity_queue"
_EXPERIMENTAL = "ray.serve.experimental"
ROUTERS: Mapping[str, Mapping[str, Any]] = {
    "Serve's default": {},
    "sharing": {
        "request_router_config": RequestRouterConfig(
            request_router_class=f"{SharingRouter.__module__}.{SharingRouter.__name__}"
        )
    },
    "round robin": {
        "request_router_config": RequestRouterConfig(
            request_router_class=f"{_EXPERIMENTAL}.round_robin_router.RoundRobinRouter"
        )
    },
    "capacity queue": {
        "request_router_config": RequestRouterConfig(
            request_router_class=f"{_EXPERIMENTAL}.capacity_queue_router.CapacityQueueRouter",
            request_router_kwargs={"capacity_queue_actor_name": _QUEUE},
        ),
        "deployment_actors": [
            DeploymentActorConfig(
                name=_QUEUE,
                actor_class=CapacityQueue,
                init_kwargs={"acquire_timeout_s": 1.0, "token_ttl_s": None},
                actor_options={"num_cpus": 0},
            )
        ],
    },
}


@contextmanager
def cluster(cache_s: float) -> Iterator[None]:
    """Start three nodes. `cache_s`: how long routers believe a replica's number of requests, 10 s in Serve."""
    # Ray's workers have niceness 15 by default, and so hardly any time on a busy machine (2.60).
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray spells it
    os.environ["RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S"] = str(cache_s)
    # If it is set, Ray takes the GPUs from it, and here they are fake.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    node = {"num_cpus": 1, "num_gpus": 64}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(REPLICAS - 1):
            nodes.add_node(**node)
        ray.init(address=nodes.address, namespace="serve", log_to_driver=False)
        serve.start(proxy_location="Disabled")
        yield
        serve.shutdown()
    finally:
        ray.shutdown()
        nodes.shutdown()


def target(app: str, router: str, step_s: float, knee: int) -> serve.RunTarget:
    """Return an application of three replicas, one a node."""
    deployment = serve.deployment(
        name=_DEPLOYMENT,
        num_replicas=REPLICAS,
        max_replicas_per_node=1,
        max_ongoing_requests=_MAX_ONGOING,
        ray_actor_options={"num_cpus": 0, "num_gpus": 1},
        **ROUTERS[router],
    )(WaitingEditor)
    return serve.RunTarget(deployment.bind(step_s, knee), name=app, route_prefix=None)


def handle_of(app: str) -> DeploymentHandle:
    return serve.get_deployment_handle(_DEPLOYMENT, app_name=app)


def request_of(edit: Edit, seed: int) -> EditRequest:
    [size] = edit.shape.references
    image = picture(seed, size.width, size.height)
    return edit_request(seed, images=[image], n=edit.samples, num_inference_steps=edit.steps)


@ray.remote(num_cpus=0)
class Sender:
    """A process with handles, and so with routers, of its own."""

    def __init__(self) -> None:
        self._handles: dict[str, DeploymentHandle] = {}

    async def greet(self, app: str) -> None:
        """Wait until the handle has replicas."""
        self._handles[app] = handle_of(app)
        async with asyncio.timeout(_GREET_S):
            await self._handles[app].ready.remote()

    async def send(self, app: str, edits: Sequence[Edit], start_s: float) -> list[float]:
        """Return the seconds from each edit's due time to its answer. `start_s`: the start of the trace."""
        return list(await asyncio.gather(*(self._edit(app, *each, start_s) for each in enumerate(edits))))

    async def _edit(self, app: str, seed: int, edit: Edit, start_s: float) -> float:
        request = request_of(edit, seed)
        due_s = start_s + edit.at_s
        await asyncio.sleep(due_s - time.time())
        result = await self._handles[app].edit.remote(request)
        if [len(variants) for variants in result.pixels] != [edit.samples]:
            raise RuntimeError(f"the result of an edit of {edit.samples} samples has another number of pictures")
        return time.time() - due_s
