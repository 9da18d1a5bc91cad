"""TRAC: Adam whose distance from the initial weights is tuned online, without a hyper-parameter."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from neoteny.optim.adam import Moments, one_group
from neoteny.optim.layers import Exclude
from neoteny.optim.optimizer import (
    Batch,
    CheckedOptimizer,
    adam_state,
    adam_step,
    check_moments,
    check_not_negative,
)

DECAYS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
"""Decay rates of the tuners, as in the paper."""

SCALE = 1e-8
"""Scale of each tuner, and what is added to its denominator, as in the paper."""

LARGEST = 9.0
"""Bound of erfi's argument: erfi(9) is 1e34, which float32 still holds."""


class TRAC(CheckedOptimizer):
    r"""Adam, with a scale of the distance from reference weights that is learned online.

    .. math::
        \begin{aligned}
            \Delta_t &= \Delta_{t-1} + u_t, \qquad
            h_t = \langle \Delta_{t-1}, g_t \rangle                                             \\
            v_{j,t} &= \beta_j^2 v_{j,t-1} + h_t^2, \qquad
            \sigma_{j,t} = \beta_j \sigma_{j,t-1} - h_t                                         \\
            s_{j,t} &= \frac{\epsilon}{\mathrm{erfi}(1 / \sqrt 2)} \;
                \mathrm{erfi}\Big(\frac{\sigma_{j,t}}{\sqrt{2 v_{j,t}} + \epsilon}\Big), \qquad
            \theta_t = \theta_\mathrm{ref} + \max(0, \textstyle\sum_j s_{j,t}) \, \Delta_t
        \end{aligned}

    A. Muppidi, Z. Zhang, H. Yang, "Fast TRAC: A Parameter-Free Optimizer for Lifelong Reinforcement
    Learning", NeurIPS 2024. u is the step of Adam; the six :math:`\beta_j` are .9 to .999999. The weights
    hardly move until the scales, which begin at 1e-8, have grown.

    Differences to the authors' package: :math:`\Delta` is kept, where the package divides
    :math:`\theta - \theta_\mathrm{ref}` by the sum of scales plus 1e-8. That rounds to 0 in float32 for
    weights that are not near 0 as long as the sum is small, and is 0 for good once the sum is negative.
    Weights that something else changed, such as a reset, change :math:`\theta_\mathrm{ref}` by as much. The
    package's erfi is 1 % too low for small arguments; the argument is at most 9 in size here, where the
    package stops with an error once erfi overflows.

    Args:
        params: parameters, named parameters or groups of either.
        lr: learning rate of Adam.
        betas: Adam's decay rates.
        eps: added to Adam's denominator.

    Raises:
        ValueError: for an option out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "fused": True})

    def _accept(self, group: dict[str, Any]) -> None:
        check_not_negative(group, "lr")
        check_moments(group)

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        # Decay rates, sigma and v of the tuners, which are the same for all parameters.
        tuners = torch.tensor([DECAYS, [SCALE] * len(DECAYS), [0.0] * len(DECAYS)], device=param.device)
        scale = torch.zeros((), device=param.device)
        distance = torch.zeros_like(param, memory_format=torch.preserve_format)
        reference = param.detach().clone(memory_format=torch.preserve_format)
        own = {"reference": reference, "distance": distance, "tuners": tuners, "scale": scale}
        return {**adam_state(param, group), **own}

    def _step(self, batches: list[Batch]) -> None:
        params = [param for batch in batches for param in batch.params]
        grads = [grad for batch in batches for grad in batch.grads]
        states = [state for batch in batches for state in batch.states]
        for param, state in zip(params, states):
            # Nothing, unless something else changed the weight since the last step.
            state["reference"].add_(param - _weight(state))
        products = [(state["distance"] * grad).sum() for state, grad in zip(states, grads)]
        _tune(states, torch.stack(products).sum())
        for batch in batches:
            distances = [state["distance"] for state in batch.states]
            adam_step(batch.group, distances, batch.grads, batch.states)
        for param, state in zip(params, states):
            param.copy_(_weight(state))


def _weight(state: dict[str, Tensor]) -> Tensor:
    """The weight that a state stands for."""
    return torch.addcmul(state["reference"], state["distance"], state["scale"])


def _tune(states: list[dict[str, Tensor]], product: Tensor) -> None:
    """Update the tuners by h, (), and the sum of their scales."""
    tuners = states[0]["tuners"]
    decays, sigmas, variances = tuners
    sigmas.mul_(decays).sub_(product)
    variances.mul_(decays.square()).add_(product.square())
    argument = (sigmas / (math.sqrt(2) * variances.sqrt() + SCALE)).clamp(-LARGEST, LARGEST)
    scale = (SCALE / UNIT * erfi(argument)).sum().clamp(min=0.0)
    for state in states:
        state["tuners"].copy_(tuners)
        state["scale"].copy_(scale)


def erfi(x: Tensor) -> Tensor:
    """The imaginary error function, -i erf(ix), of numbers (n,) from -9 to 9, to 14 digits in float64.

    G. B. Rybicki, "Dawson's integral and the sampling theorem", Computers in Physics 3 (1989), with steps of
    1/4: the sum over odd n of 4 / (pi n) exp(-n^2 / 16) sinh(n x / 2).
    """
    n = torch.arange(1, 63, 2, device=x.device, dtype=torch.float64)
    terms = torch.exp(-(n**2) / 16) * torch.sinh(n * x.double()[:, None] / 2) / n
    return (4 / math.pi * terms.sum(1)).to(x.dtype)


UNIT = erfi(torch.tensor([0.5], dtype=torch.float64).sqrt()).item()


@dataclass(frozen=True)
class TRACConfig(Moments):
    """TRAC: Adam with a scale of the distance from the initial weights that is learned online."""

    name: ClassVar[str] = "trac"

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are treated like the rest."""
        return TRAC(one_group(module, exclude), lr=lr, **vars(self))
