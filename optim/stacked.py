"""Several networks of the same structure as one: their parameters are stacked along a new first axis.

Small networks wait for Python, which starts every operation on its own. The gradients of K networks, each on
its own minibatch, are here one graph of operations on stacked tensors (K, ...), and so is the optimizer's
step, if it treats all numbers alike. The networks and their optimizers remain what they are: their tensors
are views of the stacked ones, so that whatever acts on one network, such as a reset of some of its units or
its checkpoint, needs to know nothing of the others.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import functional_call, grad, vmap
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from neoteny.optim.methods import Methods
from neoteny.optim.regularizers import Penalty

Losses = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""The loss of a network on a minibatch, (), and another number that is reported, ()."""

SHARED = ("step", "skipped")
"""States of an optimizer that are one number for all stacked networks, as fused kernels need it."""


class Stack:
    """K networks with their optimizers and methods, whose tensors become views of stacked ones.

    Penalties on weights alone are computed for all networks at once; other methods act one by one.

    Args:
        all_methods: those of each network, whose learner has network and optimizer; of the same structure and
            options.
        loss: of a network; it must not read values or write to tensors.
        joint: whether the optimizers are stepped as one; else each makes its own step.

    Attributes:
        others: whether there are other methods than such penalties.
    """

    def __init__(self, all_methods: Sequence[Methods], loss: Losses, joint: bool) -> None:
        self.optimizers = [methods.learner.optimizer for methods in all_methods]
        networks = [methods.learner.network for methods in all_methods]
        self.of_networks = [dict(network.named_parameters()) for network in networks]
        self.parameters: dict[str, Tensor] = _stack(self.of_networks)
        self.joint = self._joint_optimizer() if joint else None
        self.share()
        self._losses = _Graph(_gradients_of_loss(networks[0], loss))
        self._penalties = list(_stacked_penalties(all_methods))
        self.others = len(all_methods[0].methods) > len(self._penalties)
        self.views = self.others or not joint
        """Whether the networks' own gradients are set too: views of the stacked ones."""

    def __len__(self) -> int:
        return len(self.optimizers)

    @torch.no_grad()
    def backward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Set the gradients of the losses on minibatches, a tuple of (K, B, ...); returns what `loss` does.

        Penalties that are clipped with the loss are added to the gradients.

        Returns:
            Losses, (K,), and the other numbers, (K,).
        """
        for name, parameter in self.parameters.items():
            # Before the new gradients are computed, which then take the same memory.
            parameter.grad = None
            for parameters in self.of_networks if self.views else ():
                parameters[name].grad = None
        gradients, numbers = self._losses(list(self.parameters.values()), batch)
        for name, gradient in zip(self.parameters, gradients, strict=True):
            self.parameters[name].grad = gradient = gradient.contiguous()
            if self.views:
                for parameters, own in zip(self.of_networks, gradient.unbind(), strict=True):
                    parameters[name].grad = own
        self._add_penalties(clipped=True)
        return numbers

    def add_gradients(self) -> None:
        """Add the gradients of the other penalties to the clipped gradients of the losses."""
        self._add_penalties(clipped=False)

    @torch.no_grad()
    def _add_penalties(self, clipped: bool) -> None:
        for penalty in self._penalties:
            if penalty.clipped == clipped:
                penalty.add_gradients(self.parameters)

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float | None) -> Tensor:
        """Clip the gradient of each network, see `torch.nn.utils.clip_grad_norm_`; returns the norms, (K,).

        A gradient that is not finite becomes 0, so that an optimizer that skips such steps still makes those
        of the other networks.
        """
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        by_tensor = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        norms = torch.linalg.vector_norm(torch.stack(by_tensor), dim=0)
        finite = norms.isfinite()
        scales = finite.to(norms.dtype)
        if max_norm is not None:
            scales = scales * (max_norm / (norms + 1e-6)).clamp(max=1.0)
        if max_norm is not None or not norms.is_cpu or not bool(finite.all()):
            for gradient in gradients:
                shape = (-1, *[1] * (gradient.ndim - 1))
                gradient.mul_(scales.view(shape)).masked_fill_(~finite.view(shape), 0.0)
        return norms

    def step(self, random_state_of: Callable[[int], AbstractContextManager[None]]) -> None:
        """Step all networks by their gradients; each that is stepped on its own with its random state."""
        if self.joint is None:
            for k, optimizer in enumerate(self.optimizers):
                with random_state_of(k):
                    optimizer.step()
            return
        began = bool(self.joint.state)
        self.joint.step()
        if not began:
            self.share()

    def share(self) -> None:
        """Give the networks' optimizers their shares of the joint state, before they are read.

        What the joint optimizer has counted or added since the last time is not in theirs otherwise.
        """
        if self.joint is None:
            return
        for group, *theirs in zip(self.joint.param_groups, *(each.param_groups for each in self.optimizers)):
            for own in theirs:
                own.update({name: group[name] for name in own if name != "params"})
            for stacked, *params in zip(group["params"], *(own["params"] for own in theirs)):
                for k, (optimizer, param) in enumerate(zip(self.optimizers, params, strict=True)):
                    for name, value in self.joint.state.get(stacked, {}).items():
                        optimizer.state[param][name] = value if name in SHARED else value[k]

    def _joint_optimizer(self) -> Optimizer:
        """An optimizer of the stacked parameters, with the stacked states of the networks' optimizers."""
        joint = copy.copy(self.optimizers[0])
        stacked = {self.of_networks[0][name]: tensor for name, tensor in self.parameters.items()}
        joint.param_groups, joint.state = [], defaultdict(dict)
        for groups in zip(*(optimizer.param_groups for optimizer in self.optimizers)):
            params = [stacked[param] for param in groups[0]["params"]]
            # Of a network that is no longer trained the optimizer may be new.
            known = next((group for group, each in zip(groups, self.optimizers) if each.state), groups[0])
            joint.param_groups.append({**known, "params": params, "stacked": True})
            for tensor, *of_networks in zip(params, *(group["params"] for group in groups)):
                states = [each.state.get(own, {}) for each, own in zip(self.optimizers, of_networks)]
                if any(states):
                    joint.state[tensor] = _stacked_state(states)
        return joint


