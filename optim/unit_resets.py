"""Methods that reset single units: those that are dormant, silent or of little use.

All of them judge a unit by its activation as it enters the next layer, or by the gradient of that; a channel
of a convolution is one unit, whatever lies between it and the next layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from neoteny.optim.checks import in_both
from neoteny.optim.layers import Layer
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Seen, check_fields
from neoteny.optim.resets import new_tensors, reset_units, resettable

UNIT_RESETS = ("redo", "regrama", "snr", "continual_backprop", "cpr")
"""Methods of this module. A run has one at most, since each keeps its own account of the units."""


def _others(name: str) -> tuple[str, ...]:
    """All methods of this module but one."""
    return tuple(each for each in UNIT_RESETS if each != name)


class UnitMethod(Method):
    """Base class of the methods in this module: a state of each hidden layer's units, by the layer's name."""

    def __init__(self, learner: Learner, every: int, on: str) -> None:
        self.learner, self.every, self.part = learner, every, on
        self.state: dict[str, dict[str, Tensor]] = {}
        self.layers()

    def layers(self) -> list[Layer]:
        """The layers that it acts on; those that an event made get a state here."""
        layers = resettable(self.learner, self.part)
        if [layer.name for layer in layers] != list(self.state):
            self.state = {layer.name: self.state.get(layer.name) or self.new_state(layer) for layer in layers}
        return layers

    def new_state(self, layer: Layer) -> dict[str, Tensor]:
        """The state of a layer's units at the start, (units, ...) each; nothing by default."""
        return {}

    def reset(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """Reset units by masks (units,) of each layer, and clear their state; returns their numbers."""
        numbers = torch.stack([mask.sum() for mask in masks.values()]).tolist()
        if any(numbers):
            new = self.learner.new_network()
            for layer in self.layers():
                reset_units(self.learner, layer, masks[layer.name], new)
                for tensor in self.state[layer.name].values():
                    tensor[masks[layer.name]] = 0
        return {f"reset/{name}": float(number) for name, number in zip(masks, numbers)}

    def state_dict(self) -> dict[str, Any]:
        """The state of all units."""
        return {name: dict(state) for name, state in self.state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        device = next(self.learner.network.parameters()).device
        self.state = {
            name: {key: tensor.to(device, copy=True) for key, tensor in tensors.items()}
            for name, tensors in state.items()
        }


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
    conflicts: ClassVar[tuple[str, ...]] = _others("redo")

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
    conflicts: ClassVar[tuple[str, ...]] = _others("regrama")

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
    conflicts: ClassVar[tuple[str, ...]] = _others("snr")

    every: int = 100
    """Gradient steps between two times at which units may be reset."""
    eta: float = 0.02
    """Share of a unit's intervals between firings that may be longer than its silence when it is reset."""
    longest: int = 1_000
    """Gradient steps of silence after which a unit is always reset."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("every", "longest"), at_least=1)
        check_fields(self, ("eta",), above=0, at_most=1)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return SelfNormalizedResets(learner, self.every, self.eta, self.longest, self.on)


class ContinualBackprop(UnitMethod):
    r"""Replaces the least useful units, a few at a time.

    S. Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024. The utility of a unit
    is a running mean of :math:`\sum |w_{out}| \cdot E|h - \bar h| / \sum |w_{in}|`, where :math:`\bar h` is a
    running mean of its activation; both are bias-corrected as Adam's moments are. In each gradient step a
    share `rate` of the units that are old enough is due. Fractions add up, and whole units, the least useful,
    are replaced at every event. What a unit gave on average, its outgoing weight times :math:`\bar h`, is
    added to the next biases; positions of a flattened convolution have a mean each.

    The authors' code clears :math:`\bar h` before it is added to the biases, so that nothing is added.
    """

    resets = True

    def __init__(
        self, learner: Learner, every: int, rate: float, maturity: int, decay: float, on: str = "all"
    ) -> None:
        super().__init__(learner, every, on)
        self.rate, self.maturity, self.decay = rate, maturity, decay
        self.due: dict[str, float] = {}

    def new_state(self, layer: Layer) -> dict[str, Tensor]:
        """Of each unit the age in gradient steps, the utility, and the mean of each input that it feeds."""
        ages = layer.module.weight.new_zeros(layer.units)
        means = ages.new_zeros(layer.outgoing[0].columns.shape)
        return {"ages": ages, "utilities": torch.zeros_like(ages), "means": means}

    def watches(self) -> list[Layer]:
        """All layers that it acts on."""
        return self.layers()

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Count the step, and update the running means of activations and utilities."""
        for layer in self.layers():
            ages, utilities, means = self.state[layer.name].values()
            activations = seen.activations[layer.name].float().unflatten(2, (means.shape[1], -1))
            ages += 1
            means.lerp_(activations.mean((0, 3)), 1 - self.decay)
            centred = activations - self._corrected(means, ages[:, None])[:, :, None]
            outgoing = sum(
                later.module.weight.abs().transpose(0, 1).flatten(1).sum(1)[columns].sum(1)
                for later, columns in layer.outgoing
            )
            incoming = layer.module.weight.abs().flatten(1).sum(1).clamp(min=1e-12)
            utilities.lerp_(outgoing * centred.abs().mean((0, 2, 3)) / incoming, 1 - self.decay)

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """Replace the units that are due."""
        masks = {name: self._chosen(name) for name in self.state}
        for layer in self.layers():
            ages, _, means = self.state[layer.name].values()
            self._keep_means(layer, masks[layer.name], self._corrected(means, ages[:, None]))
        return self.reset(masks)

    def _chosen(self, name: str) -> Tensor:
        """The least useful of a layer's old units, as many as are due, (units,)."""
        ages, utilities, _ = self.state[name].values()
        eligible = (ages > self.maturity).nonzero().squeeze(1)
        self.due[name] = self.due.get(name, 0.0) + self.rate * self.every * len(eligible)
        number = min(int(self.due[name]), len(eligible))
        self.due[name] -= number
        order = self._corrected(utilities, ages)[eligible].argsort(stable=True)
        chosen = torch.zeros_like(ages, dtype=torch.bool)
        chosen[eligible[order[:number]]] = True
        return chosen

    def _keep_means(self, layer: Layer, mask: Tensor, means: Tensor) -> None:
        """Add to later biases what the units in a mask gave on average, in the target network as well."""
        for later, columns in layer.outgoing:
            if (bias := later.module.bias) is None:
                continue
            weights = in_both(self.learner, later.module.weight)
            for weight, sums in zip(weights, in_both(self.learner, bias), strict=True):
                of_units = weight[:, columns[mask]]  # (out, units, k, *kernel)
                of_units = of_units.flatten(3).sum(3) if weight.ndim > 2 else of_units
                sums += (of_units * means[mask]).sum((1, 2))

    def _corrected(self, running: Tensor, ages: Tensor) -> Tensor:
        """A running mean without the bias towards its start at 0; 0 at age 0."""
        return running / (1 - self.decay ** ages.clamp(min=1))

    def state_dict(self) -> dict[str, Any]:
        """The state of all units, and fractions of units that are due."""
        return {"units": super().state_dict(), "due": dict(self.due)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().load_state_dict(state["units"])
        self.due = dict(state["due"])


@dataclass(frozen=True)
class ContinualBackpropConfig(MethodConfig):
    """Replace the least useful units, a few at a time."""

    name: ClassVar[str] = "continual_backprop"
    conflicts: ClassVar[tuple[str, ...]] = _others("continual_backprop")

    rate: float = 1e-4
    """Share of the old units that is replaced, per gradient step."""
    maturity: int = 10_000
    """Gradient steps for which a unit is not replaced."""
    decay: float = 0.99
    """Decay rate of the running means, per gradient step."""
    every: int = 100
    """Gradient steps between two times at which units that are due are replaced."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("every",), at_least=1)
        check_fields(self, ("rate",), above=0, at_most=1)
        check_fields(self, ("maturity",), at_least=0)
        check_fields(self, ("decay",), at_least=0, at_most=1)
        if self.decay == 1:
            raise ValueError("decay of continual_backprop must be below 1, or nothing is averaged")

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return ContinualBackprop(learner, self.every, self.rate, self.maturity, self.decay, self.on)


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
    conflicts: ClassVar[tuple[str, ...]] = _others("cpr")

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
