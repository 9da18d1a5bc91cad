"""Plasticity methods: regularizers, resets and others that act on a network beside its optimizer.

A method is a small object built by a frozen dataclass, its configuration. It may add a term to the loss
(`penalty`), act on the device after each gradient step (`after_step`), and act on the host every k gradient
steps or at a task switch (`on`). The first two use tensor operations only and never read from the device. An
agent's `update` and training loop call `Methods`, which holds all methods of a run; see docs/extending.md.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neoteny.optim.checks import Snapshot
from neoteny.optim.isometry import isometry_report
from neoteny.optim.layers import Layer, Network, connect, describe_agent, left_out


@dataclass
class Learner:
    """The objects that methods read and change.

    The network is an agent's, see `layers.Network`; the target network, if there is one, is as in DQN.
    `new_network` makes a freshly initialized network of the structure that the run started with.
    """

    network: nn.Module
    optimizer: Optimizer
    new_network: Callable[[], nn.Module]
    target: nn.Module | None = None
    _layers: dict[str, list[Layer]] = field(default_factory=dict, repr=False)
    _connected: bool = False
    structures: int = 0
    """Number of times that the network's structure changed."""
    loss: Tensor | None = None
    """The loss in the current gradient step, (), without penalties and detached."""
    origins: dict[nn.Module, str] = field(default_factory=dict, repr=False)
    """Of modules that were put into the network: the path in a new network of what they replace."""

    def layers(self, on: str = "all", connected: bool = False) -> list[Layer]:
        """The current layers of a part of the network, heads included.

        Args:
            on: Name of a part, or "all"; a layer that parts share belongs to each.
            connected: Also set `Layer.outgoing`, the inputs of later layers that their units feed.

        Raises:
            ValueError: there is no such part.
        """
        if not self._layers:
            self._layers = {"all": describe_agent(self.network)}
            for part in cast(Network, self.network).parts():
                self._layers[part] = [layer for layer in self._layers["all"] if part in layer.parts]
        if on not in self._layers:
            raise ValueError(f"the network has no part {on}; it has: {', '.join(self._layers)}")
        if connected and not self._connected:
            connect(self.network, cast(Network, self.network).example, self._layers["all"])
            self._connected = True
        return self._layers[on]

    def structure_changed(self) -> None:
        """Describe the layers anew; to be called after modules were added or removed."""
        self._layers, self._connected = {}, False
        self.structures += 1

    def problem(self) -> str:
        """Why the optimizer or the target network does not fit the network; empty if they fit."""
        owned = {p: self.optimizer.state.get(p, {}) for g in self.optimizer.param_groups for p in g["params"]}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad and parameter not in owned:
                return f"{name} is not in the optimizer, so it would never be trained"
            if not parameter.requires_grad and parameter.grad is not None:
                return f"{name} is frozen but has a gradient, which would count in gradient clipping"
            moments = owned.get(parameter, {})
            for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                if key in moments and moments[key].shape != parameter.shape:
                    return f"{key} of {name} has shape {tuple(moments[key].shape)}"
        ours, theirs = (
            {name: tensor.shape for name, tensor in network.state_dict().items()}
            for network in (self.network, self.target or self.network)
        )
        return "the target network has another structure than the network" if ours != theirs else ""


@dataclass(frozen=True)
class Event:
    """A point between two gradient steps at which a method may act on the host."""

    kind: Literal["step", "switch"]  # every `Method.every` gradient steps, or after a task switch
    steps: int  # gradient steps so far
    batch: Any  # the latest minibatch; its `observations` are (B, ...)


class Method:
    """Base class of plasticity methods, with no effect; a subclass overrides what it needs.

    A method must not store layers of the network, which an event may replace; `Learner.layers` returns them.
    """

    every: int = 0
    """Gradient steps between two "step" events; 0 for none."""
    at_switch: bool = False
    """Whether task switches are events; a method that uses them has information that the agent lacks."""
    clipped: bool = False
    """Whether the gradient of the penalty is clipped together with the gradient of the loss."""
    resets: bool = False
    """Whether events replace weights by new ones: their moments must then be 0, the target network's the
    same. This is checked after each event, except for biases, which may take up what a unit gave."""

    def watches(self) -> list[Layer]:
        """Connected layers whose activations and gradients `after_step` needs."""
        return []

    def penalty(self, batch: Any) -> Tensor | float:
        """A term of the loss on a minibatch, ()."""
        return 0.0

    def after_step(self, seen: Seen) -> None:
        """Act on the device after a gradient step; `seen` has the watched activations and gradients."""

    def on(self, event: Event) -> dict[str, float]:
        """Act on the host; returns metrics to log, by name."""
        return {}

    def metrics(self) -> Mapping[str, float | Tensor]:
        """Numbers to log at the end of each update, by name; tensors are ()."""
        return {}

    @property
    def has_events(self) -> bool:
        """Whether `on` is ever called."""
        return self.every > 0 or self.at_switch

    def acted(self) -> bool:
        """Whether the method has changed anything so far, apart from events, which `Methods` counts.

        A method without events counts as acting in every step; override this if it may not.
        """
        return not self.has_events

    def state_dict(self) -> dict[str, Any]:
        """The method's state, which a resumed run needs: numbers, strings and tensors in dicts and lists."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        It is called before network and optimizer are restored, so that a method that changed their structure
        can change it again.
        """


