"""Plasticity methods that put weights back into a set after the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from neoteny.optim.layers import Layer
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Seen, check_fields
from neoteny.optim.regularizers import hidden_layers


class WeightClipping(Method):
    r"""Clips every weight and bias of a layer to :math:`\pm \kappa / \sqrt{n}`, n being the layer's fan-in.

    M. Elsayed, Q. Lan, C. Lyle, A. R. Mahmood, "Weight Clipping for Deep Continual and Reinforcement
    Learning", RLC 2024, algorithm 1. :math:`\pm 1 / \sqrt n` is the range of torch's default initialization.

    Raises:
        ValueError: there is no layer whose weight is trained as it is.
    """

    def __init__(self, learner: Learner, kappa: float, heads: bool, part: str) -> None:
        self.learner, self.kappa, self.heads, self.part = learner, kappa, heads, part
        device = next(learner.network.parameters()).device
        self.counts = torch.zeros(2, device=device)  # weights and biases clipped: in the last step, in all
        if not hidden_layers(learner, part):
            raise ValueError(f"weight_clipping finds no hidden weight to act on, on {part}")

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Clip the weights, and count those that were out of range."""
        bounds = list(self._bounds())
        beyond = torch.stack([(tensor.abs() > bound).sum() for tensor, bound in bounds]).sum()
        self.counts[0].copy_(beyond)
        self.counts[1].add_(beyond)
        for tensor, bound in bounds:
            tensor.clamp_(-bound, bound)

    def metrics(self) -> dict[str, Tensor]:
        """The share of weights and biases that the last step clipped."""
        return {"clipped": self.counts[0] / sum(tensor.numel() for tensor, _ in self._bounds())}

    def acted(self) -> bool:
        """Whether anything was ever clipped."""
        return bool(self.counts[1] > 0)

    def state_dict(self) -> dict[str, Any]:
        """How many were clipped."""
        return {"clipped": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the numbers."""
        self.counts.copy_(state["clipped"])

    def _bounds(self) -> Iterator[tuple[Tensor, float]]:
        for layer in self.learner.layers(self.part):
            if layer.weight is not None and (self.heads or not layer.is_head):
                bound = self.kappa / math.sqrt(layer.weight[0].numel())
                yield from ((tensor, bound) for tensor in layer.module.parameters() if tensor.requires_grad)


@dataclass(frozen=True)
class WeightClippingConfig(MethodConfig):
    """Weight clipping: no weight or bias leaves the range kappa / sqrt(fan-in) after a gradient step."""

    name: ClassVar[str] = "weight_clipping"
    conflicts: ClassVar[tuple[str, ...]] = ("nap",)

    kappa: float = 2.0
    """Bound in units of 1 / sqrt(fan-in); the paper tries 1 to 5."""
    heads: bool = True
    """Clip heads too."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("kappa",), above=0)

    def build(self, learner: Learner) -> WeightClipping:
        """The method for a network."""
        return WeightClipping(learner, self.kappa, self.heads, self.on)


class NaP(Method):
    r"""Normalize and project: :math:`W \leftarrow W \, \|W_0\|_F / \|W\|_F` for hidden weights.

    C. Lyle et al., "Normalization and Effective Learning Rates in Reinforcement Learning", NeurIPS 2024. The
    normalization of a layer's output hides the size of its weight, but a weight that grows is changed less by
    each step: without projection its effective learning rate decays. A bias is scaled by the same factor, so
    that the projection does not change the network's function. Heads, which are not normalized, stay free.

    Raises:
        ValueError: a hidden layer is not normalized, its weight is parametrized, or the optimizer pulls
            weights towards isometry.
    """

    def __init__(self, learner: Learner, every: int, part: str) -> None:
        self.learner, self.part = learner, part
        # At every step it is a part of the step itself, and captured with it.
        self.every = 0 if every == 1 else every
        if any(group.get("iso") for group in learner.optimizer.param_groups):
            raise ValueError("nap and the optimizer's pull both set the size of weights: use optim:adam")
        hidden = [layer for layer in learner.layers(part) if not layer.is_head]
        if free := [layer.name for layer in hidden if not layer.normalizations]:
            advice = "use --network.norm layer, and no transformer"
            raise ValueError(f"nap needs normalized layers, not {free[0]}: {advice}")
        if not hidden_layers(learner, part):
            raise ValueError(f"nap finds no hidden weight to act on, on {part}")
        self.norms = {layer.name: _norm(layer) for layer in hidden_layers(learner, part)}
        self.growth = torch.ones_like(next(iter(self.norms.values())))

    def after_step(self, seen: Seen) -> None:
        """Project the weights, if that is due at every step."""
        if not self.every:
            self._project()

    def on(self, event: Event) -> dict[str, float]:
        """Project the weights."""
        self._project()
        return {}

    def metrics(self) -> dict[str, Tensor]:
        """The growth of norms before the last projection: the mean over layers of ||W|| / ||W0||."""
        return {"growth": self.growth}

    def state_dict(self) -> dict[str, Any]:
        """The initial norms."""
        return {"norms": self.norms, "growth": self.growth}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial norms."""
        for name, norm in self.norms.items():
            norm.copy_(state["norms"][name])
        self.growth.copy_(state["growth"])

    @torch.no_grad()
    def _project(self) -> None:
        layers = hidden_layers(self.learner, self.part)
        growths = torch.stack([_norm(layer) / self.norms[layer.name] for layer in layers])
        for layer, growth in zip(layers, growths.unbind()):
            for parameter in layer.module.parameters():
                parameter.div_(growth)
        self.growth.copy_(growths.mean())


def _norm(layer: Layer) -> Tensor:
    """Frobenius norm of a layer's weight, ()."""
    return torch.linalg.vector_norm(layer.module.weight.detach())


@dataclass(frozen=True)
class NaPConfig(MethodConfig):
    """Normalize and project: hidden weights keep their initial norm; needs `--network.norm layer`."""

    name: ClassVar[str] = "nap"
    conflicts: ClassVar[tuple[str, ...]] = (
        "isometry", "l2", "l2_init", "parseval", "spectral", "injection", "injection_at_switch",
    )  # fmt: skip

    every: int = 1
    """Gradient steps between two projections."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("every",), above=0)

    def build(self, learner: Learner) -> NaP:
        """The method for a network."""
        return NaP(learner, self.every, self.on)
