"""Dynamical isometry of weight matrices: the penalty, its gradient, and the parameters it applies to.

A layer preserves the norm of signals and gradients if all singular values of its weight matrix W are equal.
The penalty of A. Rosseau, R. Müller, A. Nowé, "Preserving Plasticity in Continual Learning via Dynamical
Isometry", ICML 2026, eqs. 16 to 18, measures the distance from this, by the Gram matrix G of the smaller side
of W:

    R(W) = ||G - s I||_F^2 = sum_i (sigma_i^2 - s)^2,        dR/dW = 4 (W W^T W - s W),

with s = 1 in the paper; s = 2 suits ReLU layers, which halve the mean square. There is no factor 1/2 in
front: with one, the same coefficient would pull half as strongly. Both Gram matrices, W W^T and W^T W, give
the same gradient, so the smaller one is used for its lower cost.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neoteny.optim.layers import Exclude, split_parameters

# The isometry budget is c * steps. Below the minimum even the largest singular values hardly move; above the
# maximum the pull dominates and networks stop fitting their task. The paper's experiments use 0.5 to 8.
MIN_BUDGET = 0.1
MAX_BUDGET = 30.0


Scale: TypeAlias = float | Literal["aspect"]
"""Target s of the squared singular values: a number, or "aspect" for rows / columns of each matrix.

With the second, a matrix preserves the mean square of the entries of a signal, and not their sum.
"""


def target_scale(weight: Tensor, scale: Scale) -> float:
    """The target s of the squared singular values of a weight `(out, in)` or `(out, in, *kernel)`."""
    return len(weight) / weight[0].numel() if isinstance(scale, str) else scale


def matrix_view(weight: Tensor, stacked: bool = False) -> Tensor:
    """View a weight as a matrix, whose singular values isometry is about.

    Args:
        weight: of a linear layer `(out, in)` or of a convolution `(out, in, *kernel)`; contiguous or channels
            last.
        stacked: whether it is a stack of K weights `(K, out, ...)`, contiguous; it becomes one of matrices.

    Returns:
        `(out, in * prod(kernel))`, sharing memory with `weight` (paper, appendix A). In channels-last format
        the columns are in another order, which does not change the singular values.

    Raises:
        ValueError: if `weight` has less than two dimensions.
        RuntimeError: if its memory layout does not allow such a view.
    """
    if stacked:
        return weight.view(*weight.shape[:2], -1)
    if weight.ndim < 2:
        raise ValueError(f"isometry needs a matrix or a convolution kernel, got shape {tuple(weight.shape)}")
    if weight.ndim == 2:
        return weight
    if not weight.is_contiguous():
        weight = weight.movedim(1, -1)
    return weight.view(weight.shape[0], -1)


def gram_matrix(matrix: Tensor) -> Tensor:
    """W^T W if `matrix` is tall or square, W W^T if it is wide: `(..., n, n)` with n the smaller side."""
    return matrix.mT @ matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix @ matrix.mT


def _residual(matrix: Tensor, gram: Tensor, scale: float) -> Tensor:
    """W W^T W - s W: as `matrix`, from the Gram matrix of the smaller side."""
    # Subtract s here: a factor 1 + 4cs on W would be rounded to 1 in float32 if c is small.
    add_product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    if matrix.shape[-2] >= matrix.shape[-1]:
        return add_product(matrix, matrix, gram, beta=-scale)
    return add_product(matrix, gram, matrix, beta=-scale)


def isometry_steps(
    matrices: list[Tensor], coefficient: float | Tensor, scale: Scale
) -> tuple[list[Tensor], Tensor]:
    """Guarded isometry steps, each as a direction and a divisor: W <- W - direction / (2 divisor).

    A step multiplies a singular value sigma by 1 - 4c (sigma^2 - s), which diverges if c is too large.
    Therefore c is bounded by 1 / (8 max(s, ||G||_inf - s)), where ||G||_inf, the largest absolute row sum of
    the Gram matrix, is an upper bound of sigma_max^2. With this no singular value ever moves away from
    sqrt(s). Nothing is read from the device.

    Args:
        matrices: L matrices `(out, in)`, or stacks of K `(K, out, in)`, float32 or float64.
        coefficient: c > 0, step size times penalty coefficient; a number, or `()` on the device.
        scale: the target s > 0 of the squared singular values, or "aspect".

    Returns:
        The directions W W^T W - s W, as the matrices, and the divisors 1 / (8 c_eff), `(L,)` or `(L, K)`,
        where c_eff is the bounded c. The guard is active where a divisor exceeds 1 / (8c).
    """
    if isinstance(scale, str):
        aspects = (each.shape[-2] / each.shape[-1] for each in matrices)
        steps = [isometry_steps([each], coefficient, aspect) for each, aspect in zip(matrices, aspects)]
        return [direction for (direction,), _ in steps], torch.cat([divisors for _, divisors in steps])
    grams = [gram_matrix(matrix) for matrix in matrices]
    # One vector for all matrices: in small networks kernel launches dominate the cost.
    row_sums = torch.stack([gram.abs().sum(-2).amax(-1) for gram in grams])
    bound = 0.125 / coefficient
    least = bound.clamp(min=scale) if isinstance(bound, Tensor) else max(scale, bound)
    divisors = row_sums.sub_(scale).clamp_(min=least)
    return [_residual(matrix, gram, scale) for matrix, gram in zip(matrices, grams)], divisors


def isometry_coefficient(group: dict[str, Any]) -> float | Tensor:
    """Coefficient c = iso_lr * iso of a step on a group, at its current learning rate; 0 without it.

    A tensor if the learning rate is one.
    """
    iso = group.get("iso", 0.0)
    return iso * group["lr"] * group["iso_lr_ratio"] if iso else 0.0


def isometry_penalty(module: nn.Module, scale: float = 1.0, exclude: Exclude = ()) -> Tensor:
    """The coupled form: the penalty as a differentiable term of the loss (paper, eqs. 16 to 18).

    Add `coefficient * isometry_penalty(network)` to the loss. Adam then rescales its gradient together with
    the loss's, so coefficients are not comparable with those of `AdamO`, whose pull is decoupled.

    Args:
        module: the network.
        scale: the target s of the squared singular values.
        exclude: submodules, or their names, that the penalty leaves out: usually output heads.

    Returns:
        The sum of ||G - s I||_F^2 over the trainable weights of linear and convolutional layers, `()`.

    Raises:
        ValueError: if an item of `exclude` is not a submodule.
    """
    return gram_penalty([weight for _, weight in split_parameters(module, exclude)[0]], scale)


def gram_penalty(weights: Iterable[Tensor], scale: float = 1.0) -> Tensor:
    """The sum of ||G - s I||_F^2 over weights `(out, in)` or `(out, in, *kernel)`, `()`; differentiable."""
    penalty = torch.zeros(())
    for weight in weights:
        gram = gram_matrix(matrix_view(weight))
        identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        penalty = penalty + (gram - scale * identity).square().sum()
    return penalty


def param_groups(module: nn.Module, exclude: Exclude = ()) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer with isometry: `AdamO(param_groups(network, exclude=[head]))`.

    Args:
        module: the network.
        exclude: submodules, or their names, that are trained without isometry. Exclude output heads: a
            policy head starts with gain 0.01, and a pull towards singular values of 1 counteracts that.

    Returns:
        A group of matrices and convolution kernels, which uses the optimizer's default `iso`, and a group
        with `iso=0` for everything else: biases, norms, embeddings and submodules in `exclude`. Parameters
        are named; frozen parameters and empty groups are left out.

    Raises:
        ValueError: if an item of `exclude` is not a submodule.
    """
    matrices, others = split_parameters(module, exclude)
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "iso": 0.0}]
    return [group for group in groups if group["params"]]


