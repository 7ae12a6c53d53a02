"""`python -m serve_app`: one machine, one command. Clusters use serve_config.yaml."""

import argparse
import signal
import threading

import ray
from ray import serve

from serve_app.app import APP_NAME, build
from serve_app.settings import BUILTIN_TINY, AppSettings, ModelSettings

# Writes the pictures of an answer to output_0.png, output_1.png …
_SAVE = """python3 -c 'import base64, json, sys
for k, item in enumerate(json.load(sys.stdin)["data"]):
    open(f"output_{k}.png", "wb").write(base64.b64decode(item["b64_json"]))'"""


def main() -> None:
    arguments = _parse()
    settings = AppSettings(model=ModelSettings(source=arguments.model))
    stop = threading.Event()
    print(f"Starting; loading {arguments.model} …", flush=True)
    ray.init(address="local", include_dashboard=False)
    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
        serve.start(http_options={"host": arguments.host, "port": arguments.port})
        serve.run(build(settings), name=APP_NAME)
        print(_welcome(arguments.host, arguments.port), flush=True)
        stop.wait()
        print("Stopping …", flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serve_app", description=__doc__)
    parser.add_argument("--model", default=BUILTIN_TINY, help="builtin:tiny, a directory, or a hub id (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (%(default)s)")
    return parser.parse_args()


def _welcome(host: str, port: int) -> str:
    return f"""
Ready. In another terminal, edit a picture:

  curl -s http://{host}:{port}/v1/images/edits \\
    -F "prompt=make the sky blue" -F "images=@photo.jpg" \\
    | {_SAVE}

Ctrl-C stops the server.
"""


if __name__ == "__main__":
    main()
