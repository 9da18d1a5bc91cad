"""Methods of which one can say what they should change."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from neoteny.optim import Learner, Method, MethodConfig
from neoteny.optim.methods import Seen


class Squares(Method):
    """Adds half the coefficient times all squared weights to the loss, and notes what is called."""

    def __init__(self, learner: Learner, coef: float, clipped: bool) -> None:
        self.learner, self.coef, self.clipped = learner, coef, clipped
        self.calls: list[str] = []
        self.batches: list[Any] = []
        self.weights: list[Tensor] = []

    def penalty(self, batch: Any) -> Tensor:
        self.calls.append("penalty")
        self.batches.append(batch)
        self.note_weights()
        return 0.5 * self.coef * sum(weight.square().sum() for weight in self.learner.network.parameters())

    def after_step(self, seen: Seen) -> None:
        self.calls.append("after_step")
        self.note_weights()

    def note_weights(self) -> None:
        parameters = self.learner.network.parameters()
        self.weights.append(torch.cat([weight.detach().flatten() for weight in parameters]))


@dataclass(frozen=True)
class SquaresConfig(MethodConfig):
    name: ClassVar[str] = "squares"

    coef: float = 0.1
    clipped: bool = False

    def build(self, learner: Learner) -> Squares:
        return Squares(learner, self.coef, self.clipped)


def stepped(
    weights: list[Tensor], gradients: list[Tensor], penalties: list[Tensor], config: SquaresConfig | None,
    max_norm: float, step: str, lr: float,
) -> tuple[list[Tensor], float]:  # fmt: skip
    """By hand: the weights after a first step of SGD or Adam, and the norm of the gradient that is clipped.

    Args:
        weights: Before the step.
        gradients: Of the loss.
        penalties: Of the penalty; unclipped ones do not count in the norm.
        config: Of the method; None without one.
        max_norm: To which gradients are clipped.
        step: "sgd" or "adam".
        lr: Learning rate.
    """
    if config and config.clipped:
        gradients = [gradient + penalty for gradient, penalty in zip(gradients, penalties)]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item()
    gradients = [gradient * min(1.0, max_norm / (norm + 1e-6)) for gradient in gradients]
    if config and not config.clipped:
        gradients = [gradient + penalty for gradient, penalty in zip(gradients, penalties)]
    # Adam's first step has the moments' corrections undo their decay.
    moves = gradients if step == "sgd" else [gradient / (gradient.abs() + 1e-8) for gradient in gradients]
    return [weight - lr * move for weight, move in zip(weights, moves)], norm
