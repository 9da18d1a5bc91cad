"""Penalties on the size of parameters, or on their distance from the initial ones: L2 and L2 Init."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from neoteny.optim.layers import Layer, Network
from neoteny.optim.methods import Learner, Method, MethodConfig, Seen, check_fields
from neoteny.optim.orthogonal import is_orthogonal, raw_weight


def trained(learner: Learner, part: str) -> dict[str, nn.Parameter]:
    """The parameters of a part that are trained, by their names in the network.

    Raw weights of orthogonal layers are left out, since their size has no effect.
    """
    network = learner.network
    module = network if part == "all" else cast(Network, network).parts()[part]
    raw = {raw_weight(layer) for layer in network.modules() if is_orthogonal(layer)}
    chosen = set(module.parameters()) - raw
    return {name: p for name, p in network.named_parameters() if p in chosen and p.requires_grad}


def hidden_layers(learner: Learner, part: str) -> list[Layer]:
    """The hidden layers of a part whose weights are trained as they are."""
    return [layer for layer in learner.layers(part) if layer.weight is not None and not layer.is_head]


class Penalty(Method):
    """Base class of penalties on weights, which depend on nothing else but tensors of their own.

    Attributes:
        own: these tensors by name, which `penalty` may change in place.
        coupled: whether the penalty is a term of the loss.
    """

    def __init__(self, learner: Learner, coef: float, part: str) -> None:
        self.learner, self.coef, self.part = learner, coef, part
        self.own: dict[str, Tensor] = {}
        self.coupled = True

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The penalty at the current weights."""
        return {"penalty": cast(Tensor, self.penalty(None))}


class L2(Penalty):
    r"""L2 regularization, coupled: :math:`\lambda \|\theta\|^2` in the loss.

    The optimizer rescales its gradient together with the loss's. For the decoupled form, use AdamW.
    """

    def penalty(self, batch: Any) -> Tensor:
        """The penalty, ()."""
        parameters = trained(self.learner, self.part).values()
        return self.coef * torch.stack([parameter.square().sum() for parameter in parameters]).sum()


@dataclass(frozen=True)
class L2Config(MethodConfig):
    """L2 regularization of all parameters as a term of the loss, biases and heads included."""

    name: ClassVar[str] = "l2"

    coef: float = 1e-4
    """Coefficient of the sum of squares; Adam's weight_decay in torch is twice this."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("coef",), above=0)

    def build(self, learner: Learner) -> L2:
        """The method for a network."""
        return L2(learner, self.coef, self.on)


class L2Init(Penalty):
    r"""Regenerative regularization: :math:`\lambda \|\theta - \theta_0\|^2`, squared and summed, in the loss.

    S. Kumar, H. Marklund, B. Van Roy, "Maintaining Plasticity in Continual Learning via Regenerative
    Regularization", CoLLAs 2024. :math:`\theta_0` are the parameters before the first gradient step; those
    of a module that is added later, when it is added.

    The decoupled form bypasses the optimizer, as weight decay does in AdamW: after each gradient step,
    :math:`\theta \leftarrow \theta - 2 \gamma \lambda (\theta - \theta_0)` with the learning rate
    :math:`\gamma`.
    """

    def __init__(self, learner: Learner, coef: float, decoupled: bool, part: str) -> None:
        super().__init__(learner, coef, part)
        self.coupled = not decoupled
        list(self._pairs())

    def penalty(self, batch: Any) -> Tensor | float:
        """The penalty, ()."""
        return self.coef * self._squared_distance() if self.coupled else 0.0

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Take the decoupled step."""
        if not self.coupled:
            groups = self.learner.optimizer.param_groups
            rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
            for parameter, initial in self._pairs():
                parameter.lerp_(initial, 2 * self.coef * rates[parameter])

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The distance from the initial parameters."""
        return {"distance": self._squared_distance().sqrt()}

    def state_dict(self) -> dict[str, Any]:
        """The initial parameters."""
        return {"initial": self.own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial parameters."""
        device = next(self.learner.network.parameters()).device
        self.own = {name: initial.to(device) for name, initial in state["initial"].items()}

    def _squared_distance(self) -> Tensor:
        return torch.stack([(now - initial).square().sum() for now, initial in self._pairs()]).sum()

    def _pairs(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its initial value."""
        for name, parameter in trained(self.learner, self.part).items():
            if name not in self.own:
                self.own[name] = parameter.detach().clone()
            yield parameter, self.own[name]


@dataclass(frozen=True)
class L2InitConfig(MethodConfig):
    """Regularization of all parameters towards their initial values."""

    name: ClassVar[str] = "l2_init"
    conflicts: ClassVar[tuple[str, ...]] = ("l2",)

    coef: float = 1e-3
    """Coefficient of the squared distance; the paper tries 1e-2 to 1e-5."""
    decoupled: bool = False
    """Bypass the optimizer: after its step, shrink the distance by 2 * coef * learning rate."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("coef",), above=0)

    def build(self, learner: Learner) -> L2Init:
        """The method for a network."""
        return L2Init(learner, self.coef, self.decoupled, self.on)
