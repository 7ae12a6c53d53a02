"""The engine in one process, without HTTP and without Ray: what no server around it can exceed."""

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.contenders import program
from benchmarks.edits import Edit, Effort, plain
from benchmarks.traces import at_once
from serve_app import models
from serve_app.calibration import calibrate
from serve_app.engine import EditEngine
from serve_app.errors import EditError
from serve_app.settings import AppSettings


def build_engine(settings: AppSettings) -> EditEngine:
    """As the replica builds it."""
    model = models.load(settings.model)
    engine = EditEngine(
        model.pipeline,
        settings.engine,
        calibrate(model.pipeline, max_samples=model.max_samples, default_guidance=model.default_guidance),
        max_samples=model.max_samples,
        default_steps=model.default_steps,
        default_guidance=model.default_guidance,
        timeout_s=settings.limits.request_timeout_s,
    )
    engine.start()
    return engine


def saturate(engine: EditEngine, edits: Sequence[Edit], count: int) -> float:
    """`count` edits submitted at once: pictures a second."""
    requests = [edits[arrival.kind].request() for arrival in at_once([edit.weight for edit in edits], count).arrivals]
    start = time.perf_counter()
    pictures = 0
    for ticket in engine.submit(requests):
        if isinstance(ticket, EditError):
            raise ticket
        pictures += len(ticket.result().images)
    return pictures / (time.perf_counter() - start)


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("--count", type=int, required=True, help="edits submitted at once")
    parser.add_argument("--steps", type=int, required=True, help="of each edit")
    arguments = parser.parse_args()
    engine = build_engine(program.settings(arguments))
    edits = plain(Effort(plain=arguments.steps, side=arguments.side))

    def counts() -> dict[str, Any]:
        stats = engine.stats()
        return {"forwards": stats.forwards, "sample_steps": stats.sample_steps}

    program.answer(arguments.answers, {"counts": counts, "saturate": lambda: saturate(engine, edits, arguments.count)})
    engine.stop()


if __name__ == "__main__":
    main()
