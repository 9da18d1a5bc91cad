"""Five plasticity methods from the literature, each in one piece, without a line in any agent.

They try what the interface can do. What they share stands first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from neoteny.optim.layers import Layer, Network, describe_agent
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Seen


def watchable(learner: Learner, on: str) -> list[Layer]:
    """Hidden layers whose units can be reset, from the first to the last."""
    layers = [layer for layer in learner.layers(on, connected=True) if not layer.is_head]
    for layer in layers:
        touched = [layer, *(connection.layer for connection in layer.outgoing)]
        if computed := [each.name for each in touched if each.weight is None]:
            raise ValueError(f"units of {layer.name} cannot be reset: {computed[0]} has a computed weight")
        if not layer.outgoing:
            raise ValueError(f"units of {layer.name} cannot be reset: {layer.problem}")
    if not layers:
        raise ValueError(f"there is no hidden layer on {on}")
    return layers


def targets(learner: Learner) -> dict[Tensor, Tensor]:
    """The target network's parameter of each of the network's."""
    if learner.target is None:
        return {}
    return dict(zip(learner.network.parameters(), learner.target.parameters(), strict=True))


@torch.no_grad()
def reset_units(learner: Learner, layer: Layer, units: Tensor, new: Layer) -> None:
    """Give units new incoming weights, no bias and no effect; in the target network and the moments, too."""
    everywhere = slice(None)
    changes: list[tuple[Tensor, Any, Tensor | float]] = [
        (layer.module.weight, units, new.module.weight[units])
    ]
    if layer.module.bias is not None:
        changes.append((layer.module.bias, units, 0.0))
    for later, columns in layer.outgoing:
        changes.append((later.module.weight, (everywhere, columns[units].flatten()), 0.0))
    of_target = targets(learner)
    for parameter, entries, value in changes:
        for tensor in (parameter, of_target.get(parameter)):
            if tensor is not None:
                tensor[entries] = value
        for moment in learner.optimizer.state.get(parameter, {}).values():
            if moment.shape == parameter.shape:
                moment[entries] = 0.0


class ReDo(Method):
    """Resets units that are dormant on the latest minibatch. (Sokar et al., ICML 2023.)"""

    def __init__(self, learner: Learner, every: int, tau: float, on: str) -> None:
        self.learner, self.every, self.tau, self.part = learner, every, tau, on
        watchable(learner, on)

    def on(self, event: Event) -> dict[str, float]:
        """Reset those whose mean |activation| is at most tau times their layer's mean."""
        layers = watchable(self.learner, self.part)
        seen = Seen()
        seen.watch(layers)
        self.learner.network.forward(event.batch.observations)
        seen.watch(())
        new = {layer.name: layer for layer in describe_agent(self.learner.new_network())}
        dormant = {}
        for layer in layers:
            size = seen.activations[layer.name].abs().mean((0, 2))
            dormant[layer.name] = (size <= self.tau * size.mean()).nonzero().squeeze(1)
            reset_units(self.learner, layer, dormant[layer.name], new[layer.name])
        return {f"reset/{name}": float(len(units)) for name, units in dormant.items()}


@dataclass(frozen=True)
class ReDoConfig(MethodConfig):
    """Reset units that are dormant."""

    name: ClassVar[str] = "redo"

    every: int = 1_000
    """Gradient steps from one time to the next."""
    tau: float = 0.1
    """Share of the mean of its layer up to which a unit's activity is dormant."""

    def build(self, learner: Learner) -> ReDo:
        """The method, for one network."""
        return ReDo(learner, self.every, self.tau, self.on)


@dataclass
class Units:
    """What continual backprop knows of the units of a layer, (units,) each."""

    ages: Tensor
    means: Tensor
    utilities: Tensor
    due: float = 0.0
    """Units to be replaced, of which the fraction stays for the next time."""


