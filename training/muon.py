"""Muon: an optimiser with momentum that makes the update of every matrix orthogonal.

Muon trains these small networks several times faster than AdamW. torch.optim.Muon (torch 2.15) takes two-dimensional
parameters only, no convolutions, and computes in bfloat16, which a CPU without such instructions emulates: 23 times
slower than this.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

_MOMENTUM = 0.95
_WEIGHT_DECAY = 0.01
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# A matrix with a smaller side has nothing to make orthogonal.
_LEAST_SIDE = 4


class Muon(torch.optim.Optimizer):
    """K. Jordan's Muon (2024) with the scale of J. Liu et al., arXiv 2502.16982: steps of AdamW's size.

    Parameters of two and more dimensions; a convolution's kernel counts as outputs × (inputs × taps).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step from the gradients. Raises ValueError for a `closure`."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            for alike in self._by_shape(group["params"]).values():
                directions = orthogonal(torch.stack([self._momentum(parameter) for parameter in alike]))
                for parameter, direction in zip(alike, directions, strict=True):
                    scale = 0.2 * max(direction.shape) ** 0.5
                    parameter.mul_(1 - group["lr"] * _WEIGHT_DECAY)
                    parameter.add_(direction.reshape(parameter.shape), alpha=-group["lr"] * scale)

    def _by_shape(self, parameters: list[nn.Parameter]) -> dict[torch.Size, list[nn.Parameter]]:
        """Group parameters by shape, since many small products are slower than a few large ones."""
        groups = defaultdict(list)
        for parameter in parameters:
            if parameter.grad is not None:
                groups[parameter.flatten(1).shape].append(parameter)
        return groups

    def _momentum(self, parameter: nn.Parameter) -> torch.Tensor:
        """Update and return Nesterov's momentum, outputs × inputs."""
        gradient: Any = parameter.grad
        state = self.state[parameter]
        average = state.setdefault("average", torch.zeros_like(gradient)).lerp_(gradient, 1 - _MOMENTUM)
        ahead: torch.Tensor = gradient.lerp(average, _MOMENTUM).flatten(1)
        return ahead


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return roughly the nearest matrices with orthogonal rows or columns: singular values of 0.7 to 1.2.

    `matrices`: count × rows × columns. Newton and Schulz's iteration, with the coefficients of Jordan's Muon.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.mT if tall else x
    return result


def optimisers(models: Iterable[nn.Module], lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the inner matrices and AdamW for embeddings, modulations, norms, biases and narrow ends."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for model in models:
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        for name, parameter in model.named_parameters():
            is_matrix = parameter.ndim > 1 and min(parameter.flatten(1).shape) >= _LEAST_SIDE
            # A modulation multiplies one vector, the time: a product too cheap for so costly a step.
            if is_matrix and id(parameter) not in embeddings and "_mod." not in name:
                matrices.append(parameter)
            else:
                others.append(parameter)
    return [Muon(matrices, lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)]
