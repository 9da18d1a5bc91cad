"""Penalties on singular values of weights: the isometry penalty, Parseval and spectral regularization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from neoteny.optim.isometry import gram_penalty, matrix_view
from neoteny.optim.layers import Layer
from neoteny.optim.methods import Learner, MethodConfig, check_fields
from neoteny.optim.regularizers import Penalty, hidden_layers

WARM_UP = 20
"""Power iterations before the first gradient step."""


class SpectrumPenalty(Penalty):
    """Base class of penalties on the singular values of hidden weights.

    Raises:
        ValueError: there is no such weight, or the optimizer already pulls weights towards isometry.
    """

    name: ClassVar[str]

    def __init__(self, learner: Learner, coef: float, part: str) -> None:
        super().__init__(learner, coef, part)
        if any(group.get("iso") for group in learner.optimizer.param_groups):
            raise ValueError(
                f"{self.name} and the optimizer's pull both set singular values: use optim:adam, or "
                "--optim.iso 0"
            )
        if not hidden_layers(learner, part):
            raise ValueError(f"{self.name} finds no hidden weight to act on, on {part}")


class IsometryPenalty(SpectrumPenalty):
    r"""The coupled form of the pull towards isometry: :math:`\lambda \sum_l \|G_l - s I\|_F^2` in the loss.

    A. Rosseau, R. Müller, A. Nowé, "Preserving Plasticity in Continual Learning via Dynamical Isometry", ICML
    2026, eqs. 16 to 18. The optimizer rescales its gradient, 4 (W W^T W - s W), together with the loss's, so
    coefficients are not comparable with AdamO's. The paper does not say whether it is clipped together with
    the gradient of the loss; here it is not, since its norm often exceeds the norm to which PPO clips.

    It applies to the weights of hidden layers, but not to parametrized (orthogonal) ones.
    """

    name = "isometry"

    def __init__(self, learner: Learner, coef: float, scale: float, part: str = "all") -> None:
        super().__init__(learner, coef, part)
        self.scale = scale

    def penalty(self, batch: Any) -> Tensor:
        """The penalty, ()."""
        weights = [layer.module.weight for layer in hidden_layers(self.learner, self.part)]
        return self.coef * gram_penalty(weights, self.scale)


@dataclass(frozen=True)
class IsometryConfig(MethodConfig):
    """Isometry penalty on Gram matrices as a term of the loss, for optimizers other than AdamO."""

    name: ClassVar[str] = IsometryPenalty.name
    conflicts: ClassVar[tuple[str, ...]] = ("parseval", "spectral")

    coef: float = 1e-3
    """Coefficient of the penalty; not comparable with AdamO's iso, which bypasses the moments."""
    scale: float = 2.0
    """Target of the squared singular values: 2 for ReLU layers initialized with gain sqrt(2), else 1."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("coef", "scale"), above=0)

    def build(self, learner: Learner) -> IsometryPenalty:
        """The method for a network."""
        return IsometryPenalty(learner, self.coef, self.scale, self.on)


class Parseval(SpectrumPenalty):
    r"""Parseval regularization: :math:`\lambda \sum_l (64 / n_l)^2 \|W_l W_l^\top - s I\|_F^2` in the loss.

    W. Chung, L. Cherif, D. Precup, D. Meger, "Parseval Regularization for Continual Reinforcement Learning",
    NeurIPS 2024, eq. 1. It applies to the weights of hidden layers and is clipped with the loss, as in the
    authors' code. That has one width :math:`n` for all layers; here it is the number of a layer's units. It
    has no convolutions; here their kernels are matrices `(out, in * k * k)`. The optional diagonal layers and
    input scales of the paper are left out.

    The Gram matrix is that of the smaller side. This changes the penalty of a weight with more rows than
    columns by a constant and no gradient.
    """

    name = "parseval"
    clipped = True

    def __init__(self, learner: Learner, coef: float, scale: float, part: str) -> None:
        super().__init__(learner, coef, part)
        self.scale = scale

    def penalty(self, batch: Any) -> Tensor:
        """The penalty, ()."""
        layers = hidden_layers(self.learner, self.part)
        penalties = [
            (64 / layer.units) ** 2 * gram_penalty([layer.module.weight], self.scale) for layer in layers
        ]
        return self.coef * torch.stack(penalties).sum()


@dataclass(frozen=True)
class ParsevalConfig(MethodConfig):
    """Parseval regularization: rows of hidden weights are kept orthogonal, by a term of the loss."""

    name: ClassVar[str] = Parseval.name
    conflicts: ClassVar[tuple[str, ...]] = ("isometry", "spectral")

    coef: float = 1e-3
    """Coefficient for 64 units; the paper has 1e-3 on gridworlds and MetaWorld, else 1e-4."""
    scale: float = 2.0
    """Target of the squared singular values: the square of the initial gain."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("coef", "scale"), above=0)

    def build(self, learner: Learner) -> Parseval:
        """The method for a network."""
        return Parseval(learner, self.coef, self.scale, self.on)


