"""UPGD: gradient descent that spares useful weights and perturbs useless ones."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from neoteny.optim.adam import Moments, one_group
from neoteny.optim.layers import Exclude
from neoteny.optim.optimizer import Batch, CheckedOptimizer, adam_state, check_moments, check_not_negative


class UPGD(CheckedOptimizer):
    r"""Utility-based perturbed gradient descent: weight-wise, with global utilities, alone or with Adam.

    .. math::
        \begin{aligned}
            U_t &= \beta_u U_{t-1} - (1 - \beta_u) \, g_t \theta_{t-1}, \qquad
            s_t  = \mathrm{sigmoid}(U_t / \max U_t)                                            \\
            \theta_t &= (1 - \gamma w) \, \theta_{t-1} - \gamma \, (d_t + \xi) (1 - s_t), \qquad
            \xi \sim N(0, \sigma^2)
        \end{aligned}

    M. Elsayed, A. R. Mahmood, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual
    Learning", ICLR 2024. The direction d is the gradient g, or Adam's if `adaptive`, the form that the
    authors use in reinforcement learning. The maximum is over all parameters. A weight whose utility is 0 is
    stepped half as far as by the direction alone.

    Differences to the authors' code: it has :math:`2 \gamma` in place of :math:`\gamma` in reinforcement
    learning. It corrects the bias of U and not that of its maximum, so that at first s is near 1 for weights
    of positive utility and near 0 for the others; here both are corrected, which cancels. Where no utility is
    positive, the sign of its quotient is reversed; here all weights are then stepped in full.

    Args:
        params: parameters, named parameters or groups of either.
        lr: learning rate, :math:`\gamma`.
        betas: Adam's decay rates.
        eps: added to Adam's denominator.
        beta_utility: decay rate of the running average of utilities.
        sigma: standard deviation of the noise, before the learning rate.
        weight_decay: w: a step shrinks parameters by lr * weight_decay.
        adaptive: take Adam's direction instead of the gradient.

    Raises:
        ValueError: for an option out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        beta_utility: float = 0.999,
        sigma: float = 1e-3,
        weight_decay: float = 1e-3,
        adaptive: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "beta_utility": beta_utility,
            "sigma": sigma,
            "weight_decay": weight_decay,
            "adaptive": adaptive,
            "fused": True,  # step counters are on the device
        }
        super().__init__(params, defaults)

    def _accept(self, group: dict[str, Any]) -> None:
        check_options(group)

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        utility = {"utility": torch.zeros_like(param, memory_format=torch.preserve_format)}
        return utility | (adam_state(param, group) if group["adaptive"] else {})

    def _step(self, batches: list[Batch]) -> None:
        batches = [batch for batch in batches if batch.params]
        for group, params, grads, states in batches:
            rest = 1 - group["beta_utility"]
            utilities = [state["utility"] for state in states]
            torch._foreach_mul_(utilities, group["beta_utility"])
            torch._foreach_addcmul_(utilities, grads, params, value=-rest)
        utilities = [state["utility"] for batch in batches for state in batch.states]
        largest = torch.stack([utility.amax() for utility in utilities]).amax()
        largest = largest.clamp(min=torch.finfo(largest.dtype).tiny)
        for group, params, grads, states in batches:
            directions = _adam_directions(group, grads, states) if group["adaptive"] else grads
            for param, direction, state in zip(params, directions, states):
                share = torch.sigmoid(-state["utility"] / largest)  # 1 - s
                noisy = torch.randn_like(param).mul_(group["sigma"]).add_(direction)
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.sub_(noisy.mul_(share).mul_(group["lr"]))


def _adam_directions(
    group: dict[str, Any], grads: list[Tensor], states: list[dict[str, Tensor]]
) -> list[Tensor]:
    """Adam's directions, after an update of its moments."""
    beta1, beta2 = group["betas"]
    steps, first, second = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))
    torch._foreach_add_(steps, 1.0)
    torch._foreach_lerp_(first, grads, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
    directions = []
    for step, mean, square in zip(steps, first, second):
        step = step.double()  # 1 - .999 has four digits in float32
        root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        directions.append(mean / (1 - beta1**step) / root)
    return directions


def check_options(options: dict[str, Any]) -> None:
    """Raise ValueError for an option out of range, with its name."""
    check_moments(options)
    check_not_negative(options, "lr", "sigma", "weight_decay")
    if not 0.0 <= options["beta_utility"] < 1.0:
        raise ValueError(f"beta_utility must lie in [0, 1), got {options['beta_utility']}")


@dataclass(frozen=True)
class UPGDConfig(Moments):
    """UPGD: spare useful weights and perturb useless ones, with the directions of Adam or of the gradient."""

    name: ClassVar[str] = "upgd"

    beta_utility: float = 0.999
    """Decay rate of the running average of utilities."""
    sigma: float = 1e-3
    """Standard deviation of the noise, before the learning rate."""
    weight_decay: float = 1e-3
    """Decoupled weight decay: each step shrinks all parameters, biases included, by lr * weight_decay."""
    adaptive: bool = True
    """Take Adam's direction, as the authors do in reinforcement learning, instead of the gradient."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_options({"lr": 1.0, **vars(self)})

    def unused(self) -> dict[str, str]:
        """Flags that have no effect with the current values of the others: name -> reason."""
        return {} if self.adaptive else dict.fromkeys(("betas", "eps"), "with --optim.no-adaptive")

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are treated like the rest."""
        return UPGD(one_group(module, exclude), lr=lr, **vars(self))
