"""Results as a page of tables in Markdown, and as a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.edits import DRAFT, PRESETS
from benchmarks.load.aims import STOCK, aims
from benchmarks.load.bench import Results
from benchmarks.load.contender import Contender
from benchmarks.load.loads import MIXED, PHOTOS, SATURATION
from benchmarks.load.measures import Alone, Figures, worst_difference
from benchmarks.markdown import table

PLOT = "results.png"
_REASONS = """Why aims were missed in the last committed run, as far as it is known, stands in
[docs/design/performance.md](../docs/design/performance.md#against-other-ways-to-serve-the-same-model)."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of the measurement, in words or numbers for the page."""

    command: str
    model: str
    machine: str
    versions: str
    threads: int
    rounds: int
    plain_steps: int
    side: int
    photo_side: int
    minutes: float


def page(results: Results, contenders: Sequence[Contender], conditions: Conditions) -> str:
    """Return RESULTS.md."""
    return "\n".join(
        [
            "# Measured: many callers on one model",
            "",
            _introduction(results, conditions),
            "",
            f"![throughput, latency and slowdown]({PLOT})",
            "",
            "## Aims",
            "",
            *_aims(results),
            "",
            _REASONS,
            "",
            *_ratios(results, contenders),
            *(line for name in results.figures for line in _load(name, results, contenders)),
            *_alone(results, contenders),
            *_contenders(contenders),
        ]
    )


def _introduction(results: Results, conditions: Conditions) -> str:
    return f"""Written by `{conditions.command}`, in {conditions.minutes:.0f} minutes.
Model `{conditions.model}`, threads of each contender's model: {conditions.threads}; {conditions.machine};
{conditions.versions}.
{conditions.rounds} rounds, forwards and backwards by turns; figures are medians over them (of differences, failures and
lateness the worst). One contender runs at a time, the others are frozen.

A plain edit is guided, of {conditions.plain_steps} steps, at {conditions.side} × {conditions.side} pixels, the native
size of every contender here. The stock pipeline behind a lock serves {results.capacity.lock_per_s:.2f} of them a
second, which the loads refer to; ours serves {results.capacity.ours_mixed_per_s:.2f} mixed ones a second. Photos of
strangers have the aspect ratios of phones, cameras and screenshots, at the native area of {conditions.photo_side} ×
{conditions.photo_side} pixels; all else is as in plain edits. Stock behind a lock serves {results.photos_per_s:.2f} of
them a second.

The preset `{DRAFT}` has {PRESETS[DRAFT].steps} steps without guidance; only ours has presets.

Latency counts from the moment at which a request was due. Slowdown is latency over the latency of the same edit alone
on the same server. Difference is the worst of any value of any picture to the same edit alone on the same server, of
255."""


def _aims(results: Results) -> list[str]:
    rows = (
        (
            aim.text,
            f"{aim.ratio:.2f}",
            f"{'at most' if aim.at_most else 'at least'} {aim.wanted:.2f}",
            "yes" if aim.met else "**no**",
            aim.note,
        )
        for aim in aims(results)
    )
    return table(("ratio", "measured", "aim", "met", "note"), rows)


def _ratios(results: Results, contenders: Sequence[Contender]) -> list[str]:
    """Return ours over each other contender, load by load."""
    ours, *others = [contender for contender in contenders if contender.speaks_http]
    lines = ["## Ours over the others", "", f"{ours.title}: throughput × and p95 latency × of the one named.", ""]
    rows = []
    for name, figures in results.figures.items():
        cells = [_ratio(figures.get(ours.name), figures.get(other.name)) for other in others]
        if any(cells):
            rows.append([results.titles[name], *cells])
    return [*lines, *table(["load", *(other.title for other in others)], rows), ""]


def _ratio(ours: Figures | None, other: Figures | None) -> str:
    if ours is None or other is None:
        return ""
    return f"{ours.throughput / other.throughput:.2f}, {ours.p95_s / other.p95_s:.2f}"


_COLUMNS = (
    ("pictures/s", "throughput", ".2f"),
    ("mean s", "mean_s", ".2f"),
    ("p50 s", "p50_s", ".2f"),
    ("p95 s", "p95_s", ".2f"),
    ("p99 s", "p99_s", ".2f"),
    ("slowdown mean", "slowdown_mean", ".2f"),
    ("slowdown p95", "slowdown_p95", ".2f"),
    ("forwards per sample", "forwards_per_sample", ".2f"),
    ("samples per forward", "samples_per_forward", ".2f"),
    ("difference", "difference", "d"),
    ("failures", "failures", "d"),
)


def _load(name: str, results: Results, contenders: Sequence[Contender]) -> list[str]:
    figures = results.figures[name]
    rows = [
        [contender.title, *(format(getattr(figures[contender.name], field), form) for _, field, form in _COLUMNS)]
        for contender in contenders
        if contender.name in figures
    ]
    late_ms = 1000 * max(some.late_s for some in figures.values())
    lines = [f"## {results.titles[name]}", ""]
    lines += table(["", *(title for title, _, _ in _COLUMNS)], rows)
    lines += ["", f"The load generator sent at most {late_ms:.0f} ms late."]
    if name == SATURATION:
        lines.append(f"The engine driven directly, without HTTP and Ray: {results.direct:.2f} pictures/s.")
    return [*lines, ""]


def _alone(results: Results, contenders: Sequence[Contender]) -> list[str]:
    lines = ["## Alone, and memory", "", "Difference here is to the stock pipeline's pictures, of 255.", ""]
    rows = [
        (
            contender.title,
            _seconds(results.alone.get(contender.name)),
            _seconds(results.photos_alone.get(contender.name)),
            _difference(_both(results, contender.name), _both(results, STOCK)),
            f"{results.peak_bytes[contender.name] / 2**20:.0f}",
        )
        for contender in contenders
    ]
    header = ("", "all other kinds of edit, one after another, s", "photos, s", "difference", "peak memory MiB")
    return [*lines, *table(header, rows), ""]


def _both(results: Results, contender: str) -> tuple[Alone, ...]:
    """Return all edits alone: those of both runs, or only those of the first."""
    return (*results.alone.get(contender, ()), *results.photos_alone.get(contender, ()))


def _seconds(alone: Sequence[Alone] | None) -> str:
    return f"{sum(one.latency_s for one in alone):.2f}" if alone else ""


def _difference(alone: Sequence[Alone] | None, stock: Sequence[Alone] | None) -> str:
    if not alone or not stock:
        return ""
    return str(max(worst_difference(one.pictures, other.pictures) for one, other in zip(alone, stock, strict=False)))


def _contenders(contenders: Sequence[Contender]) -> list[str]:
    lines = ["## Contenders", ""]
    lines += [f"- {contender.title}: {contender.about}" for contender in contenders]
    return [*lines, ""]


def plot(results: Results, contenders: Sequence[Contender], path: Path) -> None:
    """Plot three groups of bars: throughput, p95 latency, p95 slowdown."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    panels = (
        ("pictures a second", "throughput", ("poisson-120", SATURATION, PHOTOS)),
        ("p95 latency, seconds", "p95_s", ("poisson-80", "poisson-120", f"{PHOTOS}-80")),
        ("p95 slowdown, times alone", "slowdown_p95", ("poisson-80", "poisson-120", MIXED)),
    )
    axes = figure.subplots(1, len(panels))
    shown = [contender for contender in contenders if contender.speaks_http]
    for axis, (title, field, names) in zip(axes, panels, strict=True):
        for place, contender in enumerate(shown):
            values = [_value(results, name, contender.name, field) for name in names]
            centres = [k + (place - (len(shown) - 1) / 2) * 0.8 / len(shown) for k in range(len(names))]
            axis.bar(centres, values, width=0.8 / len(shown), label=contender.title)
        axis.set_title(title)
        axis.set_xticks(range(len(names)), names)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def _value(results: Results, load: str, contender: str, field: str) -> float:
    figures = results.figures[load].get(contender)
    return 0.0 if figures is None else float(getattr(figures, field))
