"""Self-normalized resets: reset units that are silent for longer than is usual for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neoteny.optim.layers import Layer
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Seen, check_fields
from neoteny.optim.unit_resets import UnitMethod, others


class SelfNormalizedResets(UnitMethod):
    r"""Resets units that are silent for longer than is usual for them.

    V. F. Farias, A. D. Jozefiak, "Self-Normalized Resets for Plasticity in Continual Learning", ICLR 2025: a
    unit that was silent for the last a gradient steps is reset if the share of its past intervals between
    firings that were longer than a is at most :math:`\eta`. It fires if it is not 0 on some sample of the
    minibatch; so only units that can be 0, as those of ReLU, are ever reset.

    Intervals are counted in gradient steps, and those of `longest` steps or more as one. Units that were
    silent for as long are always reset, which catches those that never fire. The paper leaves open how many
    intervals suffice: here at least 1 / eta, below which their number cannot show so small a share. A reset
    unit's intervals are forgotten. The authors' code instead moves a threshold up and down at intervals.
    """

    resets = True

    def __init__(self, learner: Learner, every: int, eta: float, longest: int, on: str = "all") -> None:
        self.eta, self.longest = eta, longest
        super().__init__(learner, every, on)

    def new_state(self, layer: Layer) -> dict[str, Tensor]:
        """For each unit the steps since it fired, and how often each interval occurred."""
        integers = layer.module.weight.new_zeros(layer.units, self.longest + 1, dtype=torch.int64)
        return {"silent": torch.zeros_like(integers[:, 0]), "intervals": integers}

    def watches(self) -> list[Layer]:
        """All layers that it acts on."""
        return self.layers()

    def after_step(self, seen: Seen) -> None:
        """Count."""
        for name, state in self.state.items():
            fires = seen.activations[name].ne(0).any(2).any(0)
            silent, intervals = state["silent"], state["intervals"]
            silent.add_(1).clamp_(max=self.longest)
            intervals.scatter_add_(1, silent[:, None], fires[:, None].to(intervals.dtype))
            silent.mul_(~fires)

    def on(self, event: Event) -> dict[str, float]:
        """Reset units that are silent for too long."""
        return self.reset({name: self._is_lost(**state) for name, state in self.state.items()})

    def _is_lost(self, silent: Tensor, intervals: Tensor) -> Tensor:
        """Which units (units,) to reset."""
        total = intervals.sum(1)
        longer = intervals.flip(1).cumsum(1).flip(1).gather(1, (silent + 1).clamp(max=self.longest)[:, None])
        unusual = (longer.squeeze(1) <= self.eta * total) & (total * self.eta >= 1)
        return (silent > 0) & unusual | (silent >= self.longest)


@dataclass(frozen=True)
class SelfNormalizedResetsConfig(MethodConfig):
    """Reset units that are silent for longer than is usual for them."""

    name: ClassVar[str] = "snr"
    stackable: ClassVar[bool] = False
    conflicts: ClassVar[tuple[str, ...]] = others("snr")

    every: int = 100
    """Gradient steps between two times at which units may be reset."""
    eta: float = 0.02
    """Share of a unit's intervals between firings that may be longer than its silence when it is reset."""
    longest: int = 1_000
    """Gradient steps of silence after which a unit is always reset."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("every",), at_least=1)
        check_fields(self, ("longest",), at_least=1, at_most=10_000)  # each unit has a count for each length
        check_fields(self, ("eta",), above=0, at_most=1)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return SelfNormalizedResets(learner, self.every, self.eta, self.longest, self.on)