class Spectral(SpectrumPenalty):
    r"""Spectral regularization: :math:`\lambda \sum_l (\sigma_1(W_l)^k - 1)^2 + \|b_l\|^{2k}` in the loss.

    A. Lewandowski et al., "Learning Continually by Spectral Regularization", ICLR 2025. It applies to all
    layers, heads included. :math:`\sigma_1` comes from a power iteration, whose vector is kept from one
    gradient step to the next: a single iteration from a fixed vector, as in some code, would give a value
    that is up to 29 % too low. A kernel of a convolution is a matrix `(out, in * k * k)`.
    """

    name = "spectral"

    def __init__(self, learner: Learner, coef: float, power: int, heads: bool, part: str) -> None:
        super().__init__(learner, coef, part)
        self.power, self.heads = power, heads
        with torch.no_grad():
            for _ in range(WARM_UP):
                self.penalty(None)

    def penalty(self, batch: Any) -> Tensor:
        """The penalty, (), after one more power iteration."""
        sigmas, vectors = self._iterate()
        for name, vector in vectors.items():
            self.own[name].copy_(vector)
        return self._penalty(sigmas)

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """The penalty and the largest of the singular values that it acts on."""
        sigmas, _ = self._iterate()
        return {"penalty": self._penalty(sigmas), "sigma_max": torch.stack(sigmas).amax()}

    def state_dict(self) -> dict[str, Any]:
        """The vectors of the power iterations."""
        return {"vectors": self.own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the vectors."""
        device = next(self.learner.network.parameters()).device
        self.own = {name: vector.to(device) for name, vector in state["vectors"].items()}

    def _layers(self) -> list[Layer]:
        layers = self.learner.layers(self.part)
        return [
            layer
            for layer in layers
            if layer.weight is not None and layer.weight.requires_grad and (self.heads or not layer.is_head)
        ]

    def _iterate(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """One power iteration from the kept vectors.

        Returns:
            The largest singular value of each layer, (), with the gradient u v^T; and u, (out,), by layer.
        """
        sigmas, vectors = [], {}
        for layer in self._layers():
            matrix, kept = matrix_view(layer.module.weight), self._vector(layer)
            image = matrix @ F.normalize(matrix.detach().T @ kept, dim=0)
            left = F.normalize(image.detach(), dim=0)
            # A weight of zeros has no singular vectors, and may become another.
            left = torch.where(left.any(), left, kept)
            sigmas.append(left @ image)
            vectors[layer.name] = left
        return sigmas, vectors

    def _vector(self, layer: Layer) -> Tensor:
        """The kept vector of a layer, (out,); of one that is new, a random one."""
        if layer.name not in self.own:
            start = torch.randn(layer.units, generator=torch.Generator().manual_seed(0))
            self.own[layer.name] = F.normalize(start, dim=0).to(layer.module.weight)
        return self.own[layer.name]

    def _penalty(self, sigmas: list[Tensor]) -> Tensor:
        biases = (layer.module.bias for layer in self._layers())
        terms = [(sigma**self.power - 1).square() for sigma in sigmas]
        terms += [bias.square().sum() ** self.power for bias in biases if bias is not None]
        return self.coef * torch.stack(terms).sum()


@dataclass(frozen=True)
class SpectralConfig(MethodConfig):
    """Spectral regularization: the largest singular value of each weight is kept near 1."""

    name: ClassVar[str] = Spectral.name
    conflicts: ClassVar[tuple[str, ...]] = ("isometry", "parseval")

    coef: float = 1e-3
    """Coefficient of the penalty."""
    power: int = 2
    """The exponent k."""
    heads: bool = True
    """Regularize heads too, as in the paper."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("coef",), above=0)
        check_fields(self, ("power",), above=0, at_most=100)

    def build(self, learner: Learner) -> Spectral:
        """The method for a network."""
        return Spectral(learner, self.coef, self.power, self.heads, self.on)
