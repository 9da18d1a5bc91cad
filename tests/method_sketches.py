"""C-CHAIN in one piece, without a line in any agent: what the interface of methods can do."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from neoteny.optim.layers import Network
from neoteny.optim.methods import Learner, Method, MethodConfig, Seen


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
