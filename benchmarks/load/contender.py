"""The contenders: our server in several settings, and other ways to serve the same model."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.loads import MIXED


@dataclass(frozen=True, slots=True)
class Contender:
    """A program in benchmarks/load/contenders and its arguments.

    `about`: one line for the report. `loads`: names of the loads under which it is measured, None for all. `root`:
    folder of its code, None for this tree.
    """

    name: str
    title: str
    about: str
    program: str
    arguments: tuple[str, ...] = ()
    loads: frozenset[str] | None = None
    root: Path | None = None

    @property
    def speaks_http(self) -> bool:
        return self.program != "direct"


# The first is ours, to which the others are compared.
CONTENDERS = (
    Contender("step", "ours, join: step", "as `make run` serves it", "ours"),
    Contender("batch", "ours, join: batch", "samples join only when nothing is in flight", "ours", ("--join", "batch")),
    Contender(
        name="fifo",
        title="ours, order: fifo",
        about="first come, first served; in mixed traffic only",
        program="ours",
        arguments=("--order", "fifo"),
        loads=frozenset({MIXED}),
    ),
    Contender(
        name="naive",
        title="naive @serve.batch",
        about="as Ray's documentation suggests: `@serve.batch(max_batch_size=8, batch_wait_timeout_s=0.1)` around "
        "one call of the stock pipeline for each batch, or several where steps or sizes differ; the call blocks the "
        "replica's event loop",
        program="naive",
    ),
    Contender(
        name="naive-thread",
        title="naive @serve.batch, in a thread",
        about="the same, with the call beside the event loop, which then closes batches while the model is busy",
        program="naive",
        arguments=("--thread",),
    ),
    Contender("lock", "stock behind a lock", "diffusers' pipeline in a Starlette application under uvicorn", "lock"),
    Contender("litserve", "LitServe", "`max_batch_size=8, batch_timeout=0.1` around the same calls", "lit"),
)
DIRECT = Contender("direct", "engine, directly", "our engine in one process, without HTTP and Ray", "direct")
