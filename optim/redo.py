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

    def sizes(self, event: Event) -> dict[str, Tensor]:
        """The sizes of each layer's units, (units,), by the layer's name."""
        raise NotImplementedError

    def on(self, event: Event) -> dict[str, float]:
        """Reset small units."""
        return self.reset({name: dormant(sizes, self.tau) for name, sizes in self.sizes(event).items()})


class ReDo(SmallUnits):
    """Resets dormant units: those whose mean |activation| is at most tau times the mean of their layer.

    G. Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", ICML 2023, definition 3.1
    and algorithm 1. The activations are those of the latest minibatch.
    """

    def sizes(self, event: Event) -> dict[str, Tensor]:
        """The mean |activation| of each unit."""
        seen = Seen()
        seen.watch(layers := self.layers())
        with torch.enable_grad():  # which is when activations are recorded
            self.learner.network.forward(event.batch.observations)
        seen.watch(())
        return {layer.name: seen.activations[layer.name].float().abs().mean((0, 2)) for layer in layers}


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
    """Resets units that hardly learn: their mean |gradient| is at most tau times the mean of their layer.

    J. Liu et al., "Measure gradients, not activations! Enhancing neuronal activity in deep reinforcement
    learning", 2025. As in the authors' code, the gradient of a unit is that of its incoming weights in the
    latest gradient step. (That of its activation would not be small for a unit of ReLU that is always 0, as
    long as later layers have weights for it.) It is the gradient that enters the optimizer: clipped, which
    changes no share of a mean, and with penalties.

    Differences to the authors' code: it leaves outgoing weights as they are, and draws new biases.
    """

    def new_state(self, layer: Layer) -> dict[str, Tensor]:
        """The mean |gradient| of each unit's incoming weights."""
        return {"gradients": layer.module.weight.new_ones(layer.units)}

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Note the gradients."""
        for layer in self.layers():
            if (gradient := layer.module.weight.grad) is not None:
                self.state[layer.name]["gradients"].copy_(gradient.abs().flatten(1).mean(1))

    def sizes(self, event: Event) -> dict[str, Tensor]:
        """The mean |gradient| of each unit's incoming weights."""
        return {name: state["gradients"] for name, state in self.state.items()}


@dataclass(frozen=True)
class ReGraMaConfig(MethodConfig):
    """Reset units whose incoming weights get hardly any gradient."""

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
