"""The sharing router on a real cluster: three replicas whose forwards are waits, and a real handle."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from benchmarks.fleet.waiting_editor import WaitingEditor
from benchmarks.fleet.waiting_model import GEOMETRY, WaitingPipeline, edit_request, picture
from benchmarks.tests.counting_router import CountingRouter
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import expand
from serve_app.engine.stats import EngineStats
from serve_app.events import result_of
from serve_app.request import EditRequest, EditResult, Pixels

APP = "routing"
REPLICAS, KNEE, STEP_S = 3, 4, 0.05
MOST = 2
LONG = 60
WAIT_S = 30

pytestmark = pytest.mark.slow


@dataclass
class Fleet:
    handle: DeploymentHandle
    file: Path

    def stats(self) -> list[EngineStats]:
        """Return the counts of each replica, in the same order each time."""
        return list(self.handle.broadcast("stats").results())

    def steps(self) -> Counter[str]:
        """Return how often the router chose and sent, and how many requests each replica took, by its id."""
        return Counter(self.file.read_text().splitlines())


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start a local Ray cluster, unless one runs in this process already."""
    if ray.is_initialized():
        yield
        return
    # Logical CPUs: the actors share whatever cores there are.
    ray.init(address="local", num_cpus=8, include_dashboard=False)
    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def fleet(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    file = tmp_path_factory.mktemp("routing") / "steps"
    router = RequestRouterConfig(
        request_router_class=f"{CountingRouter.__module__}.{CountingRouter.__name__}",
        request_router_kwargs={"file": str(file)},
    )
    deployment = serve.deployment(
        name="ImageEditor",
        num_replicas=REPLICAS,
        max_ongoing_requests=MOST,
        ray_actor_options={"num_cpus": 0},
        request_router_config=router,
    )(WaitingEditor)
    handle = serve.run(deployment.bind(STEP_S, KNEE), name=APP, route_prefix=None)
    assert handle.ready.remote().result()
    yield Fleet(handle, file)
    serve.delete(APP)


def own_pictures(request: EditRequest) -> list[Pixels]:
    """Return the pictures that the model makes of a request alone."""
    entry = expand(request, GEOMETRY, defaults=SamplingDefaults(4, 4.0))
    states = [(entry.conditions[sample.image_index], sample) for sample in entry.samples]
    return WaitingPipeline(knee_tokens=0, seconds_per_token=0.0).decode(states)


def has_own_pictures(result: EditResult, request: EditRequest) -> bool:
    found = [pixels for variants in result.pixels for pixels in variants]
    return all(np.array_equal(*pair) for pair in zip(found, own_pictures(request), strict=True))


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.05)


def long_edits(samples: Sequence[int], **fields: Any) -> list[EditRequest]:
    return [edit_request(seed, n=n, num_inference_steps=LONG, **fields) for seed, n in enumerate(samples)]


def send(fleet: Fleet, requests: Sequence[EditRequest]) -> list[DeploymentResponse]:
    return [fleet.handle.edit.remote(request) for request in requests]


def all_right(responses: Sequence[DeploymentResponse], requests: Sequence[EditRequest]) -> bool:
    return all(
        has_own_pictures(response.result(timeout_s=60), request)
        for response, request in zip(responses, requests, strict=True)
    )


def test_requests_that_fit_share_a_replica_and_others_get_their_own(fleet):
    before = fleet.stats()
    wide = edit_request(9, images=[picture(9, 128, 32)], num_inference_steps=LONG)
    requests = [*long_edits([1, 2, 4]), wide]
    assert all_right(send(fleet, requests), requests)
    after = fleet.stats()
    assert sorted(new.samples - old.samples for new, old in zip(after, before, strict=True)) == [1, 3, 4]
    assert [new.shared_forwards > old.shared_forwards for new, old in zip(after, before, strict=True)].count(True) == 1


def test_a_streamed_edit_shares_too(fleet):
    async def both(requests: Sequence[EditRequest]) -> list[EditResult]:
        stream = fleet.handle.options(stream=True).edit_stream
        return await asyncio.gather(*(result_of(events_of(stream.remote(request)), request) for request in requests))

    async def events_of(events: Any) -> Any:
        async for event in events:
            yield event

    before = fleet.stats()
    requests = long_edits([1, 1])
    results = asyncio.run(both(requests))
    assert all(has_own_pictures(*pair) for pair in zip(results, requests, strict=True))
    assert sorted(new.samples - old.samples for new, old in zip(fleet.stats(), before, strict=True)) == [0, 0, 2]


def test_none_is_sent_to_a_full_replica_while_another_has_room_and_a_waiting_one_does_not_spin(fleet):
    def taken_since(before: Counter[str]) -> list[int]:
        return [count for what, count in (fleet.steps() - before).items() if what.startswith("taken")]

    before = fleet.steps()
    # Twice as long: none may end while the waiting request is observed.
    requests = [edit_request(k, num_inference_steps=2 * LONG) for k in range(REPLICAS * MOST)]
    responses = send(fleet, requests)
    wait_until(lambda: len(taken := taken_since(before)) == REPLICAS and sum(taken) >= len(requests), "all taken")
    # No full replica rejected one that was then sent again.
    sent = fleet.steps()
    assert sent["sent"] == before["sent"] + len(requests)
    assert taken_since(before) == [MOST] * REPLICAS

    late = edit_request(99)
    waiting = fleet.handle.edit.remote(late)
    time.sleep(1.5)
    assert fleet.steps()["sent"] == sent["sent"]
    # Serve waits 25 ms, and twice as long each time.
    assert fleet.steps()["chosen"] - sent["chosen"] < 12
    assert all_right([*responses, waiting], [*requests, late])


@serve.deployment(name="Fan")
class Fan:
    """A deployment that makes many edits within one request, all of which have the same id in Serve."""

    def __init__(self) -> None:
        self._editor = serve.get_deployment_handle("ImageEditor", app_name=APP)

    async def __call__(self, requests: list[EditRequest]) -> list[EditResult]:
        return list(await asyncio.gather(*(self._editor.edit.remote(request) for request in requests)))


def test_edits_that_one_request_of_another_application_fans_out_are_all_answered(fleet):
    requests = [edit_request(seed) for seed in range(12)]
    fan = serve.run(Fan.bind(), name="fan", route_prefix=None)  # type: ignore[attr-defined]
    try:
        results = fan.remote(requests).result(timeout_s=60)
    finally:
        serve.delete("fan")
    assert all(has_own_pictures(*pair) for pair in zip(results, requests, strict=True))
