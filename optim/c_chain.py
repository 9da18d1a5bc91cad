"""C-CHAIN: a penalty on how much a gradient step changes the outputs for other observations."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neoteny.optim.layers import Network
from neoteny.optim.methods import Learner, Method, MethodConfig, Seen, check_fields

HORIZON = 10_000
"""Gradient steps that C-CHAIN's running means remember."""


class CChain(Method):
    r"""C-CHAIN: reduces churn, the change of outputs for observations that a gradient step is not about.

    .. math::
        L + c \; D\big(f_{\theta_{t-1}}(B), f_{\theta_t}(B)\big), \qquad
        c = \alpha \; \overline{|L|} \; / \; \overline{D}

    H. Tang, J. Obando-Ceron, P. S. Castro, A. Courville, G. Berseth, "Mitigating Plasticity Loss in Continual
    Reinforcement Learning by Reducing Churn", ICML 2025. D is the KL divergence of a policy, and the mean
    squared change of values. As in the paper, PPO's policy alone is regularized unless `on` is critic. B is
    the minibatch of two gradient steps ago, which neither the last step nor this one was made on.

    Differences to the authors' code: it draws another minibatch for B; uses the cross-entropy for discrete
    policies, whose gradient is the same but whose mean contains the policy's entropy, so that its
    :math:`\alpha` is 10,000; takes the mean loss of PPO's policy, here that of the whole loss; and starts
    with a fixed c, here the running means have effect from the first step.

    Raises:
        ValueError: the network does not have one output for each of its parts.
    """

    clipped = True

    def __init__(self, learner: Learner, scale: float, part: str) -> None:
        self.learner, self.scale = learner, scale
        network = cast(Network, learner.network)
        self.parts = list(network.parts())
        self.part = next(iter(self.parts)) if part == "all" else part
        with torch.no_grad():
            outputs = len(_outputs(learner.network, network.example))
        if outputs != len(self.parts):
            raise ValueError(f"c_chain needs an output for each of {', '.join(self.parts)}, not {outputs}")
        # The networks of the last two gradient steps, the older one first.
        self.networks = [copy.deepcopy(learner.network).requires_grad_(False) for _ in range(2)]
        self.batches: list[Tensor] = []  # of the last two gradient steps, the older one first
        device = network.example.device
        self.steps = torch.zeros((), device=device)
        self.means = torch.zeros(2, device=device)  # running means of |L| and D

    def penalty(self, batch: Any) -> Tensor | float:
        """The penalty on the minibatch of two gradient steps ago, ()."""
        observations = batch.observations
        if not self.batches or self.batches[0].shape != observations.shape:
            self.batches = [observations.clone() for _ in range(2)]
        churn = self._churn(self.batches[0].clone())  # which the backward pass needs unchanged
        self.batches[0].copy_(self.batches[1])
        self.batches[1].copy_(observations)
        if (loss := self.learner.loss) is None:
            return 0.0
        values = torch.stack((loss.abs(), churn.detach()))
        # The mean of all values so far, later an exponential moving average.
        self.steps += 1
        self.means.lerp_(values, (1 / self.steps).clamp(min=1 / HORIZON))
        return self.scale * self.means[0] / (self.means[1] + 1e-8) * churn

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Keep the network."""
        older, newer, now = (
            list[Tensor](network.parameters()) for network in (*self.networks, self.learner.network)
        )
        torch._foreach_copy_(older, newer)
        torch._foreach_copy_(newer, now)

    def metrics(self) -> dict[str, Tensor]:
        """The running mean of the churn."""
        return {"churn": self.means[1]}

    def state_dict(self) -> dict[str, Any]:
        """The earlier networks and minibatches, and the running means."""
        networks = [network.state_dict() for network in self.networks]
        return {"networks": networks, "batches": self.batches, "steps": self.steps, "means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        for network, saved in zip(self.networks, state["networks"]):
            network.load_state_dict(saved)
        self.batches = [batch.to(self.means.device) for batch in state["batches"]]
        self.steps.copy_(state["steps"])
        self.means.copy_(state["means"])

    def _churn(self, observations: Tensor) -> Tensor:
        """The change of the part's outputs by the last gradient step, ()."""
        index = self.parts.index(self.part)
        now = _outputs(self.learner.network, observations)[index]
        with torch.no_grad():
            before = _outputs(self.networks[0], observations)[index]
        if self.part == "actor":
            now, before = F.log_softmax(now, dim=1), F.log_softmax(before, dim=1)
            return F.kl_div(now, before, reduction="batchmean", log_target=True)
        return F.mse_loss(now, before)


@dataclass(frozen=True)
class CChainConfig(MethodConfig):
    """C-CHAIN: reduce how much a gradient step changes the outputs for other observations."""

    name: ClassVar[str] = "c_chain"
    conflicts: ClassVar[tuple[str, ...]] = ("injection", "injection_at_switch")

    scale: float = 0.01
    """Mean size of the penalty as a share of the loss's; the paper has 0.01 for DQN, 0.05 for PPO."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("scale",), above=0)

    def build(self, learner: Learner) -> CChain:
        """The method for a network."""
        return CChain(learner, self.scale, self.on)


def _outputs(network: nn.Module, observations: Tensor) -> tuple[Tensor, ...]:
    outputs = network(observations)
    return outputs if isinstance(outputs, tuple) else (outputs,)
