"""TRAC by hand, its special function, and weights that something else changes."""

import math

import pytest
import torch
from torch import nn

from neoteny.optim import TRAC
from neoteny.optim.trac import DECAYS, UNIT, erfi


@pytest.mark.parametrize("x", [1e-9, 0.1, 1.0, 3.5, 9.0])
def test_the_imaginary_error_function(x: float) -> None:
    # By its definition: 2 / sqrt(pi) times the integral of exp(t^2) from 0 to x.
    t = torch.linspace(0.0, x, 200_001, dtype=torch.float64)
    integral = 2 / math.sqrt(math.pi) * torch.trapezoid((t * t).exp(), t).item()
    both = erfi(torch.tensor([x, -x], dtype=torch.float64)).tolist()
    assert both == pytest.approx([integral, -integral], rel=1e-6)


def test_steps_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, dtype=torch.float64, generator=generator)
    weight, adams = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer, adam = TRAC([weight], lr=0.1), torch.optim.Adam([adams], lr=0.1)
    sigmas, variances, scales = [1e-8] * 6, [0.0] * 6, []
    for _ in range(40):
        # Towards 3, so that steps agree and the scale grows.
        gradient = weight.detach() - 3.0 + torch.randn(4, dtype=torch.float64, generator=generator)
        weight.grad, adams.grad = gradient, gradient.clone()
        product = float((adams.detach() * gradient).sum())
        optimizer.step()
        adam.step()
        sigmas = [beta * sigma - product for beta, sigma in zip(DECAYS, sigmas)]
        variances = [beta**2 * v + product**2 for beta, v in zip(DECAYS, variances)]
        arguments = [s / (math.sqrt(2 * v) + 1e-8) for s, v in zip(sigmas, variances)]
        tuned = 1e-8 / UNIT * erfi(torch.tensor(arguments, dtype=torch.float64).clamp(-9, 9))
        scales.append(max(0.0, tuned.sum().item()))
        torch.testing.assert_close(weight.detach(), start + scales[-1] * adams.detach(), rtol=1e-4, atol=1e-9)
    assert scales[0] < 1e-6
    assert scales[-1] > 1e-3


def test_what_something_else_changed_stays_changed() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = TRAC([weight], lr=0.1)
    for _ in range(60):
        weight.grad = weight.detach() - torch.tensor([1.0, -1.0, 2.0])
        optimizer.step()
    with torch.no_grad():
        weight[1] = 7.0
    before = weight.detach().clone()
    weight.grad = torch.full((3,), 1e-3)
    optimizer.step()
    assert (weight.detach() - before).abs().max() < 0.5
    assert weight[1].item() == pytest.approx(7.0, abs=0.5)


def test_at_an_optimum_nothing_moves() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = TRAC([weight])
    for _ in range(5):
        weight.grad = torch.zeros(2)
        optimizer.step()
    assert weight.tolist() == [1.0, -2.0]
