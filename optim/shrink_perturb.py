"""Shrink and perturb: in every gradient step, at intervals, or at task switches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from neoteny.optim.checks import in_both
from neoteny.optim.layers import Network
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Seen, check_fields
from neoteny.optim.resets import STRUCTURE


def parameters_of(network: nn.Module, part: str) -> list[Tensor]:
    """The parameters of a part of an agent's network, or of all of it."""
    return list((network if part == "all" else cast(Network, network).parts()[part]).parameters())


class NoisyShrinking(Method):
    r"""Shrink and perturb in every gradient step: :math:`w = (1 - \eta \lambda) w + \eta \sigma \epsilon`.

    After J. T. Ash, R. P. Adams, "On Warm-Starting Neural Network Training", NeurIPS 2020, in the form of
    S. Dohare et al., "Loss of plasticity in deep continual learning", 2024, and of M. Elsayed et al., "Weight
    Clipping for Deep Continual and Reinforcement Learning", 2024: :math:`\eta` is the learning rate and
    :math:`\epsilon` standard normal. All trainable parameters are meant, biases as well; raw weights of
    orthogonal layers are perturbed, but shrinking does not act on them. Moments stay.

    These papers' code couples the decay with the gradient; here it is decoupled, as in AdamW, so that it is
    the same for all optimizers.
    """

    def __init__(self, learner: Learner, decay: float, sigma: float, on: str = "all") -> None:
        self.learner, self.decay, self.sigma, self.part = learner, decay, sigma, on

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Shrink and perturb."""
        chosen = set(parameters_of(self.learner.network, self.part))
        for group in self.learner.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in chosen:
                    parameter.mul_(1 - group["lr"] * self.decay)
                    parameter.add_(torch.randn_like(parameter) * (group["lr"] * self.sigma))


class Mixing(Method):
    """Shrink and perturb at events: w = keep w + add w_new, with the weights of a new network.

    Moments stay. The target network is moved in the same way.

    Args:
        learner: The network to act on.
        keep: The factor of the weights.
        add: The factor of new weights.
        biases: Whether biases, and all else that is no matrix, are moved too.
        every: Gradient steps between two events; 0 for none.
        at_switch: Whether task switches are events.
        on: The part of the network.
    """

    def __init__(
        self,
        learner: Learner,
        keep: float,
        add: float,
        biases: bool,
        every: int = 0,
        at_switch: bool = False,
        on: str = "all",
    ) -> None:
        self.learner, self.keep, self.add, self.biases, self.part = learner, keep, add, biases, on
        self.every, self.at_switch = every, at_switch

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """Shrink and perturb."""
        fresh = parameters_of(self.learner.new_network(), self.part)
        for parameter, new in zip(parameters_of(self.learner.network, self.part), fresh, strict=True):
            if self.biases or parameter.ndim > 1:
                for tensor in in_both(self.learner, parameter):
                    tensor.mul_(self.keep).add_(new, alpha=self.add)
        return {}


@dataclass(frozen=True)
class ShrinkPerturbConfig(MethodConfig):
    """Shrink all weights and add noise to them, after each gradient step."""

    name: ClassVar[str] = "shrink_perturb"
    conflicts: ClassVar[tuple[str, ...]] = ("shrink_perturb_every", "shrink_perturb_at_switch")

    decay: float = 1e-3
    """A step shrinks all weights, biases included, by the learning rate times this."""
    sigma: float = 1e-2
    """Standard deviation of the noise, which is multiplied by the learning rate."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("decay", "sigma"), at_least=0)
        if self.decay == 0 == self.sigma:
            raise ValueError("shrink_perturb does nothing with decay 0 and sigma 0")

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return NoisyShrinking(learner, self.decay, self.sigma, self.on)


@dataclass(frozen=True)
class ShrinkPerturbEveryConfig(MethodConfig):
    """Shrink the weights, biases excluded, and add a little of new ones, at intervals."""

    name: ClassVar[str] = "shrink_perturb_every"
    conflicts: ClassVar[tuple[str, ...]] = ("shrink_perturb_at_switch", *STRUCTURE)

    every: int = 1_000
    """Gradient steps between two times."""
    shrink: float = 0.8
    """Factor of the weights."""
    perturb: float = 0.01
    """Factor of the new weights that are added."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("every",), at_least=1)
        check_fields(self, ("shrink", "perturb"), at_least=0, at_most=1)
        if (self.shrink, self.perturb) == (1, 0):
            raise ValueError("shrink_perturb_every does nothing with shrink 1 and perturb 0")

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return Mixing(learner, self.shrink, self.perturb, biases=False, every=self.every, on=self.on)


@dataclass(frozen=True)
class ShrinkPerturbAtSwitchConfig(MethodConfig):
    """Move all weights, biases included, towards new ones at task switches, which this tells the agent."""

    name: ClassVar[str] = "shrink_perturb_at_switch"
    conflicts: ClassVar[tuple[str, ...]] = STRUCTURE

    share: float = 0.2
    """How far weights move towards new ones; 1 resets all."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("share",), above=0, at_most=1)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return Mixing(learner, 1 - self.share, self.share, biases=True, at_switch=True, on=self.on)
