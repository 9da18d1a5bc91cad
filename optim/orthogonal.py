"""Layers whose weight is orthogonal in every forward pass, by Björck's iteration.

A hard constraint: all singular values are 1 whatever the optimizer does, while `AdamO` only pulls them
towards that. For a convolution, the kernel as a matrix `(out, in * height * width)` is orthogonal; this
bounds the operator's norm but does not make it an isometry. A matrix that is not square has orthonormal rows
or columns, whichever are fewer.

    layer = orthogonalize(nn.Linear(64, 64))
    optimizer = torch.optim.Adam(layer.parameters())

Björck and Bowie, "An iterative algorithm for computing the best estimate of an orthogonal matrix", 1971; in
networks, Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", ICML 2019. The variant here
is "NS" of A. Rosseau, R. Müller, A. Nowé, "Preserving Plasticity in Continual Learning via Dynamical
Isometry", ICML 2026, appendix B.1, except for the norm that divides the weights (see `orthogonal_factor`).
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
"""Björck iterations per forward pass, as in the paper."""

EXACT_ITERATIONS = 40
"""Enough for any nonzero singular value in float32: small ones grow by a factor of 1.5 per iteration."""

REORTHOGONALIZE_EVERY = 10_000
"""Optimizer steps after which raw weights are replaced by the orthogonal ones, as in the paper. With Adam at
a learning rate of 1e-3 a raw weight's condition number is then about 5, for which the iterations of a forward
pass suffice. At 1e-2 they no longer suffice after 1,000 steps: replace weights more often."""

MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "momentum_buffer": 1}
"""Moments of gradients in the states of optimizers, with the power of the gradient that each is of."""


def orthogonal_factor(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """The orthogonal factor U V^T of W = U S V^T: differentiable, by matrix products only.

    An iteration maps W to 1.5 W - 0.5 W W^T W, and thus each singular value sigma to sigma (1.5 - 0.5
    sigma^2). Starting below sqrt(3), a singular value converges to 1 and does not exceed it after the first
    iteration; above sqrt(3) it changes sign, and above sqrt(5) it diverges.

    Therefore W is first divided by an upper bound of its spectral norm over sqrt(2). The square of its Gram
    matrix G gives two bounds: sigma_max^4 is at most ||G^2||_inf, which is tight near orthogonal matrices,
    and at most ||G^2||_F, which exceeds sigma_max^4 by a factor of at most r^(1/2), where r is the smaller
    side. So the largest singular value starts at or below sqrt(2), and above sqrt(2) / r^(1/8): 0.84 for
    r = 64, 0.65 for r = 512. The paper's power iteration is cheaper, but gives a lower bound, which a large
    optimizer step can exceed. It also has a state, so that training and evaluation could differ.

    Seven iterations bring all singular values to within 1e-3 of 1 if the smallest is at least 0.2 of the
    largest. Smaller ones stay below 1: at r = 64, 0.1 of the largest reaches 0.97, 0.05 reaches 0.74, 0.01
    reaches 0.18. Singular values of 0 stay 0, and a NaN or an infinity gives NaN.

    Args:
        matrix: W, `(out, in)`, float32 or float64, of any scale.
        iterations: number of iterations.

    Returns:
        `(out, in)`, of the same dtype. It does not depend on the scale of W: gradients are orthogonal to W.
    """
    # This scale only avoids overflow in the products below. It cancels, and so needs no gradient.
    largest = matrix.detach().abs().amax()
    matrix = matrix / largest.masked_fill(largest == 0, 1.0)
    gram = gram_matrix(matrix)
    square = gram @ gram
    bound = torch.minimum(square.abs().sum(0).amax(), torch.linalg.matrix_norm(square))
    # With a largest entry of 1 the bound is at least 1, except for a matrix of zeros.
    matrix = matrix * (math.sqrt(2) / bound.clamp(min=1.0) ** 0.25)
    for _ in range(iterations):
        gram = gram_matrix(matrix)
        if matrix.shape[0] >= matrix.shape[1]:
            matrix = torch.addmm(matrix, matrix, gram, beta=1.5, alpha=-0.5)
        else:
            matrix = torch.addmm(matrix, gram, matrix, beta=1.5, alpha=-0.5)
    return matrix


class Bjorck(nn.Module):
    """Parametrization that computes a weight as the orthogonal factor of a raw weight, which is trained.

    The result depends only on the raw weight, in training and evaluation alike. Without gradients, as when an
    agent acts, it is cached until the raw weight changes. Under autocast it keeps the weight's precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Raw weight -> orthogonal weight, both `(out, in)` or `(out, in, height, width)`."""
        if torch.is_grad_enabled() or _is_recorded(weight):
            return _orthogonal_weight(weight)
        # The cache compares values, since fused optimizers change weights without raising their version.
        last = self._last
        if last is None or last[0].device != weight.device or last[0].dtype != weight.dtype:
            last = None
        if last is None or not torch.equal(last[0], weight):
            with torch.inference_mode(False), torch.no_grad():
                last = self._last = weight.clone(), _orthogonal_weight(weight)
        return last[1]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The raw weight after assigning to the weight: its orthogonal factor, for any condition number."""
        return _orthogonal_weight(weight, EXACT_ITERATIONS)


def _is_recorded(weight: Tensor) -> bool:
    """Whether operations are compiled or recorded as a CUDA graph, and no value can be read."""
    return torch.compiler.is_compiling() or (weight.is_cuda and torch.cuda.is_current_stream_capturing())


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

    The layer's `weight` is then computed from the raw weight, `layer.parametrizations.weight.original`, which
    is the parameter that is trained. It is initialized with the orthogonal factor of the previous weight.
    Biases are not constrained.

    Args:
        layer: linear or convolutional, float32 or float64; channels-last format is kept.

    Returns:
        The layer.
    """
    parametrize.register_parametrization(layer, "weight", Bjorck())
    return layer


