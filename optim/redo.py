"""ReDo and ReGraMa: reset units with small activations, or with small gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neoteny.optim.layers import Layer
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Seen, check_fields
from neoteny.optim.unit_resets import UnitMethod, others


def dormant(sizes: Tensor, tau: float) -> Tensor:
    """Which units (units,) have a size of at most tau times their layer's mean."""
    return sizes <= tau * sizes.mean()


class SmallUnits(UnitMethod):
    """Base class of methods that reset units of a size of at most tau times their layer's mean."""

    resets = True

    def __init__(self, learner: Learner, every: int, tau: float, on: str = "all") -> None:
        super().__init__(learner, every, on)
        self.tau = tau


class ReDo(SmallUnits):
    """Resets dormant units: those whose mean |activation| is at most tau times the mean of their layer.

    G. Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", ICML 2023, definition 3.1
    and algorithm 1. The activations are those of the latest minibatch.
    """

    def on(self, event: Event) -> dict[str, float]:
        """Reset dormant units."""
        seen = Seen()
        seen.watch(layers := self.layers())
        with torch.enable_grad():  # which is when activations are recorded
            self.learner.network.forward(event.batch.observations)
        seen.watch(())
        sizes = {layer.name: seen.activations[layer.name].float().abs().mean((0, 2)) for layer in layers}
        return self.reset({name: dormant(size, self.tau) for name, size in sizes.items()})


@dataclass(frozen=True)
class ReDoConfig(MethodConfig):
    """Reset units that are dormant."""

    name: ClassVar[str] = "redo"
    conflicts: ClassVar[tuple[str, ...]] = others("redo")

    every: int = 1_000
    """Gradient steps between two resets."""
    tau: float = 0.1
    """Share of its layer's mean up to which the mean |activation| of a unit is dormant."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("every",), at_least=1)
        check_fields(self, ("tau",), at_least=0)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return ReDo(learner, self.every, self.tau, self.on)


class ReGraMa(SmallUnits):
    """Resets units whose mean |gradient| is at most tau times the mean of their layer.

    J. Liu et al., "Measure gradients, not activations! Enhancing neuronal activity in deep reinforcement
    learning", 2025. The gradient is the loss's with respect to the unit's activation, on the latest
    minibatch; penalties are not in it.
    """

    def new_state(self, layer: Layer) -> dict[str, Tensor]:
        """The mean |gradient| of each unit."""
        return {"gradients": layer.module.weight.new_zeros(layer.units)}

    def watches(self) -> list[Layer]:
        """All layers that it acts on."""
        return self.layers()

    def after_step(self, seen: Seen) -> None:
        """Note the gradients."""
        for name, state in self.state.items():
            state["gradients"].copy_(seen.gradients[name].float().abs().mean((0, 2)))

    def on(self, event: Event) -> dict[str, float]:
        """Reset units with small gradients."""
        return self.reset({name: dormant(state["gradients"], self.tau) for name, state in self.state.items()})


@dataclass(frozen=True)
class ReGraMaConfig(MethodConfig):
    """Reset units that get hardly any gradient."""

    name: ClassVar[str] = "regrama"
    conflicts: ClassVar[tuple[str, ...]] = others("regrama")

    every: int = 1_000
    """Gradient steps between two resets."""
    tau: float = 0.01
    """Share of its layer's mean up to which the mean |gradient| of a unit is inactive."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("every",), at_least=1)
        check_fields(self, ("tau",), at_least=0)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return ReGraMa(learner, self.every, self.tau, self.on)
