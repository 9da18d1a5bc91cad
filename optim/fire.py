"""FIRE: weights become isometric at task switches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neoteny.optim.checks import in_both
from neoteny.optim.layers import Layer
from neoteny.optim.methods import Event, Learner, Method, MethodConfig
from neoteny.optim.orthogonal import EXACT_ITERATIONS, orthogonal_factor
from neoteny.optim.resets import STRUCTURE, clear_state


class Fire(Method):
    r"""Makes all weights orthogonal at task switches: W = polar(W) :math:`\sqrt{out / in}`.

    I. Han et al., "FIRE: Frobenius-Isometry Reinitialization for Balancing the Stability-Plasticity
    Tradeoff", ICLR 2026: the nearest point, in Frobenius norm, at which the deviation from isometry is 0.
    polar(W) is the orthogonal factor of W. A convolution is treated per position of its kernel, (out, in)
    each, and divided by their number. Heads are included unless `heads` is False. Biases stay; moments and
    step counts of the weights are cleared. The target network gets the same weights.

    The method knows when the task changes. The authors' code takes 10 Newton-Schulz iterations, which leave
    small singular values too small; here the factor is exact, and a singular value of 0 stays 0.
    """

    resets = True
    at_switch = True

    def __init__(self, learner: Learner, heads: bool, on: str = "all") -> None:
        self.learner, self.heads, self.part = learner, heads, on
        if computed := [layer.name for layer in self._layers() if layer.weight is None]:
            raise ValueError(f"FIRE cannot set the weight of {computed[0]}, which is computed")

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """Make the weights orthogonal."""
        for layer in self._layers():
            weight = layer.module.weight
            value = isometric(weight)
            for each in in_both(self.learner, weight):
                each.copy_(value)
            clear_state(self.learner, weight)
        return {}

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.learner.layers(self.part) if self.heads or not layer.is_head]


def isometric(weight: Tensor) -> Tensor:
    """polar(W) sqrt(out / in) of a weight (out, in); of (out, in, *kernel), the same per tap, over taps."""
    taps = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]
    factors = [orthogonal_factor(tap, EXACT_ITERATIONS) for tap in taps.unbind(2)]
    scale = math.sqrt(weight.shape[0] / weight.shape[1]) / len(factors)
    return scale * torch.stack(factors, 2).view(weight.shape)


@dataclass(frozen=True)
class FireConfig(MethodConfig):
    """Make all weights orthogonal at task switches, which this tells the agent."""

    name: ClassVar[str] = "fire_at_switch"
    conflicts: ClassVar[tuple[str, ...]] = STRUCTURE

    heads: bool = True
    """Whether heads are included."""

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return Fire(learner, self.heads, self.on)