def _names(group: dict[str, Any]) -> list[str]:
    """Names of a group's parameters, or their shapes if the optimizer does not know names."""
    return group.get("param_names") or [str(tuple(p.shape)) for p in group["params"]]


def isometry_report(optimizer: Optimizer, planned_steps: int) -> str:
    """A summary, for the start of a run, of what isometry will do in `planned_steps` optimizer steps.

    Returns:
        For each group a line with the time constant 1 / (8cs) in steps, in which a singular value near
        sqrt(s) closes 63 % of its distance, and the isometry budget c * planned_steps at the initial learning
        rate. A line that begins with "warning:" follows if the budget is below 0.1, where the pull has no
        effect within the run, or above 30, where it keeps the network from fitting its task. Indented lines
        name the parameters that are pulled and those that are not. Empty without isometry.
    """
    pulled = [group for group in optimizer.param_groups if group.get("iso")]
    if not pulled:
        return ""
    left = [name for group in optimizer.param_groups if not group.get("iso") for name in _names(group)]
    lines = []
    for group in pulled:
        # A warm-up starts at a learning rate of zero; the scheduler stores the final one as initial_lr.
        c = float(isometry_coefficient({**group, "lr": group.get("initial_lr", group["lr"])}))
        budget = c * planned_steps
        scales = [target_scale(weight, group["iso_scale"]) for weight in group["params"]]
        times = sorted({1.0 / (8.0 * c * scale) if c else math.inf for scale in (min(scales), max(scales))})
        time_constant = " to ".join(f"{time:,.0f}" for time in times)
        lines += [
            f"isometry: time constant {time_constant} steps, "
            f"budget {budget:.3g} over {planned_steps:,} steps",
            f"    pulls {', '.join(_names(group))}",
        ]
        if budget < MIN_BUDGET:
            lines.append(
                f"warning: an isometry budget below {MIN_BUDGET:g} has no effect within this run: raise iso"
            )
        elif budget > MAX_BUDGET:
            lines.append(
                f"warning: an isometry budget above {MAX_BUDGET:g} keeps networks from learning: lower iso"
            )
    lines.append(f"    does not pull {', '.join(left)}" if left else "    pulls all parameters")
    return "\n".join(lines)


@torch.no_grad()
def pull_norm(optimizer: Optimizer) -> Tensor:
    """Norm of an optimizer's isometry step at the current weights, averaged per optimizer step.

    Returns:
        The Frobenius norm, over all isometry groups, of c_eff * 4 (W W^T W - s W), `()`, on the weights'
        device; divided by `iso_every`, as the pull is taken only every so many steps. 0 without isometry.
    """
    norms = []
    for group in optimizer.param_groups:
        interval = group.get("iso_every", 1)
        if coefficient := isometry_coefficient(group) * interval:
            matrices = [matrix_view(weight) for weight in group["params"]]
            directions, divisors = isometry_steps(matrices, coefficient, group["iso_scale"])
            norms.append(torch.stack(torch._foreach_norm(directions)) / (2 * interval * divisors))
    return torch.linalg.vector_norm(torch.cat(norms)) if norms else torch.zeros(())