class ContinualBackprop(Method):
    """Replaces the least useful mature units, a few now and then. (Dohare et al., Nature 2024.)"""

    def __init__(self, learner: Learner, rate: float, maturity: int, decay: float, every: int, on: str):
        self.learner, self.every, self.part = learner, every, on
        self.rate, self.maturity, self.decay = rate, maturity, decay
        self.units = {
            layer.name: Units(*torch.zeros(3, layer.units, device=layer.module.weight.device))
            for layer in watchable(learner, on)
        }

    def watches(self) -> list[Layer]:
        """All hidden layers."""
        return watchable(self.learner, self.part)

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Count the step, and update the running means of activations and utilities."""
        for layer in watchable(self.learner, self.part):
            units, activations = self.units[layer.name], seen.activations[layer.name].float()
            units.ages += 1
            units.means.lerp_(activations.mean((0, 2)), 1 - self.decay)
            means = units.means / (1 - self.decay**units.ages)
            size = (activations - means[:, None]).abs().mean((0, 2))
            outgoing = sum(
                later.module.weight.abs().transpose(0, 1)[columns].flatten(1).sum(1)
                for later, columns in layer.outgoing
            )
            incoming = layer.module.weight.abs().flatten(1).sum(1)
            units.utilities.lerp_(outgoing * size / incoming, 1 - self.decay)

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """Replace the least useful of the units that are old enough; what they gave goes into biases."""
        new = {layer.name: layer for layer in describe_agent(self.learner.new_network())}
        replaced = {}
        for layer in watchable(self.learner, self.part):
            units = self.units[layer.name]
            eligible = (units.ages > self.maturity).nonzero().squeeze(1)
            units.due += self.rate * self.every * len(eligible)
            count = min(int(units.due), len(eligible))
            units.due -= count
            replaced[f"replaced/{layer.name}"] = float(count)
            if not count:
                continue
            corrected = (units.utilities / (1 - self.decay**units.ages))[eligible]
            chosen = eligible[corrected.argsort()[:count]]
            means = (units.means / (1 - self.decay**units.ages))[chosen]
            for later, columns in layer.outgoing:
                if later.module.bias is not None:
                    later.module.bias += later.module.weight[:, columns[chosen]].flatten(2).sum(2) @ means
            reset_units(self.learner, layer, chosen, new[layer.name])
            for tensor in (units.ages, units.means, units.utilities):
                tensor[chosen] = 0.0
        return replaced

    def state_dict(self) -> dict[str, Any]:
        """What is known of units."""
        return {name: dict(vars(units)) for name, units in self.units.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        for name, units in self.units.items():
            for key in ("ages", "means", "utilities"):
                getattr(units, key).copy_(state[name][key])
            units.due = state[name]["due"]


@dataclass(frozen=True)
class ContinualBackpropConfig(MethodConfig):
    """Replace the least useful units, a few now and then."""

    name: ClassVar[str] = "continual_backprop"
    conflicts: ClassVar[tuple[str, ...]] = ("redo",)

    rate: float = 1e-4
    """Share of the mature units that is replaced, per gradient step."""
    maturity: int = 10_000
    """Gradient steps for which a unit is safe."""
    decay: float = 0.99
    """Decay of the running means."""
    every: int = 100
    """Gradient steps between replacements."""

    def build(self, learner: Learner) -> ContinualBackprop:
        """The method, for one network."""
        return ContinualBackprop(learner, self.rate, self.maturity, self.decay, self.every, self.on)


class CChain(Method):
    """Keeps outputs on the last minibatch near what they were two steps ago. (Tang et al., ICML 2025.)"""

    def __init__(self, learner: Learner, coef: float, on: str) -> None:
        self.learner, self.coef, self.part = learner, coef, on
        self.reference: Tensor | None = None
        # The networks of two steps, one step and no step ago.
        self.copies = [copy.deepcopy(learner.network).requires_grad_(False) for _ in range(3)]

    def penalty(self, batch: Any) -> Tensor | float:
        """The mean squared change of the outputs on the minibatch before this one."""
        reference, self.reference = self.reference, batch.observations
        if reference is None:
            return 0.0
        network, older = cast(Network, self.learner.network), cast(Network, self.copies[0]).parts()
        inputs = network.encode(reference)
        changes = (
            (part(inputs) - older[name](inputs)).square().mean()
            for name, part in network.parts().items()
            if self.part in ("all", name)
        )
        return self.coef * sum(changes)

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Move on by one step."""
        for older, newer in pairwise([*self.copies, self.learner.network]):
            torch._foreach_copy_(list(older.parameters()), list(newer.parameters()))

    def state_dict(self) -> dict[str, Any]:
        """The networks of earlier steps, and the minibatch."""
        return {"copies": [copy.state_dict() for copy in self.copies], "reference": self.reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        for kept, saved in zip(self.copies, state["copies"]):
            kept.load_state_dict(saved)
        device = next(self.learner.network.parameters()).device
        self.reference = None if state["reference"] is None else state["reference"].to(device)


@dataclass(frozen=True)
class CChainConfig(MethodConfig):
    """Keep outputs near what they were two gradient steps ago."""

    name: ClassVar[str] = "cchain"
    conflicts: ClassVar[tuple[str, ...]] = ("injection",)

    coef: float = 1.0
    """Coefficient of the mean squared change."""

    def build(self, learner: Learner) -> CChain:
        """The method, for one network."""
        return CChain(learner, self.coef, self.on)


class InjectedHead(nn.Module):
    """A head that is kept, and a new one that is trained from zero on."""

    def __init__(self, head: nn.Module, new: nn.Module) -> None:
        super().__init__()
        self.head, self.new = head.requires_grad_(False), new
        self.start = copy.deepcopy(new).requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) -> outputs (B, O)."""
        return self.head(features) + (self.new(features) - self.start(features))


class Injection(Method):
    """Plasticity injection, once: at a switch, or after so many gradient steps. (Nikishin et al., 2023.)"""

    def __init__(self, learner: Learner, after: int | None, on: str) -> None:
        self.learner, self.part, self.injected = learner, on, False
        self.every, self.at_switch = after or 0, after is None

    def on(self, event: Event) -> dict[str, float]:
        """Inject, if that was not done."""
        if self.injected:
            return {}
        self._inject()
        return {"injected": 1.0}

    def _inject(self) -> None:
        learner, new_network = self.learner, self.learner.new_network()
        paths = {module: path for path, module in learner.network.named_modules()}
        for path in [paths[layer.module] for layer in learner.layers(self.part) if layer.is_head]:
            parent, _, name = path.rpartition(".")
            new = new_network.get_submodule(path)
            if learner.target is not None:
                of_target = learner.target.get_submodule(path)
                injected = InjectedHead(of_target, copy.deepcopy(new).requires_grad_(False))
                setattr(learner.target.get_submodule(parent), name, injected)
            injected = InjectedHead(learner.network.get_submodule(path), new)
            setattr(learner.network.get_submodule(parent), name, injected)
            for old_parameter, parameter in zip(injected.head.parameters(), new.parameters()):
                replace(learner, old_parameter, parameter)
        learner.structure_changed()
        self.injected = True

    def state_dict(self) -> dict[str, Any]:
        """Whether it was done."""
        return {"injected": self.injected}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Build the network as it was, for its weights to be loaded."""
        if state["injected"]:
            self._inject()


