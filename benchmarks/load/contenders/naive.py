"""The deployment of Ray's documentation: `@serve.batch` around one call of the stock pipeline for each batch.

As there, the call blocks the replica's event loop. With `--thread` it runs beside the loop, which then continues to
close batches while the model is busy.
"""

import asyncio
import logging
from dataclasses import asdict
from typing import Any

import ray
from ray import serve
from starlette.applications import Starlette

from benchmarks.load.contenders import program
from benchmarks.load.contenders.edge import create_edge
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings

NAME = "naive"


@serve.deployment(name="Naive", max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1})
@serve.ingress()
class NaiveEditor:
    """A replica that parses, edits and answers."""

    def __init__(self, settings: AppSettings, in_thread: bool) -> None:
        from benchmarks.load.contenders.stock import Counter, StockEditor

        self._settings = settings
        self._in_thread = in_thread
        self._counter = Counter()
        self._editor = StockEditor(settings.model, self._counter)

    def __serve_build_asgi_app__(self) -> Starlette:
        return create_edge(self._edit, self._settings)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.1)  # type: ignore[untyped-decorator]
    async def _edit(self, requests: list[EditRequest]) -> list[EditResult]:
        if self._in_thread:
            return await asyncio.to_thread(self._editor.edit, requests)
        return self._editor.edit(requests)

    async def counts(self) -> dict[str, int]:
        return asdict(self._counter.counts())


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("--thread", action="store_true", help="keep the event loop free")
    arguments = parser.parse_args()
    start_cluster(arguments.port, cpus=1)
    serve.run(NaiveEditor.bind(program.settings(arguments), arguments.thread), name=NAME)  # type: ignore[attr-defined]
    handle = serve.get_app_handle(NAME)
    program.answer(arguments.answers, {"counts": lambda: handle.counts.remote().result()})
    ray.shutdown()


def start_cluster(port: int, cpus: int, **options: Any) -> None:
    """Start a local Ray, with Serve's proxy on `port`."""
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=program.OBJECT_STORE_BYTES,
        **options,
    )
    serve.start(http_options={"host": program.HOST, "port": port})
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
