"""Take away a node under its edits: `python -m tests.slow.node_run FILE`.

A process of its own, since a process can be part of one Ray cluster only. Two nodes with one fake GPU each beside the
head, a replica on each. Writes its observations to FILE, as JSON.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.editor_handle import EditorHandle
from serve_app.deployments.replica import ImageEditor
from serve_app.events import Event, Progress, result_of
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings, EngineSettings, ModelSettings
from tests.scenes import difference, scene

EDITS = 8
STEPS = 40
TIMEOUT_S = 600.0
OPTIONS = {
    "num_replicas": 2,
    "max_ongoing_requests": 100,
    "ray_actor_options": {"num_cpus": 1, "num_gpus": 1},
    # Otherwise Serve's health checks take longer than anything else here.
    "health_check_period_s": 1,
}


def edit_requests() -> list[EditRequest]:
    return [
        EditRequest(images=[scene(k)], prompt=f"prompt {k}", seed=k, num_inference_steps=STEPS) for k in range(EDITS)
    ]


class Run:
    def __init__(self, handle: DeploymentHandle) -> None:
        self.retries = 0
        self._handle = handle
        self._editor = EditorHandle(handle, TIMEOUT_S, self._count)

    def _count(self) -> None:
        self.retries += 1

    async def alone(self) -> list[EditResult]:
        return [await self._editor.edit(request) for request in edit_requests()]

    async def under_fire(self, lose: Callable[[], None]) -> list[EditResult]:
        """Run all edits at once, every second one as a stream, and call `lose` when each stream has told of a step."""
        started = [asyncio.Event() for _ in range(EDITS // 2)]
        edits = [
            asyncio.create_task(self._stream(request, started[k // 2]) if k % 2 else self._editor.edit(request))
            for k, request in enumerate(edit_requests())
        ]
        await asyncio.gather(*(event.wait() for event in started))
        await asyncio.to_thread(lose)
        return list(await asyncio.gather(*edits))

    async def _stream(self, request: EditRequest, started: asyncio.Event) -> EditResult:
        async with aclosing(self._editor.edit_stream(request)) as events:
            return await result_of(_announce_step(events, started), request)


async def _announce_step(events: AsyncIterator[Event], started: asyncio.Event) -> AsyncIterator[Event]:
    async for event in events:
        if isinstance(event, Progress) and event.steps_done > 0:
            started.set()
        yield event


def main() -> None:
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray spells it
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
        serve.start(proxy_location="Disabled")
        settings = AppSettings(
            model=ModelSettings(device="cpu", cpu_threads=1),
            # Enough for all edits at once, so that no edit is done before each has begun.
            engine=EngineSettings(batch_tokens=65_536),
        )
        application = ImageEditor.options(**OPTIONS).bind(settings)  # type: ignore[attr-defined]
        run = Run(serve.run(application, name="image-edits", route_prefix=None))
        seen = asyncio.run(observe(run, cluster, nodes))
        Path(sys.argv[1]).write_text(json.dumps(seen))
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


async def observe(run: Run, cluster: Cluster, nodes: list[Any]) -> dict[str, Any]:
    references = await run.alone()
    start_s = time.monotonic()
    results = await run.under_fire(lambda: cluster.remove_node(nodes[0], allow_graceful=False))
    return {
        "edits": EDITS,
        "retries": run.retries,
        "differences": [
            difference(result.pixels[0][0], reference.pixels[0][0])
            for result, reference in zip(results, references, strict=True)
        ],
        "seconds": time.monotonic() - start_s,
    }


if __name__ == "__main__":
    main()