def replace(learner: Learner, old: nn.Parameter, new: nn.Parameter) -> None:
    """Let the optimizer train another parameter in the place of one, which has no gradient from now on."""
    old.grad = None  # else it would be clipped with the others for ever
    learner.optimizer.state.pop(old, None)
    for group in learner.optimizer.param_groups:
        group["params"][:] = [new if parameter is old else parameter for parameter in group["params"]]


@dataclass(frozen=True)
class InjectionConfig(MethodConfig):
    """Train a new head beside the old one."""

    name: ClassVar[str] = "injection"

    after: int | None = None
    """Gradient steps after which it is done; None is at the first switch, which `on_switch` reports."""

    def build(self, learner: Learner) -> Injection:
        """The method, for one network."""
        return Injection(learner, self.after, self.on)


class ShrinkPerturb(Method):
    """Moves all weights towards fresh ones at a switch. (Ash and Adams, NeurIPS 2020.)"""

    at_switch = True

    def __init__(self, learner: Learner, share: float, on: str) -> None:
        self.learner, self.share, self.part = learner, share, on

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """w <- (1 - share) w + share fresh."""
        of_target, fresh = targets(self.learner), self.learner.new_network()
        for parameter, new in zip(self._parameters(self.learner.network), self._parameters(fresh)):
            parameter.lerp_(new, self.share)
            if parameter in of_target:
                of_target[parameter].lerp_(new, self.share)
        return {"share": self.share}

    def _parameters(self, network: nn.Module) -> Sequence[nn.Parameter]:
        part = network if self.part == "all" else cast(Network, network).parts()[self.part]
        return list(part.parameters())


@dataclass(frozen=True)
class ShrinkPerturbConfig(MethodConfig):
    """Shrink and perturb at every switch, which `on_switch` reports."""

    name: ClassVar[str] = "shrink_perturb"
    conflicts: ClassVar[tuple[str, ...]] = ("injection",)

    share: float = 0.2
    """How far weights go towards fresh ones, 0 to 1."""

    def build(self, learner: Learner) -> ShrinkPerturb:
        """The method, for one network."""
        return ShrinkPerturb(learner, self.share, self.on)
