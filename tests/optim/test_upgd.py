"""UPGD by hand."""

import math

import pytest
import torch
from torch import nn

from neoteny.optim import UPGD


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def params(*values: list[float]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in values]


@pytest.mark.parametrize("adaptive", [False, True])
def test_two_steps_by_hand(adaptive: bool) -> None:
    weights = params([1.0, -2.0], [0.5])
    flags = {"beta_utility": 0.75, "sigma": 0.0, "weight_decay": 0.1, "adaptive": adaptive}
    optimizer = UPGD(weights, lr=0.1, betas=(0.75, 0.8), eps=1e-3, **flags)
    values, utilities = [1.0, -2.0, 0.5], [0.0] * 3
    first, second = [0.0] * 3, [0.0] * 3
    for step, gradients in enumerate([[0.5, 1.0, -1.0], [-1.0, 0.25, 2.0]], start=1):
        weights[0].grad = torch.tensor(gradients[:2], dtype=torch.float64)
        weights[1].grad = torch.tensor(gradients[2:], dtype=torch.float64)
        optimizer.step()
        utilities = [0.75 * u - 0.25 * g * w for u, g, w in zip(utilities, gradients, values)]
        first = [0.75 * m + 0.25 * g for m, g in zip(first, gradients)]
        second = [0.8 * v + 0.2 * g * g for v, g in zip(second, gradients)]
        for i, gradient in enumerate(gradients):
            mean, square = first[i] / (1 - 0.75**step), second[i] / (1 - 0.8**step)
            direction = mean / (math.sqrt(square) + 1e-3) if adaptive else gradient
            share = 1 - sigmoid(utilities[i] / max(utilities))
            values[i] = (1 - 0.1 * 0.1) * values[i] - 0.1 * direction * share
        assert [*weights[0].tolist(), *weights[1].tolist()] == pytest.approx(values)
    assert max(utilities) > 0


def test_without_a_useful_weight_all_are_stepped_in_full() -> None:
    (weight,) = params([1.0, -2.0])
    weight.grad = torch.tensor([1.0, -3.0], dtype=torch.float64)
    UPGD([weight], lr=0.1, sigma=0.0, weight_decay=0.0, adaptive=False).step()
    assert weight.tolist() == pytest.approx([0.9, -1.7])


def test_the_most_useful_weight_is_spared_most() -> None:
    (weight,) = params([10.0, -0.1])  # of utility 10 and -0.1
    weight.grad = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    UPGD([weight], lr=0.1, sigma=0.0, weight_decay=0.0, adaptive=False).step()
    spared, stepped = (weight.detach() - torch.tensor([10.0, -0.1])).tolist()
    assert spared == pytest.approx(0.1 * (1 - sigmoid(1.0)))
    assert stepped == pytest.approx(0.1 * (1 - sigmoid(-0.01)))


@pytest.mark.parametrize("adaptive", [False, True])
def test_noise_is_that_of_sigma(adaptive: bool) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(100, 100))
    weight.grad = torch.zeros(100, 100)
    UPGD([weight], lr=0.1, sigma=0.5, weight_decay=0.0, adaptive=adaptive).step()
    moved = weight.detach() - 1
    # Without a gradient utilities are 0, and half of the noise remains.
    assert moved.std().item() == pytest.approx(0.1 * 0.5 / 2, rel=0.05)
    assert abs(moved.mean().item()) < 1e-3