@dataclass(frozen=True)
class MethodConfig:
    """Base class of methods' configurations: a subclass has a `name`, and fields that are flags."""

    name: ClassVar[str] = ""
    conflicts: ClassVar[tuple[str, ...]] = ()
    """Names of methods that it cannot be combined with."""
    stackable: ClassVar[bool] = True
    """Whether it can act on networks that are trained as one, see `neoteny.optim.stacked`. One that watches
    layers cannot, since their own forward passes are not made, nor one that changes the structure."""

    on: Literal["actor", "critic", "all"] = "all"
    """Part of the agent that the method acts on; layers that both parts share belong to each."""

    def build(self, learner: Learner) -> Method:
        """The method for a network.

        Raises:
            ValueError: it does not fit the network or the optimizer.
        """
        raise NotImplementedError


def check_fields(
    config: MethodConfig,
    names: Sequence[str],
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> None:
    """Raise ValueError if a field of a configuration is not finite or out of range."""
    bounds = (("above", above), ("at least", at_least), ("at most", at_most))
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if abs(bound) < math.inf)
    for name in names:
        value = getattr(config, name)
        if not (abs(value) < math.inf and value > above and at_least <= value <= at_most):
            raise ValueError(f"{name} of {config.name} must be {wanted or 'finite'}, not {value}")


