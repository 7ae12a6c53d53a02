"""`python -m benchmarks.gpu`: the speed of one CUDA device, beside the floor and diffusers' own pipeline, as tables.

    python -m benchmarks.gpu --minutes 20               # all sections, into benchmarks/GPU.md
    python -m benchmarks.gpu --only steps,stock,text    # in two runs of under 10 minutes: these, then the others;
    python -m benchmarks.gpu --only attention,edits,knee,compile    # the file keeps sections of earlier runs
    python -m benchmarks.gpu --model half               # half the layers, for cards of 40 GB and more
    python -m benchmarks.gpu --device cpu --model tiny  # a miniature model: shows that the script runs
    python -m benchmarks.gpu --fake                     # without a GPU: print the launches, FLOP and waits of a step

Needs no network and no Ray. Every row is written as soon as it is measured, so an interrupted run leaves its tables.
"""

import argparse
import contextlib
import datetime
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers

from benchmarks.gpu import launches
from benchmarks.gpu.floor import known_peak_tflops
from benchmarks.gpu.measure import Bench, Stopwatch, first_line, matmul_tflops
from benchmarks.gpu.model import SIZES, build_pipeline
from benchmarks.gpu.report import Row, Rows, Table, update
from benchmarks.gpu.sections import SECTIONS

logger = logging.getLogger("benchmarks.gpu")

_DEFAULT_OUT = Path(__file__).parents[1] / "GPU.md"


@dataclass(frozen=True)
class Run:
    """The context that all sections of one run share."""

    bench: Bench
    out: Path
    where: str
    """Device, versions, date and command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the selected sections. Return the exit status: 1 if a section failed."""
    started_s = time.monotonic()
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    diffusers.logging.set_verbosity_error()
    if options.fake:
        print("\n".join(launches.report(SIZES["full"])))
        return 0
    # Read when CUDA is first used. Batches of all sizes fragment memory otherwise.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    run = _prepare(options, started_s)
    failed = [name for name in options.only if not _measure(run, name)]
    return int(bool(failed))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", choices=list(SIZES), default="full")
    parser.add_argument("--only", type=_section_names, default=list(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--minutes", type=float, default=9.0, help="no row begins after these (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs for each median, more of short ones (%(default)s)")
    parser.add_argument("--batches", type=_numbers, default=[1, 2, 4, 8], help="of the section `steps`: 1,2,4,8")
    parser.add_argument("--max-samples", type=int, default=10, help="largest batch tried for the knee (%(default)s)")
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak; default: by the name, or measured")
    parser.add_argument("--out", type=Path, default=_DEFAULT_OUT)
    parser.add_argument("--fake", action="store_true", help="count on a fake GPU and print tables; no other option")
    options = parser.parse_args(arguments)
    if options.fake and len(arguments) > 1:
        parser.error("--fake counts the published model in bf16, and takes no other option")
    options.command = _command(arguments)
    return options


def _section_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"no section {unknown[0]!r}; there are {','.join(SECTIONS)}")
    return names


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _command(arguments: Sequence[str]) -> str:
    """Return the command without `--out`, which is a path of one machine."""
    kept: list[str] = []
    for word in arguments:
        if word == "--out" or (kept and kept[-1] == "--out"):
            kept = [*kept, word] if word == "--out" else kept[:-1]
        elif not word.startswith("--out="):
            kept.append(word)
    return " ".join(["python -m benchmarks.gpu", *kept])


def _prepare(options: argparse.Namespace, started_s: float) -> Run:
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = SIZES[options.model]
    watch = Stopwatch(device, options.minutes * 60, options.repeats, started_s)
    pipeline = build_pipeline(size, device, dtype)
    watch.wait()
    start_up_s = time.monotonic() - started_s
    reached = matmul_tflops(watch, dtype)
    peak = options.peak_tflops or known_peak_tflops(_device_name(device)) or reached
    logger.info("Built in %.0f s, peak %.3g TFLOP/s", start_up_s, peak)
    where = (
        f"{_device_name(device)}, {str(dtype).removeprefix('torch.')}, peak {peak:.3g} TFLOP/s (a large matrix product "
        f"reaches {reached:.3g}) · model: {options.model} · torch {torch.__version__}, diffusers "
        f"{diffusers.__version__}, transformers {transformers.__version__} · {datetime.date.today()} · "
        f"`{options.command}`, {start_up_s:.0f} s until the model was built"
    )
    return Run(Bench(pipeline, size, watch, peak, options.batches, options.max_samples), options.out, where)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, threads: {torch.get_num_threads()}"


def _measure(run: Run, name: str) -> bool:
    """Measure one section and write it after each of its rows. Return False if it failed."""
    section, watch = SECTIONS[name], run.bench.watch
    table = Table(name, section.title, section.columns, section.notes)
    start_s, warmup_s = time.monotonic(), watch.warmup_s
    succeeded = True
    try:
        with contextlib.closing(section.rows(run.bench)) as rows:
            for row in _within_budget(rows, watch):
                table.rows.append(row)
                logger.info("%s: %s", name, " | ".join(row))
                _write(run, table, start_s, warmup_s)
    except TimeoutError as error:
        table.remarks.append(f"Cut by the budget: {error}.")
    except Exception as error:
        logger.exception("Section %s failed", name)
        table.remarks.append(f"Ended by an error: {first_line(error)}")
        succeeded = False
    _write(run, table, start_s, warmup_s)
    return succeeded


def _within_budget(rows: Rows, watch: Stopwatch) -> Iterator[Row]:
    """Yield the rows. Raises TimeoutError before a row if the budget is spent."""
    while True:
        if watch.left_s <= 0:
            raise TimeoutError("rows are missing")
        try:
            yield next(rows)
        except StopIteration:
            return


def _write(run: Run, table: Table, start_s: float, warmup_s: float) -> None:
    spent_s, warm_s = time.monotonic() - start_s, run.bench.watch.warmup_s - warmup_s
    provenance = f"{run.where}, {spent_s:.0f} s for this section, {warm_s:.0f} s of them warm-ups."
    update(run.out, table.name, table.markdown(provenance), list(SECTIONS))


if __name__ == "__main__":
    sys.exit(main())
