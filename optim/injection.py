"""Plasticity injection: fresh last layers are trained beside the old ones, which are kept as they are."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from neoteny.optim.layers import WEIGHT_LAYERS, Network
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, check_fields


class Injected(nn.Module):
    """The sum of kept layers and of what new layers have learned: kept(x) + new(x) - start(x).

    `new` is trained. `kept`, and `start`, which is a copy of `new` at the start, are frozen.
    """

    def __init__(self, kept: nn.Module, new: nn.Module) -> None:
        super().__init__()
        self.kept, self.new = kept.requires_grad_(False), new
        self.start = copy.deepcopy(new).requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """What enters the layers, (B, ...), -> outputs (B, O)."""
        return self.kept(features) + (self.new(features) - self.start(features))


class Injection(Method):
    """Plasticity injection, once: after a number of gradient steps, or at the first switch.

    E. Nikishin et al., "Deep Reinforcement Learning with Plasticity Injection", NeurIPS 2023, section 3. The
    last layers h of each part become h frozen + h' trained - h'' frozen, where h' and h'' start as the same
    new layers. So at that moment no output changes, in the target network neither. Layers before h go on
    learning. The optimizer trains h' in place of h, with moments of its own.

    There must be a hidden layer in h: a sum of linear heads is one linear head with the same gradient.

    Raises:
        ValueError: h has no hidden layer, or begins in what several parts share; or a part is no sequence.
    """

    def __init__(
        self, learner: Learner, layers: int, after: int = 0, at_switch: bool = False, on: str = "all"
    ) -> None:
        self.learner, self.last, self.part = learner, layers, on
        self.every, self.at_switch, self.injected = after, at_switch, False
        list(self._tails())  # raises if it cannot be done

    def on(self, event: Event) -> dict[str, float]:
        """Inject."""
        self._inject()
        return {"injected": 1.0}

    def _inject(self) -> None:
        learner, new_network = self.learner, self.learner.new_network()
        origins = {module: path for path, module in new_network.named_modules()}
        for paths in list(self._tails()):
            new = _cut(new_network, paths)
            learner.origins |= {module: origins[module] for module in new.modules() if module in origins}
            old = _cut(learner.network, paths)
            if learner.target is not None:
                of_target = Injected(_cut(learner.target, paths), copy.deepcopy(new).requires_grad_(False))
                _put(learner.target, paths[-1], of_target)
            _put(learner.network, paths[-1], Injected(old, new))
            for before, now in zip(old.parameters(), new.parameters(), strict=True):
                _replace(learner, before, now)
        learner.structure_changed()
        self.every, self.at_switch, self.injected = 0, False, True  # there are no further events

    def _tails(self) -> Iterator[list[str]]:
        """For each part, the paths in the network of its last modules, from the first injected one on."""
        parts = cast(Network, self.learner.network).parts()
        paths = {module: path for path, module in self.learner.network.named_modules()}
        for name in parts if self.part == "all" else [self.part]:
            if not isinstance(parts[name], nn.Sequential):
                kind = type(parts[name]).__name__
                raise ValueError(f"injection needs layers in sequence, and {name} is a {kind}")
            children = list(parts[name].children())
            weights = [i for i, child in enumerate(children) if isinstance(child, WEIGHT_LAYERS)]
            if len(weights) < max(self.last, 2):
                most = len(weights)
                raise ValueError(f"layers of injection must be 2 to {most}, those of {name}, not {self.last}")
            chosen = children[weights[-self.last] :]
            others = [part for other, part in parts.items() if other != name]
            if shared := [child for child in chosen for part in others if child in set(part.children())]:
                raise ValueError(f"injection would begin in {paths[shared[0]]}, which several parts share")
            yield [*(paths[child] for child in chosen[:-1]), self._slot(paths[chosen[-1]])]

    def _slot(self, path: str) -> str:
        """The path of the module that makes the output of a part, which may be a head of several layers."""
        while (parent := path.rpartition(".")[0]) and not isinstance(
            self.learner.network.get_submodule(parent), nn.Sequential
        ):
            path = parent
        return path

    def state_dict(self) -> dict[str, Any]:
        """Whether it was done."""
        return {"injected": self.injected}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Build the network as it was, for its weights to be loaded."""
        if state["injected"]:
            self._inject()


def inject_as_saved(network: nn.Module, names: Iterable[str]) -> None:
    """Give a new network the injected layers of a saved one, whose tensors have these names.

    The values of the layers are not those of the saved network, and are to be loaded afterwards.
    """
    kept = {tuple(name.split(".kept.", 1)) for name in names if ".kept." in name}
    if not kept:
        return
    slots = {slot for slot, _ in kept}
    layers = len({name.partition(".")[0] for _, name in kept})
    parts = cast(Network, network).parts()
    of = [name for name in parts if any(slot.startswith(f"{name}.") for slot in slots)]
    part = "all" if len(slots) == len(parts) else of[0]
    optimizer = torch.optim.SGD(network.parameters())
    learner = Learner(network, optimizer, lambda: copy.deepcopy(network))
    Injection(learner, layers, on=part).load_state_dict({"injected": True})


def _cut(network: nn.Module, paths: list[str]) -> nn.Sequential:
    """Take modules out of a network, which get the identity as their successor, as one module."""
    modules = [network.get_submodule(path) for path in paths]
    names = [path.rpartition(".")[2] for path in paths]
    for path in paths:
        _put(network, path, nn.Identity())
    tail = nn.Sequential()
    for name, module in zip(names, modules, strict=True):
        tail.add_module(name, module)
    return tail


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def _replace(learner: Learner, old: nn.Parameter, new: nn.Parameter) -> None:
    """Let the optimizer train another parameter in the place of one, which has no gradient from now on."""
    old.grad = None  # else it would be clipped with the others for ever
    learner.optimizer.state.pop(old, None)
    for group in learner.optimizer.param_groups:
        group["params"][:] = [new if parameter is old else parameter for parameter in group["params"]]


@dataclass(frozen=True)
class InjectionAtSwitchConfig(MethodConfig):
    """Train new last layers beside the old ones from the first switch on, which this tells the agent."""

    name: ClassVar[str] = "injection_at_switch"
    stackable: ClassVar[bool] = False
    conflicts: ClassVar[tuple[str, ...]] = ("injection",)

    layers: int = 2
    """Number of last layers that get new ones beside them, the head included."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("layers",), at_least=2)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return Injection(learner, self.layers, at_switch=True, on=self.on)


@dataclass(frozen=True)
class InjectionConfig(InjectionAtSwitchConfig):
    """Train new last layers beside the old ones after a number of gradient steps."""

    name: ClassVar[str] = "injection"
    conflicts: ClassVar[tuple[str, ...]] = ()

    after: int = 10_000
    """Gradient steps after which new layers are added."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_fields(self, ("after",), at_least=1)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return Injection(learner, self.layers, self.after, on=self.on)
