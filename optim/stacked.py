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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer

from neoteny.optim.methods import Learner

Losses = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""The loss of a network on a minibatch, (), and another number that is reported, ()."""

SHARED = ("step", "skipped")
"""States of an optimizer that are one number for all stacked networks, as fused kernels need it."""


class Stack:
    """K networks with their optimizers, whose tensors become views of stacked ones.

    Args:
        learners: network and optimizer of each, of the same structure and options.
        loss: of a network; it must not read values or write to tensors.
        joint: whether the optimizers are stepped as one; else each makes its own step.
        views: whether the networks' own gradients are set too: views of the stacked ones.
    """

    def __init__(self, learners: Sequence[Learner], loss: Losses, joint: bool, views: bool) -> None:
        self.optimizers = [learner.optimizer for learner in learners]
        self.of_networks = [dict(learner.network.named_parameters()) for learner in learners]
        self.parameters: dict[str, Tensor] = {}
        for name in self.of_networks[0]:
            self.parameters[name] = _stacked([parameters[name] for parameters in self.of_networks])
            for parameters, own in zip(self.of_networks, self.parameters[name].unbind(), strict=True):
                parameters[name].data = own
        self.joint = self._joint_optimizer() if joint else None
        self.share()
        self.views = views or not joint
        self._gradients = vmap(grad(_of_network(learners[0].network, loss), has_aux=True))
        self._graph: Callable[..., Any] | None = None

    def __len__(self) -> int:
        return len(self.optimizers)

    @torch.no_grad()
    def backward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Set the gradients of the losses on minibatches, a tuple of (K, B, ...); returns what `loss` does.

        Returns:
            Losses, (K,), and the other numbers, (K,).
        """
        for name, parameter in self.parameters.items():
            # Before the new gradients are computed, which then take the same memory.
            parameter.grad = None
            for parameters in self.of_networks if self.views else ():
                parameters[name].grad = None
        inputs = (list(self.parameters.values()), batch)
        if self._graph is None:
            self._graph = _simplified(make_fx(self._gradients)(*inputs))
        gradients, numbers = self._graph(*inputs)
        for name, gradient in zip(self.parameters, gradients, strict=True):
            self.parameters[name].grad = gradient = gradient.contiguous()
            if self.views:
                for parameters, own in zip(self.of_networks, gradient.unbind(), strict=True):
                    parameters[name].grad = own
        return numbers

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


def _of_network(network: nn.Module, loss: Losses) -> Callable[..., Any]:
    """The loss as a function of the parameters and a minibatch; also returns both numbers."""
    names = [f"network.{name}" for name, _ in network.named_parameters()]
    module = _Loss(network, loss)

    def of_parameters(parameters: Sequence[Tensor], batch: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        value, other = functional_call(module, dict(zip(names, parameters, strict=True)), (batch,))
        return value, (value, other)

    return of_parameters


class _Loss(nn.Module):
    """A loss as a module, which is what parameters can be passed to."""

    def __init__(self, network: nn.Module, loss: Losses) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Loss and number, () each."""
        return self.loss(self.network, batch)


def _simplified(graph: GraphModule) -> GraphModule:
    """The graph without operations that change nothing or repeat others, each of which takes time."""
    aten, known = torch.ops.aten, dict[str, Node]()
    for node in graph.graph.nodes:
        same = known.setdefault(f"{node.op} {node.target} {node.args} {node.kwargs}", node)
        if node.target in (aten.expand.default, aten.view.default, aten._unsafe_view.default):
            if node.args[0].meta["val"].shape == node.meta["val"].shape:
                same = node.args[0]
        elif node.target is aten.mul.Scalar and node.args[1] == 1:
            same = node.args[0]
        if same is not node:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


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
