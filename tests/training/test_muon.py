"""The optimiser: orthogonal steps, and which parameters take them."""

import pytest
import torch
from torch import nn

from training.muon import Muon, optimisers, orthogonal


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 6, 40), (2, 40, 6)])
def test_directions_are_nearly_orthogonal(shape):
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.4
    assert values.max() < 1.3


def test_a_step_has_the_size_of_one_of_adamw():
    weight = nn.Parameter(torch.zeros(32, 4, 3, 3))
    weight.grad = torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.01).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.2)
    assert (weight * weight.grad).sum() < 0


def test_it_finds_a_matrix_and_goes_on_from_its_state():
    def fit(stops):
        torch.manual_seed(0)
        model, goal = nn.Linear(8, 8), torch.randn(8, 8)
        steppers = optimisers([model], 0.05)
        for step in range(200):
            if step in stops:
                states = [stepper.state_dict() for stepper in steppers]
                steppers = optimisers([model], 0.05)
                for stepper, state in zip(steppers, states, strict=True):
                    stepper.load_state_dict(state)
            loss = (model.weight - goal).square().mean() + model.bias.square().mean()
            model.zero_grad()
            loss.backward()
            for stepper in steppers:
                stepper.step()
        return loss.item()

    assert fit(()) < 0.05
    assert fit((50, 120)) == fit(())


def test_matrices_are_stepped_by_muon_and_everything_else_by_adamw():
    model = nn.ModuleDict({
        "inside": nn.Linear(8, 8),
        "conv": nn.Conv3d(4, 8, 3),
        "embedding": nn.Embedding(8, 8),
        "img_mod": nn.Linear(8, 48),
        "narrow": nn.Linear(8, 3),
    })  # fmt: skip
    muon, adam = ({id(p) for group in each.param_groups for p in group["params"]} for each in optimisers([model], 0.1))
    assert muon == {id(model["inside"].weight), id(model["conv"].weight)}
    assert muon | adam == {id(p) for p in model.parameters()}
