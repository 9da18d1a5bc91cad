"""Plasticity methods that add a term to the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from neoteny.optim.isometry import gram_penalty
from neoteny.optim.methods import Learner, Method, MethodConfig


class IsometryPenalty(Method):
    r"""The coupled form of the pull towards isometry: :math:`\lambda \sum_l \|G_l - s I\|_F^2` in the loss.

    A. Rosseau, R. Müller, A. Nowé, "Preserving Plasticity in Continual Learning via Dynamical Isometry", ICML
    2026, eqs. 16 to 18. The optimizer rescales its gradient, 4 (W W^T W - s W), together with the loss's, so
    coefficients are not comparable with AdamO's. The paper does not say whether it is clipped together with
    the gradient of the loss; here it is not, since its norm often exceeds the norm to which PPO clips.

    It applies to the weights of hidden layers, but not to parametrized (orthogonal) ones.

    Raises:
        ValueError: there is no such weight, or the optimizer already pulls weights towards isometry.
    """

    def __init__(self, learner: Learner, coef: float, scale: float, on: str = "all") -> None:
        self.learner, self.coef, self.scale, self.part = learner, coef, scale, on
        if any(group.get("iso") for group in learner.optimizer.param_groups):
            raise ValueError(
                "AdamO's pull is the isometry penalty in another form: use optim:adam, or --optim.iso 0"
            )
        if not self._weights():
            raise ValueError(f"the isometry penalty finds no hidden weight to act on, on {on}")

    def penalty(self, batch: Any) -> Tensor:
        """The penalty, ()."""
        return self.coef * gram_penalty(self._weights(), self.scale)

    def _weights(self) -> list[Tensor]:
        hidden = (layer for layer in self.learner.layers(self.part) if not layer.is_head)
        return [layer.weight for layer in hidden if layer.weight is not None]


@dataclass(frozen=True)
class IsometryConfig(MethodConfig):
    """Isometry penalty on Gram matrices as a term of the loss, for optimizers other than AdamO."""

    name: ClassVar[str] = "isometry"

    coef: float = 1e-3
    """Coefficient of the penalty; not comparable with AdamO's iso, which bypasses the moments."""
    scale: float = 2.0
    """Target of the squared singular values: 2 for ReLU layers initialized with gain sqrt(2), else 1."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not (0.0 < self.coef < float("inf") and 0.0 < self.scale < float("inf")):
            raise ValueError(f"coef and scale must be finite and positive, not {self.coef} and {self.scale}")

    def build(self, learner: Learner) -> IsometryPenalty:
        """The method for a network."""
        return IsometryPenalty(learner, self.coef, self.scale, self.on)