class Methods:
    """All methods of a run, at most one of each, with their state.

    Raises:
        ValueError: two exclude each other, or one does not fit the network or the optimizer, for example
            because the network has no such part.
    """

    def __init__(self, configs: Sequence[MethodConfig], learner: Learner) -> None:
        self.configs, self.learner = configs, learner
        names = [config.name for config in configs]
        for config in configs:
            if not config.name:
                raise ValueError(f"{type(config).__name__} is a method without a name")
            if names.count(config.name) > 1:
                raise ValueError(f"the method {config.name} is given twice")
            if against := set(config.conflicts) & set(names):
                raise ValueError(f"{config.name} and {', '.join(sorted(against))} contradict each other")
            learner.layers(config.on)
        self.methods = {config.name: config.build(learner) for config in configs}
        self.seen = Seen()
        self._rewatch()
        self.steps = 0  # gradient steps so far
        self._switched_at = 0
        self._batch: Any = None
        self._tags: dict[str, list[float]] = {}
        self.apart: frozenset[str] = frozenset()
        """Names of methods whose penalties are computed elsewhere, see `neoteny.optim.stacked`."""
        self.changes = {name: 0 for name, method in self.methods.items() if method.has_events}
        """Number of events of each method that changed the network."""

    @property
    def has_penalties(self) -> bool:
        """Whether a method that is not apart adds a term to the loss."""
        return any(type(method).penalty is not Method.penalty for method in self._here())

    def remade(self, network: nn.Module, optimizer: Optimizer) -> Methods:
        """The same methods in their initial state, for another network without a target network."""
        return Methods(self.configs, Learner(network, optimizer, self.learner.new_network))

    def report(self, planned_steps: int) -> str:
        """Lines on what isometry will do in `planned_steps` and which parameters methods ignore."""
        isometry = isometry_report(self.learner.optimizer, planned_steps)
        return "\n".join(filter(None, (isometry, left_out(self.learner.network, self.learner.layers()))))

    def penalty(self, batch: Any, loss: Tensor | None = None) -> Tensor | float:
        """The sum of the penalties whose gradients are clipped together with that of the loss, ()."""
        self.learner.loss = None if loss is None else loss.detach()
        return self._penalty(batch, clipped=True) if self.methods else 0.0

    def add_gradients(self, batch: Any) -> None:
        """Add the gradients of the other penalties to the clipped gradient of the loss."""
        if self.methods and isinstance(penalty := self._penalty(batch, clipped=False), Tensor):
            penalty.backward()

    def after_step(self) -> None:
        """Call `after_step` of every method."""
        for method in self.methods.values():
            method.after_step(self.seen)

    def variant(self) -> int:
        """What distinguishes the kernels of the next gradient step: the structure of the network."""
        return self.learner.structures

    def between_steps(self, batch: Any) -> None:
        """Count a gradient step, and call `on` of the methods that are due."""
        self.steps += 1
        self._batch = batch
        for name, method in self.methods.items():
            if method.every and self.steps % method.every == 0:
                self._act(name, method, "step")

    def end_update(self, switched_at: int) -> dict[str, float]:
        """Call `on` of the methods that act at switches, if the task switched in the update that ends here.

        Args:
            switched_at: The environment step of the last switch; 0 before the first.

        Returns:
            Metrics to log: what the events in the update returned, as means, and those of every method.
        """
        if switched_at != self._switched_at and self.steps:
            for name, method in self.methods.items():
                if method.at_switch:
                    self._act(name, method, "switch")
        self._switched_at = switched_at
        events, self._tags = self._tags, {}
        tags = {tag: sum(values) / len(values) for tag, values in events.items()}
        with self.seen.paused():
            for name, method in self.methods.items():
                tags |= {f"methods/{name}/{tag}": float(value) for tag, value in method.metrics().items()}
        return tags

    def summary(self) -> dict[str, dict[str, Any]]:
        """For each method, whether it did anything so far, and how many events changed the network."""
        of_events = {name: {"changes": self.changes[name]} for name in self.changes}
        return {
            name: {"acted": self.changes.get(name, 0) > 0 or method.acted(), **of_events.get(name, {})}
            for name, method in self.methods.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Counters and the state of every method."""
        methods = {name: method.state_dict() for name, method in self.methods.items()}
        changes = dict(self.changes)
        return {
            "steps": self.steps, "switched_at": self._switched_at, "changes": changes, "methods": methods
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, before network and optimizer are restored.

        Raises:
            ValueError: the state is of other methods.
        """
        saved = state["methods"]
        if saved.keys() != self.methods.keys():
            raise ValueError(f"the checkpoint has the methods {list(saved)}, the run {list(self.methods)}")
        self.steps, self._switched_at = state["steps"], state["switched_at"]
        self.changes |= state.get("changes", {})  # checkpoints of version 0.2.0 have none
        for name, method in self.methods.items():
            method.load_state_dict(saved[name])
        self._rewatch()

    def _penalty(self, batch: Any, clipped: bool) -> Tensor | float:
        with self.seen.paused():
            return sum((m.penalty(batch) for m in self._here() if m.clipped == clipped), 0.0)

    def _here(self) -> Iterator[Method]:
        """The methods that are not apart."""
        return (method for name, method in self.methods.items() if name not in self.apart)

    def _act(self, name: str, method: Method, kind: Literal["step", "switch"]) -> None:
        structures, before = self.learner.structures, Snapshot(self.learner)
        with self.seen.paused():
            tags = method.on(Event(kind, self.steps, self._batch))
        moved = before.moved()
        if problem := self.learner.problem() or before.problem(method.resets):
            raise RuntimeError(f"after the method {name}: {problem}")
        self.changes[name] += moved != 0.0 or self.learner.structures != structures
        for tag, value in {**tags, "moved": moved}.items():
            self._tags.setdefault(f"methods/{name}/{tag}", []).append(value)
        self._rewatch()

    def _rewatch(self) -> None:
        """Watch the layers as they are now."""
        self.seen.watch([layer for method in self.methods.values() for layer in method.watches()])


ByUnit: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""Regroups the inputs of a layer by the units that feed them."""


class Seen:
    """Activations of the layers that methods watch, and their gradients, in the latest gradient step.

    Attributes:
        activations: By name of the layer, (B, units, positions), as they entered the next layer.
        gradients: Of the loss with respect to these, of the same shape.
    """

    def __init__(self) -> None:
        self.activations: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._paused = False

    def watch(self, layers: Iterable[Layer]) -> None:
        """Watch these layers and no others.

        Raises:
            ValueError: a layer has no outgoing connection.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for layer in {layer.name: layer for layer in layers}.values():
            if not layer.outgoing:
                raise ValueError(
                    f"units of {layer.name} cannot be watched: {layer.problem or 'it is a head'}"
                )
            later, columns = layer.outgoing[0]
            in_order = columns.flatten().equal(torch.arange(columns.numel(), device=columns.device))
            view = functools.partial(_by_unit, columns.shape if in_order else columns)
            hook = functools.partial(self._record, layer.name, view)
            self._handles.append(later.module.register_forward_pre_hook(hook))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not record the forward passes in this block."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _record(self, name: str, by_unit: ByUnit, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._paused or not torch.is_grad_enabled():
            return
        self.activations[name] = by_unit(module, args[0].detach())
        if args[0].requires_grad:
            args[0].register_hook(functools.partial(self._record_gradient, name, by_unit, module))

    def _record_gradient(self, name: str, by_unit: ByUnit, module: nn.Module, gradient: Tensor) -> None:
        self.gradients[name] = by_unit(module, gradient.detach())

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a network has copies of its hooks, and thus of this object: it does not need the
        # original's activations, and is not paused while the original is.
        return {**self.__dict__, "activations": {}, "gradients": {}, "_paused": False}


def _by_unit(columns: Tensor | torch.Size, module: nn.Module, entering: Tensor) -> Tensor:
    """The inputs of a layer, regrouped by the units that feed them: (B, units, positions).

    Args:
        columns: the inputs of each unit, (units, k); only their shape if all are in order, which need no
            copy then.
        module: the layer.
        entering: its inputs.
    """
    columns_first = entering.reshape(-1, entering.shape[-1], 1) if isinstance(module, nn.Linear) else entering
    by_column = columns_first.flatten(2)
    if isinstance(columns, torch.Size):
        return by_column.unflatten(1, columns).flatten(2)
    return by_column[:, columns].flatten(2)
