"""Calibrated partial resets: move units towards new weights, the more the less they learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neoteny.optim.checks import in_both
from neoteny.optim.layers import Layer
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Seen, check_fields
from neoteny.optim.resets import new_tensors
from neoteny.optim.unit_resets import UnitMethod, others


class PartialResets(UnitMethod):
    r"""Calibrated partial resets: moves units towards new weights, the more the smaller their gradients are.

    L. McCutcheon et al.; the rule is that of the authors' code. The utility x of a unit is a running mean of
    the mean |gradient| of its incoming weights, relative to the mean of the layer. At every event incoming
    weights become :math:`(1 - r) w + r w_{new}` with :math:`r = rate \min(2 \sigma(-k (x - 1)), 1)`, outgoing
    weights shrink by 1 - r, and utilities start again at 1. Biases and moments stay. The target network is
    moved in the same way.

    The gradient is the one that enters the optimizer: clipped, which changes no x, and with penalties.
    """

    def __init__(
        self, learner: Learner, every: int, rate: float, sharpness: float, decay: float, on: str = "all"
    ) -> None:
        super().__init__(learner, every, on)
        self.rate, self.sharpness, self.decay = rate, sharpness, decay

    def new_state(self, layer: Layer) -> dict[str, Tensor]:
        """The utilities."""
        return {"utilities": layer.module.weight.new_ones(layer.units)}

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Update the utilities."""
        for layer in self.layers():
            if (gradient := layer.module.weight.grad) is not None:
                size = gradient.abs().flatten(1).mean(1)
                self.state[layer.name]["utilities"].lerp_(size / (size.mean() + 1e-8), 1 - self.decay)

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """Move weights towards new ones."""
        new, shares = self.learner.new_network(), {}
        for layer in self.layers():
            utilities = self.state[layer.name]["utilities"]
            share = self.rate * (2 * torch.sigmoid(-self.sharpness * (utilities - 1))).clamp(max=1)
            self._move(layer, share, new)
            utilities.fill_(1)
            shares[layer.name] = share.mean()
        means = torch.stack(list(shares.values())).tolist()
        return {f"share/{name}": mean for name, mean in zip(shares, means)}

    def _move(self, layer: Layer, share: Tensor, new: torch.nn.Module) -> None:
        """Move a layer's units by their shares (units,) towards new weights."""
        weight = layer.module.weight
        fresh = next(value for tensor, value in new_tensors(self.learner, layer, new) if tensor is weight)
        for each in in_both(self.learner, weight):
            each.lerp_(fresh, share.view(-1, *[1] * (weight.ndim - 1)))
        for later, columns in layer.outgoing:
            kept = torch.ones(later.module.weight.shape[1], device=share.device, dtype=share.dtype)
            kept[columns] = 1 - share[:, None]
            for each in in_both(self.learner, later.module.weight):
                each *= kept.view(1, -1, *[1] * (each.ndim - 2))


@dataclass(frozen=True)
class PartialResetsConfig(MethodConfig):
    """Move units towards new weights, the more the smaller their gradients are."""

    name: ClassVar[str] = "cpr"
    conflicts: ClassVar[tuple[str, ...]] = others("cpr")

    every: int = 1_000
    """Gradient steps between two partial resets."""
    rate: float = 0.015
    """How far a unit of no use moves towards its new weights, 0 to 1."""
    sharpness: float = 16.0
    """Slope of the sigmoid: how fast this falls for units with more than the mean gradient."""
    decay: float = 0.99
    """Decay rate of the running mean of gradients, per gradient step."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("every",), at_least=1)
        check_fields(self, ("rate",), above=0, at_most=1)
        check_fields(self, ("sharpness", "decay"), at_least=0)
        check_fields(self, ("decay",), at_most=1)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return PartialResets(learner, self.every, self.rate, self.sharpness, self.decay, self.on)
