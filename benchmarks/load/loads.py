"""The loads under which every contender is measured, made from measured capacities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.edits import DRAFT, Edit
from benchmarks.load.traces import Trace, at_once, one_caller, poisson

SATURATION = "saturation"
MIXED = "mixed"
PHOTOS = "photos"
PRESETS = "presets"
_SHARES = (50, 80, 120)
_MIXED_SHARE = 90
_FEWEST = 8
_FEW = 8


@dataclass(frozen=True, slots=True)
class Load:
    """A load. `kinds`: index of its first kind of edit and one past its last. `trace`: by number of the round."""

    name: str
    title: str
    kinds: tuple[int, int]
    trace: Callable[[int], Trace]


@dataclass(frozen=True, slots=True)
class Capacity:
    """Requests a second: plain edits through the locked stock pipeline, mixed traffic through our server."""

    lock_per_s: float
    ours_mixed_per_s: float


def loads(plain: Sequence[Edit], mixed: Sequence[Edit], capacity: Capacity, seconds: float, burst: int) -> list[Load]:
    """Return all loads.

    `seconds`: how long strangers arrive, twice as long in mixed traffic. `burst`: edits at saturation.
    """
    only_plain, only_mixed = (0, len(plain)), (len(plain), len(plain) + len(mixed))
    even, uneven = [edit.weight for edit in plain], [edit.weight for edit in mixed]
    return [
        Load("one", "One caller", only_plain, lambda _: one_caller(len(plain))),
        Load("eight", "Eight at once", only_plain, lambda _: at_once(even, _FEW)),
        *(
            Load(
                name=f"poisson-{share}",
                title=f"Strangers at {share} % of what the stock pipeline can serve",
                kinds=only_plain,
                trace=strangers(capacity.lock_per_s * share / 100, even, seconds),
            )
            for share in _SHARES
        ),
        Load(SATURATION, f"Saturation: {burst} at once", only_plain, lambda _: at_once(even, burst)),
        Load(
            name=MIXED,
            title=f"Mixed traffic at {_MIXED_SHARE} % of what ours can serve",
            kinds=only_mixed,
            trace=strangers(capacity.ours_mixed_per_s * _MIXED_SHARE / 100, uneven, 2 * seconds),
        ),
    ]


def preset_loads(edits: Sequence[Edit], burst: int) -> list[Load]:
    """Return the loads of edits of which the second half have a preset; `edits`: as `with_presets` returns them."""
    even = [edit.weight for edit in edits]
    half = len(edits) // 2
    return [
        Load(
            name=PRESETS,
            title=f"Presets: {burst} at once, of which half are full and half by `{DRAFT}`",
            kinds=(0, len(edits)),
            trace=lambda seed: at_once(even, burst, seed),
        ),
        Load(
            name=f"{PRESETS}-only",
            title=f"Presets: {burst} at once, all by `{DRAFT}`",
            kinds=(half, len(edits)),
            trace=lambda _: at_once(even[half:], burst),
        ),
    ]


def photo_loads(photos: Sequence[Edit], lock_per_s: float, seconds: float, burst: int) -> list[Load]:
    """Return the loads of photos, whose neighbours seldom have one shape. `lock_per_s`: as in Capacity, of photos."""
    kinds, even = (0, len(photos)), [edit.weight for edit in photos]
    return [
        Load(f"{PHOTOS}-eight", "Photos of strangers: eight at once", kinds, lambda seed: at_once(even, _FEW, seed)),
        *(
            Load(
                name=f"{PHOTOS}-{share}",
                title=f"Photos of strangers at {share} % of what the stock pipeline can serve",
                kinds=kinds,
                trace=strangers(lock_per_s * share / 100, even, seconds),
            )
            for share in _SHARES
        ),
        Load(PHOTOS, f"Photos of strangers: {burst} at once", kinds, lambda seed: at_once(even, burst, seed)),
    ]


def strangers(rate_per_s: float, weights: Sequence[float], seconds: float) -> Callable[[int], Trace]:
    """Return a Poisson trace for each round, seeded with the round's number."""
    count = max(_FEWEST, round(rate_per_s * seconds))
    return lambda seed: poisson(rate_per_s, weights, count, seed)
