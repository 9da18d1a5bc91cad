"""Layers whose weight is orthogonal in every forward pass, by Björck's iteration.

The hard limit of isometry: all singular values are 1, whatever the optimizer does, while `AdamO` only pulls
them there. Of a convolution it is the kernel as a matrix `(out, in * height * width)` that is orthogonal,
which bounds the operator but makes it no isometry. A matrix that is not square has orthonormal rows or
columns, whichever are fewer.

    layer = orthogonalize(nn.Linear(64, 64))
    optimizer = torch.optim.Adam(layer.parameters())

Björck and Bowie, "An iterative algorithm for computing the best estimate of an orthogonal matrix", 1971; in
networks, Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", ICML 2019; the variant here
is the "NS" of A. Rosseau, R. Müller, A. Nowé, "Preserving Plasticity in Continual Learning via Dynamical
Isometry", ICML 2026, appendix B.1, but for the norm by which weights are divided (see `orthogonal_factor`).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from neoteny.optim.isometry import gram_matrix, matrix_view
from neoteny.optim.methods import Event, Learner, Method, MethodConfig

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

ITERATIONS = 7
"""Of a forward pass, as in the paper."""

EXACT_ITERATIONS = 40
"""Enough for every singular value that float32 tells from zero: the smallest grow by a factor of 1.5 each."""

REORTHOGONALIZE_EVERY = 10_000
"""Optimizer steps after which raw weights are replaced by the orthogonal ones, as in the paper. At Adam's
learning rate of 1e-3 a raw weight's condition number is then about 5, within reach of a forward pass; at 1e-2
it is beyond that after 1,000 steps, and had better be renewed more often."""


def orthogonal_factor(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """The orthogonal factor U V^T of W = U S V^T: differentiable, by products of matrices alone.

    An iteration takes W to 1.5 W - 0.5 W W^T W, and so each singular value sigma to sigma (1.5 - 0.5
    sigma^2). From any start below sqrt(3) this tends to 1, and from the first iteration on never exceeds it;
    beyond sqrt(3) it flips the sign, and beyond sqrt(5) it diverges.

    Therefore W is divided first, by a bound of its spectral norm from above, over sqrt(2). The square of its
    Gram matrix G gives two: sigma_max^4 is at most ||G^2||_inf, which is sharp near orthogonal matrices, and
    at most ||G^2||_F, which exceeds it by a factor of r^(1/2) or less, r being the smaller side. So the
    largest singular value starts at sqrt(2) or below, and above sqrt(2) / r^(1/8): 0.84 for r = 64, 0.65 for
    r = 512. A power iteration, the paper's choice, is cheaper, but a bound from below: a large step of the
    optimizer outruns it. It also has a state, by which a network would act otherwise than it is trained.

    Seven iterations bring all singular values to within 1e-3 of 1 if the smallest is at least 0.2 of the
    largest. Smaller ones are left below 1: at r = 64, 0.1 of the largest arrives at 0.97, 0.05 at 0.74, 0.01
    at 0.18. Those that are 0 stay 0, a matrix of zeros stays one, and a NaN or an infinity gives NaN.

    Args:
        matrix: W, `(out, in)`, float32 or float64, of any scale.
        iterations: how many.

    Returns:
        `(out, in)`, of the same type. Its gradient does not see the scale of W.
    """
    # Any scale will do here, and so needs no gradient: it only keeps the products below representable.
    largest = matrix.detach().abs().amax()
    matrix = matrix / largest.masked_fill(largest == 0, 1.0)
    gram = gram_matrix(matrix)
    square = gram @ gram
    bound = torch.minimum(square.abs().sum(0).amax(), torch.linalg.matrix_norm(square))
    # With a largest entry of 1 it is at least 1, but for a matrix of zeros.
    matrix = matrix * (math.sqrt(2) / bound.clamp(min=1.0) ** 0.25)
    for _ in range(iterations):
        gram = gram_matrix(matrix)
        if matrix.shape[0] >= matrix.shape[1]:
            matrix = torch.addmm(matrix, matrix, gram, beta=1.5, alpha=-0.5)
        else:
            matrix = torch.addmm(matrix, gram, matrix, beta=1.5, alpha=-0.5)
    return matrix


class Bjorck(nn.Module):
    """Parametrization of a weight by a raw one, of which it is the orthogonal factor.

    A function of the raw weight alone, the same in training and evaluation. Without gradients, as an agent
    acts, it is computed once for each raw weight. Under autocast it keeps the weight's precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Raw weight -> orthogonal weight, both `(out, in)` or `(out, in, height, width)`."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return _orthogonal_weight(weight)
        # Looked up by value, since fused optimizers change weights without counting their version.
        last = self._last
        if last is None or last[0].device != weight.device or last[0].dtype != weight.dtype:
            last = None
        if last is None or not torch.equal(last[0], weight):
            with torch.inference_mode(False), torch.no_grad():
                last = self._last = weight.clone(), _orthogonal_weight(weight)
        return last[1]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The raw weight of a layer whose weight is set: its orthogonal factor, whatever its condition."""
        return _orthogonal_weight(weight, EXACT_ITERATIONS)


def _orthogonal_weight(weight: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """The orthogonal factor of a weight's matrix, in the weight's shape and memory format."""
    matrix = matrix_view(weight)
    with torch.autocast(weight.device.type, enabled=False):
        matrix = orthogonal_factor(matrix, iterations)
    if weight.is_contiguous():
        return matrix.view_as(weight)
    out, channels, *kernel = weight.shape
    return matrix.view(out, *kernel, channels).movedim(-1, 1)


def orthogonalize(layer: Layer) -> Layer:
    """Make a layer's weight orthogonal in every forward pass, in place.

    The layer's `weight` is then computed; the parameter that is trained is the raw weight,
    `layer.parametrizations.weight.original`, which begins as the orthogonal factor of what the weight was.
    Biases stay free.

    Args:
        layer: linear or convolutional, float32 or float64; channels last stays channels last.

    Returns:
        The layer.
    """
    parametrize.register_parametrization(layer, "weight", Bjorck())
    return layer


class Reorthogonalization(Method):
    """Keeps the raw weights of orthogonal layers near orthogonal.

    A layer does not see the scale of its raw weight. Gradients are orthogonal to it, so that it grows, and
    its singular values drift apart, until the iteration of a forward pass no longer suffices. Therefore raw
    weights are replaced by their orthogonal factors every so many gradient steps. That leaves the layer as it
    is, but for singular values which the iteration had left below 1.

    Adam's moments are not touched. A raw weight that shrinks by some factor has gradients that are larger by
    it: the moments are too small at first, and steps too large, until the average of squares has caught up,
    after about 1 / (1 - beta2) steps.

    Raises:
        ValueError: the learner has no orthogonal layer in the part that this is on.
    """

    def __init__(self, learner: Learner, every: int = REORTHOGONALIZE_EVERY, on: str = "all") -> None:
        self.learner, self.every, self.part = learner, every, on
        if not self._weights():
            raise ValueError(
                f"reorthogonalize finds no orthogonal layer on {on}: --network.linear orthogonal"
            )

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """Replace the raw weights."""
        for weight in self._weights():
            weight.copy_(_orthogonal_weight(weight, EXACT_ITERATIONS))
        return {}

    def _weights(self) -> list[Tensor]:
        layers = (layer.module for layer in self.learner.layers(self.part))
        return [raw_weight(layer) for layer in layers if is_orthogonal(layer)]


@dataclass(frozen=True)
class ReorthogonalizeConfig(MethodConfig):
    """Replace the raw weights of orthogonal layers by their orthogonal factors now and then.

    Networks with orthogonal layers have it by default, so its flags only change how.
    """

    name: ClassVar[str] = "reorthogonalize"

    every: int = REORTHOGONALIZE_EVERY
    """Gradient steps from one time to the next."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")

    def build(self, learner: Learner) -> Reorthogonalization:
        """The method, for one network."""
        return Reorthogonalization(learner, self.every, self.on)


def is_orthogonal(module: nn.Module) -> bool:
    """Whether a layer's weight is orthogonal in every forward pass."""
    computed = getattr(module, "parametrizations", {})
    return "weight" in computed and isinstance(computed["weight"][0], Bjorck)


def raw_weight(layer: nn.Module) -> nn.Parameter:
    """The parameter of which an orthogonal layer's weight is computed."""
    return layer.parametrizations.weight.original  # type: ignore[return-value, union-attr]
