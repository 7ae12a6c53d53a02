"""The server on one machine, by one command. Clusters use serve_config.yaml."""

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import ray
from ray import serve
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve_app.app import APP_NAME, build
from serve_app.deployments import environment
from serve_app.deployments.ingress import drain
from serve_app.settings import AppSettings

_DRAIN_S = 10.0
_LOOK_S = 1.0
# Ray's processes without which no edit is answered. Ray (2.60) goes on for a minute without the first one, and does not
# end this process without the second one.
_VITAL = (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)
# Writes the pictures of an answer to output_0.png, output_1.png …
_SAVE = """python3 -c 'import base64, json, sys
for k, item in enumerate(json.load(sys.stdin)["data"]):
    open(f"output_{k}.png", "wb").write(base64.b64decode(item["b64_json"]))'"""


def serve_until_stopped(settings: AppSettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM. Exits with the reason if the server cannot start, or if its Ray has died."""
    stop = threading.Event()
    print(f"Starting; loading {settings.model.source} …", flush=True)
    # One CPU each for ingress and replica, even if the machine has only one. Ray's own lines go to its log.
    cpus = max(2, len(os.sched_getaffinity(0)))
    environment.set_defaults()
    context = ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    session = Path(context.address_info["session_dir"])
    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
        _start(settings, host, port)
        print(_welcome(host, port, session), flush=True)
        while not stop.wait(_LOOK_S):
            if dead := _dead_parts():
                sys.exit(f"Ray's {dead[0]} has died, and the server with it. Ray's logs: {session / 'logs'}")
        print("Stopping; edits that run are finished first. Ctrl-C again drops them.", flush=True)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if _dead_parts():
            _kill_the_rest()
        else:
            _finish()
        ray.shutdown()


def _dead_parts() -> list[str]:
    """Return the names of Ray's processes that have ended and without which no edit is answered."""
    return [name for name, _ in ray_worker._global_node.dead_processes() if name in _VITAL]


def _kill_the_rest() -> None:
    """Kill the processes of Ray, which would keep the port and the GPU: without the GCS they wait for it a minute."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _finish() -> None:
    """Reject new edits and wait for those that run; Serve ends those that outlast the replicas' graceful shutdown.

    The ingress drains first, and the application stays until its edits are done: an application that is being deleted
    answers 404 (Ray 2.60).

    Neither serve.shutdown, which also prints an alarm about Serve's own controller although it ended as it should, nor
    the blocking delete: they give up after 30 s and 60 s, before a long edit is done (Ray 2.60).
    """
    # If nothing answers, no edit runs that could be waited for.
    with suppress(RayError, RayServeException, TimeoutError):
        drain(APP_NAME, _DRAIN_S)
        editor = serve.get_deployment_handle("ImageEditor", APP_NAME)
        while editor.stats.remote().result(timeout_s=_DRAIN_S).open_requests:
            time.sleep(0.2)
    serve.delete(APP_NAME, _blocking=False)
    while APP_NAME in serve.status().applications:
        time.sleep(0.2)


def _start(settings: AppSettings, host: str, port: int) -> None:
    """Start the application, or exit with the reason, which Serve's exception leaves out."""
    serve.start(http_options={"host": host, "port": port})
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.run(build(settings), name=APP_NAME)
    except RuntimeError as error:
        deployments = serve.status().applications[APP_NAME].deployments.values()
        reasons = [deployment.message for deployment in deployments if deployment.message]
        sys.exit("\n\n".join([f"The server did not start: {error}", *reasons]))


def _welcome(host: str, port: int, session: Path) -> str:
    """Return what to do next. `session`: the folder of this Ray; others may run on the machine."""
    (node,) = ray.nodes()
    return f"""
Ready. In another terminal, edit a picture:

  curl -s http://{host}:{port}/v1/images/edits \\
    -F "prompt=make the sky blue" -F "images=@photo.jpg" \\
    | {_SAVE}

The log of every request: {session / "logs" / "serve"}
Metrics for Prometheus: http://127.0.0.1:{node["MetricsExportPort"]}/metrics
Ctrl-C stops the server.
"""