class _StackedPenalty:
    """A penalty on the weights of K networks.

    Args:
        penalties: that of each network; their own tensors become views of stacked ones.
    """

    def __init__(self, penalties: Sequence[Penalty]) -> None:
        self.clipped = penalties[0].clipped
        self.own = _stack([penalty.own for penalty in penalties])
        self._gradients = _Graph(_gradients_of_penalty(penalties[0]))

    def add_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """Add its gradients to those of stacked parameters."""
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters.values()]
        torch._foreach_add_(gradients, self._gradients(list(parameters.values()), self.own))


def _stacked_penalties(all_methods: Sequence[Methods]) -> Iterator[_StackedPenalty]:
    """Take over those penalties of the networks' methods that are on weights alone."""
    for name, method in all_methods[0].methods.items():
        if isinstance(method, Penalty) and method.coupled:
            of_networks = [cast(Penalty, methods.methods[name]) for methods in all_methods]
            for methods in all_methods:
                methods.apart |= {name}
            yield _StackedPenalty(of_networks)


class _Graph:
    """A function of one network's tensors for stacked ones; recorded when it is first called."""

    def __init__(self, of_network: Callable[..., Any]) -> None:
        self._function = vmap(of_network)
        self._graph: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        """Its outputs, stacked."""
        if self._graph is None:  # recorded with copies, since recording changes what the function changes
            self._graph = _simplified(make_fx(self._function)(*tree_map(torch.clone, inputs)))
        return self._graph(*inputs)


def _gradients_of_loss(network: nn.Module, loss: Losses) -> Callable[..., Any]:
    """Gradients of the loss, and both numbers, as a function of the parameters and a minibatch."""
    call = _with_parameters(network, lambda batch: loss(network, batch))

    def numbers(parameters: Sequence[Tensor], batch: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        value, other = call(parameters, batch)
        return value, (value, other)

    return grad(numbers, has_aux=True)


def _gradients_of_penalty(penalty: Penalty) -> Callable[..., Any]:
    """Gradients of a penalty as a function of the parameters and of its own tensors, which it may change."""

    def value(own: dict[str, Tensor]) -> Tensor:
        kept, penalty.own = penalty.own, own
        try:
            return cast(Tensor, penalty.penalty(None))
        finally:
            penalty.own = kept

    return grad(_with_parameters(penalty.learner.network, value))


def _with_parameters(network: nn.Module, function: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function that uses a network, as a function of the network's parameters and of its argument."""
    names = [f"network.{name}" for name, _ in network.named_parameters()]
    module = _Function(network, function)
    return lambda parameters, argument: functional_call(
        module, dict(zip(names, parameters, strict=True)), (argument,)
    )


class _Function(nn.Module):
    """A function that uses a network, as a module, which is what parameters can be passed to."""

    def __init__(self, network: nn.Module, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, argument: Any) -> Any:
        """What the function returns."""
        return self.function(argument)


def _simplified(graph: GraphModule) -> GraphModule:
    """The graph without operations that change nothing or repeat others, each of which takes time."""
    aten, known = torch.ops.aten, dict[str, Node]()
    for node in graph.graph.nodes:
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
            continue
        same = known.setdefault(f"{node.op} {node.target} {node.args} {node.kwargs}", node)
        if node.target is aten.transpose.int and node.args[0].target is aten.transpose.int:
            if node.args[1:] == node.args[0].args[1:]:
                same = node.args[0].args[0]
        elif node.target in (aten.expand.default, aten.view.default, aten._unsafe_view.default):
            if node.args[0].meta["val"].shape == node.meta["val"].shape:
                same = node.args[0]
        elif node.target is aten.mul.Scalar and node.args[1] == 1:
            same = node.args[0]
        if same is not node:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _stack(of_networks: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Stacked tensors by name, of which those of the networks become views."""
    stacked = {name: _stacked([own[name] for own in of_networks]) for name in of_networks[0]}
    for name, tensor in stacked.items():
        for own, view in zip(of_networks, tensor.unbind(), strict=True):
            own[name].data = view
    return stacked


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (...) as one, (K, ...), contiguous and without gradients."""
    return torch.stack([tensor.detach() for tensor in tensors]).contiguous()


def _stacked_state(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The states of one parameter in K networks as one; a network without a state gets zeros."""
    known = next(state for state in states if state)
    return {
        name: value.clone()
        if name in SHARED
        else _stacked([state.get(name, torch.zeros_like(value)) for state in states])
        for name, value in known.items()
    }
