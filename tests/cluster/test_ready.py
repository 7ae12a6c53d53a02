"""Readiness of replicas, as `/health/ready` reports it, on a real cluster with replicas of one request each."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing

import pytest
import ray
from ray import serve
from ray.serve.api import RunTarget
from ray.serve.handle import DeploymentHandle

from serve_app.app import compose
from serve_app.deployments.editor_handle import EditorHandle
from serve_app.deployments.ingress import drain
from serve_app.editor import Capabilities
from serve_app.errors import Overloaded
from serve_app.events import Progress
from serve_app.settings import AppSettings
from tests import processes
from tests.cluster.conftest import SLOW_EDITOR, Served
from tests.cluster.slow_editor import SlowEditor
from tests.fakes import ArithmeticPipeline, edit_request

APP = "ready"
OPTIONS = {
    "name": "ImageEditor",
    "max_ongoing_requests": 1,
    "max_queued_requests": 1,
    "graceful_shutdown_timeout_s": 1,
    "ray_actor_options": {"num_cpus": 0},
}
STEPS = 150
CAPABILITIES = Capabilities(ArithmeticPipeline.max_references - 1, native_area=64 * 64, generates=True)


class EndlessEditor(SlowEditor):
    """A replica on which no edit of a test ends by itself."""

    step_s = 1.0


class Loading(SlowEditor):
    """A replica whose model is still loading."""

    def __init__(self) -> None:
        time.sleep(120)
        super().__init__(AppSettings())


@pytest.fixture
def handle(cluster: int) -> Iterator[DeploymentHandle]:
    deployment = serve.deployment(**OPTIONS)(EndlessEditor)
    yield serve.run(deployment.bind(AppSettings()), name=APP, route_prefix=None)
    serve.delete(APP)


def ready(editor: EditorHandle) -> bool:
    return asyncio.run(editor.ready())


def capabilities(editor: EditorHandle) -> Capabilities | None:
    return asyncio.run(editor.capabilities())


async def edited(editor: EditorHandle) -> None:
    await editor.edit(edit_request(3))


async def streamed(editor: EditorHandle) -> None:
    async with aclosing(editor.edit_stream(edit_request(3))) as events:
        await anext(events)


def test_a_replica_that_is_busy_is_ready_though_it_takes_no_more(handle: DeploymentHandle):
    editor = EditorHandle(handle, timeout_s=60)
    assert ready(editor)
    assert capabilities(editor) == CAPABILITIES
    stream = handle.options(stream=True).edit_stream.remote(edit_request(1, num_inference_steps=STEPS))
    assert isinstance(next(stream), Progress)
    assert ready(editor)
    # It waits in front of the replica, and the next request is refused.
    waiting = handle.edit.remote(edit_request(2, num_inference_steps=STEPS))
    with pytest.raises(TimeoutError):
        waiting.result(timeout_s=1)
    assert ready(editor)
    # Edits and streams are refused alike.
    for ask in (edited, streamed):
        with pytest.raises(Overloaded):
            asyncio.run(ask(EditorHandle(handle, timeout_s=60)))
    # What was once said holds, and a caller who has not heard it is not kept waiting.
    assert capabilities(editor) == CAPABILITIES
    assert capabilities(EditorHandle(handle, timeout_s=60)) is None
    stream.cancel()
    waiting.cancel()


def test_one_that_loads_its_model_is_not(cluster: int):
    deployment = serve.deployment(**OPTIONS)(Loading)
    target = RunTarget(deployment.bind(), name="loading", route_prefix=None)
    [handle] = serve.run_many([target], wait_for_applications_running=False)
    assert not ready(EditorHandle(handle, timeout_s=60))
    assert capabilities(EditorHandle(handle, timeout_s=60)) is None
    serve.delete("loading")


def test_nor_is_one_that_has_died_though_serve_has_not_noticed(cluster: int):
    deployment = serve.deployment(**OPTIONS, health_check_period_s=600)(EndlessEditor)
    editor = EditorHandle(serve.run(deployment.bind(AppSettings()), name="dead", route_prefix=None), timeout_s=60)
    assert ready(editor)
    [pid] = processes.of("dead", "ImageEditor")
    processes.kill(pid)
    assert not ready(editor)
    assert serve.status().applications["dead"].deployments["ImageEditor"].replica_states == {"RUNNING": 1}
    serve.delete("dead")


def test_nor_is_one_of_an_application_that_is_gone(handle: DeploymentHandle):
    serve.delete(APP)
    assert not ready(EditorHandle(handle, timeout_s=60))


def test_a_second_ingress_runs_where_the_cores_allow(cluster: int):
    assert ray.cluster_resources()["CPU"] >= 4
    assert compose(SLOW_EDITOR, AppSettings())._bound_deployment.num_replicas == 2


def test_no_ingress_of_a_server_that_stops_is(mortal: Served):
    assert mortal.client.get("/health/ready").status_code == 200
    drain(mortal.name, timeout_s=30)
    # Serve draws one of the two for each.
    assert {mortal.client.get("/health/ready").status_code for _ in range(20)} == {503}
    # Those that take their places are not draining.
    for pid in processes.of(mortal.name, "EditIngress"):
        processes.kill(pid)
