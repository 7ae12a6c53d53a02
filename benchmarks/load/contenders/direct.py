"""The engine in one process, without HTTP and without Ray: the upper bound for any server around it."""

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.edits import Edit, Effort, plain
from benchmarks.load.contenders import program
from benchmarks.load.traces import at_once
from serve_app.engine.engine import EditEngine
from serve_app.errors import EditError
from serve_app.models import runtime


def saturate(engine: EditEngine, edits: Sequence[Edit], count: int) -> float:
    """Submit `count` edits at once and return the pictures a second. Raises the EditError of a rejected edit."""
    requests = [edits[arrival.kind].request() for arrival in at_once([edit.weight for edit in edits], count).arrivals]
    start = time.perf_counter()
    pictures = 0
    for future in engine.submit(requests):
        if isinstance(future, EditError):
            raise future
        pictures += len(future.result().images)
    return pictures / (time.perf_counter() - start)


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("--count", type=int, required=True, help="edits submitted at once")
    parser.add_argument("--steps", type=int, required=True, help="of each edit")
    arguments = parser.parse_args()
    engine = runtime.start(program.settings(arguments)).engine
    edits = plain(Effort(plain=arguments.steps, side=arguments.side))

    def counts() -> dict[str, Any]:
        stats = engine.stats()
        return {"forwards": stats.forwards, "sample_steps": stats.sample_steps}

    program.answer(arguments.answers, {"counts": counts, "saturate": lambda: saturate(engine, edits, arguments.count)})
    engine.stop()


if __name__ == "__main__":
    main()
