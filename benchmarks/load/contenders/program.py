"""Common parts of the contenders' programs: arguments, and the pipe for answers to the benchmark's commands."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.edits import PRESETS
from serve_app.settings import AppSettings, EngineSettings, LimitSettings, ModelSettings

HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 256 * 2**20
_TIMEOUT_S = 600


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that every program has; some add their own."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--model", required=True, help="as model.source")
    arguments.add_argument("--threads", type=int, required=True, help="threads of the model")
    arguments.add_argument("--side", type=int, required=True, help="of a picture at the native size, in pixels")
    arguments.add_argument("--port", type=int, required=True, help=f"on {HOST}")
    arguments.add_argument("--answers", type=int, required=True, help="file descriptor to write answers to")
    return arguments


def settings(arguments: argparse.Namespace, **engine: Any) -> AppSettings:
    """Return the defaults of the product, with the benchmark's model, native size and number of threads."""
    return AppSettings(
        model=ModelSettings(
            source=arguments.model, native_area=arguments.side**2, cpu_threads=arguments.threads, presets=PRESETS
        ),
        engine=EngineSettings(**engine),
        limits=LimitSettings(request_timeout_s=_TIMEOUT_S),
    )


def answer(descriptor: int, commands: Mapping[str, Callable[[], Any]]) -> None:
    """Answer each command, a line of the standard input, with a line of JSON, until the input ends.

    The input ends with the benchmark, so that no server outlives it.
    """
    # Not through sys.stdin: a thread that waits there keeps its lock, and a fork (LitServe's) would wait for the lock.
    with open(0, closefd=False) as lines:
        for line in lines:
            os.write(descriptor, json.dumps(commands[line.strip()]()).encode() + b"\n")
