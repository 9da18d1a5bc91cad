"""Singular values of a matrix and their statistics: condition numbers and ranks.

All spectra come from float64 Gram matrices of the smaller side. Squaring halves the number of digits:
condition numbers are accurate up to about 1e7, and a larger value only means "above 1e7". A float32 Gram
matrix would fail between 1e3 and 1e4 already, which an ordinary initialisation exceeds.

`sigma` are singular values (..., r), descending, of one or many matrices.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

# Resolution of a float64 Gram matrix: singular values below this fraction of the largest count as zero.
RESOLUTION = 1e-7


def gram(matrix: Tensor) -> Tensor:
    """Gram matrix of the smaller side, in float64: (..., m, n) to (..., r, r), r = min(m, n)."""
    # Cast before the product: a float32 Gram of a matrix with condition number 1e4 has negative eigenvalues.
    matrix = matrix.double()
    return matrix @ matrix.mT if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT @ matrix


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values through the float64 Gram matrix: cheaper than an SVD, exact to 1e-7 of the largest.

    Args:
        matrix: (..., m, n), any floating-point type.

    Returns:
        (..., min(m, n)), descending, float64; nan where the matrix is not finite.
    """
    return gram_singular_values(gram(matrix))


def gram_singular_values(gram: Tensor) -> Tensor:
    """Roots of the eigenvalues of a Gram matrix (..., r, r), descending (..., r)."""
    # eigvalsh raises on nan or inf; a diverged layer must give nan instead of ending the run.
    finite = gram.isfinite().all(-1).all(-1)
    eigenvalues = torch.linalg.eigvalsh(torch.where(finite[..., None, None], gram, 0.0))
    sigma = eigenvalues.flip(-1).clamp(min=0.0).sqrt()
    return torch.where(finite[..., None], sigma, torch.nan)


def condition_number(sigma: Tensor) -> Tensor:
    """Largest over smallest singular value: (..., r) descending to (...); inf if singular, 0 / 0 included."""
    return torch.where(sigma[..., -1] == 0, torch.inf, sigma[..., 0] / sigma[..., -1])


def srank(sigma: Tensor, delta: float = 0.01) -> Tensor:
    """Fewest of sigma (..., r) that hold 1 - delta of their sum, (...) in float64; 0 for a zero matrix.

    (Kumar et al., Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement Learning, 2021.)
    """
    cumulative = sigma.cumsum(-1)
    count = (cumulative < (1.0 - delta) * cumulative[..., -1:]).sum(-1).double() + 1.0
    return _unless_zero(sigma, count)


def rank99(sigma: Tensor) -> Tensor:
    """Fewest of sigma (..., r) that hold 99 % of the sum of squares, the PCA rank; 0 for a zero matrix."""
    return srank(sigma.square())


def stable_rank(sigma: Tensor) -> Tensor:
    """Squared Frobenius norm over squared spectral norm, of sigma (..., r); 0 for a zero matrix."""
    return _unless_zero(sigma, (sigma / sigma[..., :1]).square().sum(-1))


def effective_rank(sigma: Tensor, power: int = 1) -> Tensor:
    """Exponential of the entropy of sigma^power, scaled to sum 1: (..., r) to (...); 0 for a zero matrix.

    Power 1 is the original definition (Roy and Vetterli, The effective rank, 2007). The authors of AdamO
    report power 2, which weighs by energy.
    """
    mass = (sigma / sigma[..., :1]) ** power
    return _unless_zero(sigma, torch.special.entr(mass / mass.sum(-1, keepdim=True)).sum(-1).exp())


def _unless_zero(sigma: Tensor, rank: Tensor) -> Tensor:
    """`rank`, but 0 where all of `sigma` is zero and nan where it is nan."""
    return torch.where(sigma[..., 0] == 0, 0.0, torch.where(sigma[..., 0].isnan(), torch.nan, rank))


RANKS: dict[str, Callable[[Tensor], Tensor]] = {
    "srank": srank,
    "rank99": rank99,
    "stable_rank": stable_rank,
    "effective_rank": effective_rank,
    "effective_rank_squared": partial(effective_rank, power=2),
}


def quantile(values: Tensor, q: float) -> Tensor:
    """Quantile: smallest of the values (B,) that at least a fraction q of them do not exceed; q in (0, 1].

    Without interpolation, which between a finite number and inf would give inf or nan.
    """
    return values.kthvalue(max(1, math.ceil(q * len(values)))).values
