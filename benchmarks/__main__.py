"""`python -m benchmarks`: every contender under every load, in an hour. Run nothing else on the machine."""

import argparse
import os
import platform
import shlex
import sys
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.edits import Effort, mixed, photos, plain, with_presets
from benchmarks.engine import prefixes
from benchmarks.load import report
from benchmarks.load.baseline import checked_out, find_commit
from benchmarks.load.bench import Results, add_photos, add_presets, bench
from benchmarks.load.contender import CONTENDERS, DIRECT, Contender
from benchmarks.load.servers import ROOT, running
from serve_app.settings import BUILTIN_TINY, ModelSettings

# Loads and aims refer to these.
_ALWAYS = ("step", "lock")
_LEFT_OUT = ("naive-thread",)


def main() -> None:
    arguments = _parse()
    start = time.monotonic()
    with ExitStack() as stack:
        baseline = [stack.enter_context(checked_out(arguments.baseline))] if arguments.baseline else []
        wanted = [contender for contender in CONTENDERS if contender.name in (*_ALWAYS, *arguments.contenders)]
        _compare([*wanted, *baseline], arguments, start)


def _compare(wanted: list[Contender], arguments: argparse.Namespace, start: float) -> None:
    effort = Effort(arguments.steps, arguments.few, arguments.many, arguments.side, arguments.photo_side)
    contenders = [*wanted, _direct(effort, arguments.burst)]

    def log(text: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {text}", flush=True)

    model = str(Path(arguments.model).resolve()) if Path(arguments.model).is_dir() else arguments.model
    common = ["--model", model, "--threads", str(arguments.threads), "--side"]
    options: dict[str, Any] = {name: getattr(arguments, name) for name in ("seconds", "burst", "rounds")} | {"log": log}
    log(f"starting {len(contenders)} contenders, one after another")
    with running(contenders, [*common, str(effort.side)], arguments.logs.resolve()) as servers:
        results = bench(servers, plain(effort), mixed(effort), **options)
        for_presets = {name: options[name] for name in ("burst", "rounds", "log")}
        results = add_presets(results, servers, with_presets(effort), **for_presets)
    log("starting them again, for photos")
    for_photos = [contender for contender in wanted if contender.loads is None]
    with running(for_photos, [*common, str(effort.photo_side)], arguments.logs.resolve() / "photos") as servers:
        results = add_photos(results, servers, photos(effort), **options)
    log("edits of the same images, Qwen-Image-2.1")
    same_images = prefixes.page(prefixes.measure())
    conditions = _conditions(arguments, minutes=(time.monotonic() - start) / 60)
    _write(results, contenders, conditions, same_images, arguments.output)


def _direct(effort: Effort, burst: int) -> Contender:
    arguments = ("--count", str(burst), "--steps", str(effort.plain))
    return Contender(DIRECT.name, DIRECT.title, DIRECT.about, DIRECT.program, arguments)


def _write(
    results: Results, contenders: list[Contender], conditions: report.Conditions, same_images: str, folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    page = "\n".join([report.page(results, contenders, conditions), same_images])
    (folder / "RESULTS.md").write_text(page)
    report.plot(results, contenders, folder / report.PLOT)
    print(f"\n{page}\nWritten to {folder}")


def _conditions(arguments: argparse.Namespace, minutes: float) -> report.Conditions:
    packages = ("ray", "torch", "diffusers", "litserve")
    return report.Conditions(
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        model=ModelSettings(source=arguments.model).served_name,
        machine=f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}",
        versions=", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]),
        threads=arguments.threads,
        rounds=arguments.rounds,
        plain_steps=arguments.steps,
        side=arguments.side,
        photo_side=arguments.photo_side,
        minutes=minutes,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [contender.name for contender in CONTENDERS]
    effort = Effort()
    add = parser.add_argument
    add("--model", default=BUILTIN_TINY, help="builtin:tiny, a directory, or a hub id (%(default)s)")
    # One core is left to the server around the model, the proxy and the load generator: threads of a model wait for
    # each other, so a process that takes the core of one thread stops them all.
    threads = max(1, len(os.sched_getaffinity(0)) - 1)
    add("--threads", type=int, default=threads, help="of each model; one core is left to the rest (%(default)s)")
    add("--contenders", nargs="*", choices=names, default=[n for n in names if n not in _LEFT_OUT], help="%(default)s")
    add("--baseline", metavar="COMMIT", help="compare with our server as of this commit too")
    add("--rounds", type=int, default=2, help="even, so that forwards and backwards balance (%(default)s)")
    add("--seconds", type=float, default=10.0, help="for which strangers arrive in one run (%(default)s)")
    # Many, since the first edits, which arrive one by one, and the last ones are not typical.
    add("--burst", type=int, default=64, help="edits at once at saturation (%(default)s)")
    add("--steps", type=int, default=effort.plain, help="of a plain edit (%(default)s)")
    add("--few", type=int, default=effort.few, help="steps of a short edit in mixed traffic (%(default)s)")
    add("--many", type=int, default=effort.many, help="steps of a long one (%(default)s)")
    add("--side", type=int, default=effort.side, help="of pictures and of the native size, in pixels (%(default)s)")
    add("--photo-side", type=int, default=effort.photo_side, help="of the native size for photos (%(default)s)")
    add("--output", type=Path, default=ROOT / "benchmarks", help="folder of RESULTS.md and the plot")
    add("--logs", type=Path, default=ROOT / "build" / "bench", help="folder of the contenders' output")
    arguments = parser.parse_args()
    if arguments.baseline:
        try:
            arguments.baseline = find_commit(arguments.baseline)
        except ValueError as error:
            parser.error(f"--baseline: {error}")
    return arguments


if __name__ == "__main__":
    main()
