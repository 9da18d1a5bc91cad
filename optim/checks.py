"""What an event of a plasticity method did to a network: how far it moved it, and if that is in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from neoteny.optim.methods import Learner


class Snapshot:
    """The weights of a learner before an event."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.before = {parameter: parameter.detach().clone() for parameter in learner.network.parameters()}

    @torch.no_grad()
    def moved(self) -> float:
        """The norm of the change of all weights that are still in the network."""
        changes = [torch.linalg.vector_norm(now - then) for _, now, then in self._kept()]
        return float(torch.linalg.vector_norm(torch.stack(changes)))

    @torch.no_grad()
    def problem(self, resets: bool) -> str:
        """What is wrong with the weights now; empty if nothing.

        If the event `resets` weights, entries that changed have moments of 0, and are the same in the target
        network. Biases are exempt, and so is what is not finite: that ends the run with its update.
        """
        found: dict[str, Tensor] = {}
        targets = targets_of(self.learner)
        for name, now, then in self._kept() if resets else ():
            if now.ndim < 2:
                continue
            changed = (now != then) & now.isfinite()
            if moments := moments_of(self.learner.optimizer, now):
                found[f"moments of {name} are not cleared"] = (torch.stack(moments).ne(0) & changed).any()
            if now in targets:
                found[f"{name} is another in the target network"] = (targets[now].ne(now) & changed).any()
        if not found:
            return ""
        wrong = torch.stack(list(found.values())).tolist()  # one read from the device
        return next((sentence for sentence, is_wrong in zip(found, wrong) if is_wrong), "")

    def _kept(self) -> list[tuple[str, nn.Parameter, Tensor]]:
        """Name, value and former value of each parameter that was there before."""
        named = self.learner.network.named_parameters()
        return [(name, now, self.before[now]) for name, now in named if now in self.before]


def moments_of(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """What an optimizer remembers of each entry of a parameter, such as Adam's moments."""
    state = optimizer.state.get(parameter, {}).values()
    return [value for value in state if isinstance(value, Tensor) and value.shape == parameter.shape]


def in_both(learner: Learner, tensor: Tensor) -> list[Tensor]:
    """A parameter or buffer of the network, and the target network's, if there is one."""
    target = targets_of(learner).get(tensor)
    return [tensor] if target is None else [tensor, target]


def targets_of(learner: Learner) -> dict[Tensor, Tensor]:
    """The target network's tensor of each parameter and buffer of the network."""
    if learner.target is None:
        return {}
    pairs = [[*network.parameters(), *network.buffers()] for network in (learner.network, learner.target)]
    return dict(zip(*pairs, strict=True))
