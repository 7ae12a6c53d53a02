"""The training loop of every stage: seeded batches from worker processes, optimisers, checkpoints, progress."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from training.muon import optimisers
from training.recipe import Run, Stage

T = TypeVar("T")

SAVE_EVERY_S = 120.0
_WARM_UP_STEPS = 50
_REPORT_EVERY = 20


class _Endless(IterableDataset[Any]):
    """Endless batches `make(seed)` from the seed `first` on; worker w of n takes every n-th seed."""

    def __init__(self, make: Callable[[int], Any], first: int) -> None:
        self._make = make
        self._first = first

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        seed, stride = (self._first + worker.id, worker.num_workers) if worker else (self._first, 1)
        while True:
            yield self._make(seed)
            seed += stride


def batches(make: Callable[[int], T], run: Run, step: int) -> Iterator[T]:
    """Return batches of consecutive seeds from the `step`-th on, made by worker processes; `make` must be picklable."""
    options: dict[str, Any] = {"prefetch_factor": 4} if run.workers else {}
    return iter(
        DataLoader(_Endless(make, run.seed * 10**9 + step), batch_size=None, num_workers=run.workers, **options)
    )


def rate_at(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: a warm-up, then half a cosine down to a hundredth of `peak`."""
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def train(
    run: Run,
    name: str,
    models: dict[str, Any],
    stage: Stage,
    loss_of: Callable[[Any], torch.Tensor],
    batches_from: Callable[[int], Iterator[Any]],
) -> None:
    """Train `models` in place, from the checkpoint `<folder>/<name>-<side>.pt` if there is one.

    A run may be stopped at any time. `batches_from(step)` returns the batches from that step on.
    """
    name = f"{name}-{stage.side}"
    steppers = optimisers(models.values(), stage.rate)
    parameters = [p for stepper in steppers for group in stepper.param_groups for p in group["params"]]
    path = run.folder / f"{name}.pt"
    step, saved_s, average = _resume(path, models, steppers, run), time.monotonic(), 0.0
    data = batches_from(step)
    with tqdm(total=stage.steps, initial=step, desc=name, mininterval=5) as progress:
        while step < stage.steps:
            _set_rate(steppers, rate_at(step, stage.steps, stage.rate))
            loss = loss_of(next(data))
            for stepper in steppers:
                stepper.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for stepper in steppers:
                stepper.step()
            step += 1
            if step % _REPORT_EVERY == 0:
                # Seldom: on a GPU each read of a loss waits for the step to end.
                value = loss.item()
                average = 0.9 * (average or value) + 0.1 * value
                progress.set_postfix(loss=f"{average:.4f}")
            progress.update()
            if time.monotonic() - saved_s > SAVE_EVERY_S or step == stage.steps:
                _save(path, models, steppers, step)
                saved_s = time.monotonic()


def _set_rate(steppers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = rate


def _resume(path: Path, models: dict[str, Any], steppers: Sequence[torch.optim.Optimizer], run: Run) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=run.device, weights_only=True)
    for key, model in models.items():
        model.load_state_dict(state["models"][key])
    for stepper, values in zip(steppers, state["optimisers"], strict=True):
        stepper.load_state_dict(values)
    return int(state["step"])


def _save(path: Path, models: dict[str, Any], steppers: Sequence[torch.optim.Optimizer], step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "models": {key: model.state_dict() for key, model in models.items()},
        "optimisers": [stepper.state_dict() for stepper in steppers],
        "step": step,
    }
    # A run that is stopped during the write keeps the checkpoint before.
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
