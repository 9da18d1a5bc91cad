"""Hare and tortoise: a slow copy of the weights, which the network returns to at intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Seen, check_fields
from neoteny.optim.resets import STRUCTURE
from neoteny.optim.shrink_perturb import parameters_of


class HareAndTortoise(Method):
    """Keeps a slow copy of the weights, the tortoise, to which the network, the hare, returns at intervals.

    H. Lee et al., "Slow and Steady Wins the Race: Maintaining Plasticity with Hare and Tortoise Networks",
    ICML 2024. The copy is a running mean. The paper acts and evaluates with the copy; here that is left to
    the network, which is the same after each return. Moments and the target network stay.
    """

    def __init__(self, learner: Learner, every: int, decay: float, on: str = "all") -> None:
        self.learner, self.every, self.decay, self.part = learner, every, decay, on
        self.slow = [parameter.detach().clone() for parameter in self._parameters()]

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Let the copy follow."""
        torch._foreach_lerp_(self.slow, self._parameters(), 1 - self.decay)

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """Return to the copy."""
        torch._foreach_copy_(self._parameters(), self.slow)
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The copy."""
        return {"slow": self.slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        for tensor, saved in zip(self.slow, state["slow"], strict=True):
            tensor.copy_(saved)

    def _parameters(self) -> list[Tensor]:
        return parameters_of(self.learner.network, self.part)


@dataclass(frozen=True)
class HareTortoiseConfig(MethodConfig):
    """Return to a slow copy of the weights at intervals."""

    name: ClassVar[str] = "hare_tortoise"
    conflicts: ClassVar[tuple[str, ...]] = STRUCTURE

    every: int = 10_000
    """Gradient steps between two returns."""
    decay: float = 0.999
    """Decay rate of the copy, a running mean, per gradient step."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("every",), at_least=1)
        check_fields(self, ("decay",), at_least=0, at_most=1)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return HareAndTortoise(learner, self.every, self.decay, self.on)
