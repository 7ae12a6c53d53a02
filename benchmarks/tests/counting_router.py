"""The router under test, which records its actions in a file: a router lives in the process of its handle."""

from pathlib import Path
from typing import Any

from benchmarks.fleet.sharing_router import SharingRouter


class CountingRouter(SharingRouter):
    """A router that writes a line to `file` for each choice, each request sent, and each that a replica took."""

    def initialize_state(self, file: str) -> None:
        self._file = Path(file)

    async def choose_replicas(self, *args: Any, **kwargs: Any) -> Any:
        self._write("chosen")
        return await super().choose_replicas(*args, **kwargs)

    def on_send_request(self, replica_id: Any) -> None:
        self._write("sent")
        super().on_send_request(replica_id)

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        self._write(f"taken by {replica_id.unique_id}")
        super().on_request_routed(pending_request, replica_id, result)

    def _write(self, what: str) -> None:
        with self._file.open("a") as file:
            file.write(f"{what}\n")
