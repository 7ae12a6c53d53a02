"""`python -m serve_app`: one machine, one command. Clusters use serve_config.yaml."""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray
import yaml
from pydantic import ValidationError
from ray import serve

from serve_app.app import APP_NAME, build
from serve_app.settings import BUILTIN_TINY, AppSettings, ModelSettings

# Writes the pictures of an answer to output_0.png, output_1.png …
_SAVE = """python3 -c 'import base64, json, sys
for k, item in enumerate(json.load(sys.stdin)["data"]):
    open(f"output_{k}.png", "wb").write(base64.b64decode(item["b64_json"]))'"""


def main() -> None:
    arguments = _parse()
    settings = _settings(arguments)
    stop = threading.Event()
    print(f"Starting; loading {settings.model.source} …", flush=True)
    # One CPU each for ingress and replica, also where the machine has only one. Ray's own lines go to its log.
    cpus = max(2, len(os.sched_getaffinity(0)))
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
        _start(settings, arguments.host, arguments.port)
        print(_welcome(arguments.host, arguments.port), flush=True)
        stop.wait()
        print("Stopping; edits that run are finished first. Ctrl-C again drops them.", flush=True)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _finish()
        ray.shutdown()


def _settings(arguments: argparse.Namespace) -> AppSettings:
    """The settings of the file, or the defaults with the model that was named; exits where the file cannot be used."""
    if arguments.settings is None:
        return AppSettings(model=ModelSettings(source=arguments.model))
    try:
        return AppSettings.model_validate(yaml.safe_load(arguments.settings.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        sys.exit(f"{arguments.settings} cannot be used: {error}")


def _finish() -> None:
    """Take no new edits and wait for those that run; Serve ends what outlasts the replicas' graceful shutdown.

    Not serve.shutdown, which prints an alarm over Serve's own controller that has ended as it should, and not the
    blocking delete: they give up after 30 s and 60 s, before a long edit is done (Ray 2.60).
    """
    serve.delete(APP_NAME, _blocking=False)
    while APP_NAME in serve.status().applications:
        time.sleep(0.2)


def _start(settings: AppSettings, host: str, port: int) -> None:
    """Serve the application, or exit with the reason that Serve leaves out of its exception."""
    serve.start(http_options={"host": host, "port": port})
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.run(build(settings), name=APP_NAME)
    except RuntimeError as error:
        deployments = serve.status().applications[APP_NAME].deployments.values()
        reasons = [deployment.message for deployment in deployments if deployment.message]
        sys.exit("\n\n".join([f"The server did not start: {error}", *reasons]))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serve_app", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", default=BUILTIN_TINY, help="builtin:tiny, a directory, or a hub id (%(default)s)")
    what.add_argument("--settings", type=Path, help="YAML file with all settings: what stands under `args:`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (%(default)s)")
    return parser.parse_args()


def _welcome(host: str, port: int) -> str:
    return f"""
Ready. In another terminal, edit a picture:

  curl -s http://{host}:{port}/v1/images/edits \\
    -F "prompt=make the sky blue" -F "images=@photo.jpg" \\
    | {_SAVE}

The log of every request: /tmp/ray/session_latest/logs/serve
Ctrl-C stops the server.
"""


if __name__ == "__main__":
    main()
