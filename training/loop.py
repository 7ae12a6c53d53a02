"""The loop that every stage shares: seeded batches from worker processes, AdamW, checkpoints, progress."""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from training.recipe import Run

T = TypeVar("T")

SAVE_EVERY_S = 120.0
_WARM_UP_STEPS = 200
_REPORT_EVERY = 20


class _Endless(IterableDataset[Any]):
    """`make(seed)` for one seed after another; worker w of n takes every n-th. Seeds go on where a run stopped."""

    def __init__(self, make: Callable[[int], Any], first: int) -> None:
        self._make = make
        self._first = first

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        seed, stride = (self._first + worker.id, worker.num_workers) if worker else (self._first, 1)
        while True:
            yield self._make(seed)
            seed += stride


def batches(make: Callable[[int], T], run: Run, first: int) -> Iterator[T]:
    """Batches from consecutive seeds, made by worker processes; `make` must be picklable."""
    options: dict[str, Any] = {"prefetch_factor": 4} if run.workers else {}
    return iter(DataLoader(_Endless(make, first), batch_size=None, num_workers=run.workers, **options))


def rate_at(step: int, steps: int, peak: float) -> float:
    """Warm-up, then half a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def train(
    run: Run,
    name: str,
    models: dict[str, Any],
    loss_of: Callable[[Any], torch.Tensor],
    make: Callable[[int], Any],
    *,
    steps: int,
    rate: float,
) -> None:
    """Train `models` in place to `steps`, from `<folder>/<name>.pt` where that exists. May be stopped at any time."""
    parameters = [p for model in models.values() for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    path = run.folder / f"{name}.pt"
    step, saved_s, average = _resume(path, models, optimiser, run), time.monotonic(), 0.0
    data = batches(make, run, first=run.seed * 10**9 + step)
    with tqdm(total=steps, initial=step, desc=name, mininterval=5) as progress:
        while step < steps:
            for group in optimiser.param_groups:
                group["lr"] = rate_at(step, steps, rate)
            loss = loss_of(next(data))
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            step += 1
            if step % _REPORT_EVERY == 0:
                # One look: on a GPU each waits for the step to end.
                value = loss.item()
                average = 0.9 * (average or value) + 0.1 * value
                progress.set_postfix(loss=f"{average:.4f}")
            progress.update()
            if time.monotonic() - saved_s > SAVE_EVERY_S or step == steps:
                _save(path, models, optimiser, step)
                saved_s = time.monotonic()


def _resume(path: Path, models: dict[str, Any], optimiser: torch.optim.Optimizer, run: Run) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=run.device, weights_only=True)
    for key, model in models.items():
        model.load_state_dict(state["models"][key])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _save(path: Path, models: dict[str, Any], optimiser: torch.optim.Optimizer, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "models": {key: model.state_dict() for key, model in models.items()},
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    # Whoever stops the run while this is written keeps the checkpoint before.
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