class Reorthogonalization(Method):
    """Keeps the raw weights of orthogonal layers near orthogonal.

    A layer's output does not depend on the scale of its raw weight. So gradients are orthogonal to the raw
    weight, whose norm grows and whose singular values drift apart, until the iterations of a forward pass no
    longer suffice. Therefore raw weights are replaced by their orthogonal factors every `every` gradient
    steps. This does not change the layer, except for singular values that had stayed below 1.

    If a raw weight shrinks by some factor, its gradients grow by the same factor. Therefore moments of
    gradients are scaled with it: else the second moment would be too small, and steps too large, for about
    1 / (1 - beta2) steps. What remains is that the same step turns a shorter weight more: the effective
    learning rate is again that of the start of the run, so accuracy dips if it had fallen much.

    Raises:
        ValueError: the part `on` has no orthogonal layer.
    """

    def __init__(self, learner: Learner, every: int = REORTHOGONALIZE_EVERY, on: str = "all") -> None:
        self.learner, self.every, self.part = learner, every, on
        if not self._weights():
            raise ValueError(
                f"reorthogonalize finds no orthogonal layer on {on}: use --network.linear orthogonal"
            )

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """Replace the raw weights, and scale their moments as their gradients."""
        for weight in self._weights():
            norm = torch.linalg.vector_norm(weight)
            weight.copy_(_orthogonal_weight(weight, EXACT_ITERATIONS))
            shrunk = norm / torch.linalg.vector_norm(weight).clamp(min=1e-12)  # 0 of a matrix of zeros
            state = self.learner.optimizer.state.get(weight, {})
            for name, power in MOMENTS.items():
                if name in state:
                    state[name].mul_(shrunk**power)
        return {}

    def _weights(self) -> list[Tensor]:
        layers = (layer.module for layer in self.learner.layers(self.part))
        return [raw_weight(layer) for layer in layers if is_orthogonal(layer)]


@dataclass(frozen=True)
class ReorthogonalizeConfig(MethodConfig):
    """Replace the raw weights of orthogonal layers by their orthogonal factors at intervals.

    Networks with orthogonal layers always use it; its flags change how.
    """

    name: ClassVar[str] = "reorthogonalize"

    every: int = REORTHOGONALIZE_EVERY
    """Gradient steps between two replacements."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")

    def build(self, learner: Learner) -> Reorthogonalization:
        """The method for a network."""
        return Reorthogonalization(learner, self.every, self.on)


def is_orthogonal(module: nn.Module) -> bool:
    """Whether a layer's weight is orthogonal in every forward pass."""
    computed = getattr(module, "parametrizations", {})
    return "weight" in computed and isinstance(computed["weight"][0], Bjorck)


def raw_weight(layer: nn.Module) -> nn.Parameter:
    """The trained parameter from which an orthogonal layer's weight is computed."""
    return layer.parametrizations.weight.original  # type: ignore[return-value, union-attr]
