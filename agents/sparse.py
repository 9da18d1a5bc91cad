"""A linear layer for inputs that are flags, most of them false, such as the cells of a small board.

On a CPU its output is a sum of the few columns of the weight whose flags are true, and the gradient of a
column a sum over the few samples in which its flag is. Both equal the matrix products up to rounding.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

LEAST = 1 << 16
"""Entries of a batch below which a matrix product is faster."""
MOST = 1 / 16
"""Share of true entries above which it is."""


class Entries:
    """The true entries of a batch of flags (B, D).

    Attributes:
        columns: of each, sample by sample, (n,).
        first: where those of each sample begin, (B,).
    """

    def __init__(self, flags: Tensor) -> None:
        array = flags.numpy()
        self.shape = array.shape
        self.number: Any = np.int32 if array.size <= np.iinfo(np.int32).max else np.int64
        places = np.flatnonzero(array).astype(self.number)
        self.columns, self.first, self._counts = _split(places, *self.shape)

    @functools.cached_property
    def by_column(self) -> tuple[Tensor, Tensor]:
        """The same, column by column: samples (n,), and where those of each column begin (D,)."""
        size, width = self.shape
        places: NDArray[Any] = np.repeat(np.arange(size, dtype=self.number), self._counts)
        places += self.columns.numpy() * self.number(size)
        places.sort()  # by column, then by sample
        return _split(places, width, size)[:2]


def _split(places: NDArray[Any], rows: int, length: int) -> tuple[Tensor, Tensor, NDArray[Any]]:
    """Places in rows of a length, in ascending order, (n,), where all rows are one after the other.

    Returns:
        Places within their row, (n,), where those of each row begin, (rows,), and their number, (rows,).
    """
    begins = np.arange(0, rows * length, length, dtype=places.dtype)
    first = np.searchsorted(places, begins)
    counts = np.diff(first, append=len(places))
    within = places - np.repeat(begins, counts)
    return torch.from_numpy(within), torch.from_numpy(first.astype(places.dtype)), counts


class FlagLinear(nn.Linear):
    """A linear layer that also takes flags: (B, D), bool or float -> (B, K)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply it."""
        if inputs.dtype != torch.bool:
            return super().forward(inputs)
        output: Tensor = _SumOfColumns.apply(self.weight, self.bias, true_entries(inputs))
        return output


class _SumOfColumns(torch.autograd.Function):
    """Sums of columns of a weight (K, D), plus a bias (K,): (B, K)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, entries: Entries) -> Tensor:
        """Add the columns of each sample."""
        ctx.entries = entries
        return F.embedding_bag(entries.columns, weight.t().contiguous(), entries.first, mode="sum").add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Add the gradients of the samples of each column."""
        samples, first = ctx.entries.by_column
        gradient = gradients[0].contiguous()
        of_columns = F.embedding_bag(samples, gradient, first, mode="sum")
        return of_columns.t(), gradient.sum(0), None


_KNOWN = WeakTensorKeyDictionary()
"""Entries of batches in use, with the version of the batch: several networks have the same inputs."""


def are_sparse(inputs: Tensor) -> bool:
    """Whether a batch (B, D) consists of flags whose listed entries are faster than a matrix product."""
    if inputs.dtype != torch.bool or inputs.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return inputs.numel() >= LEAST and int(np.count_nonzero(inputs.numpy())) <= MOST * inputs.numel()


def true_entries(flags: Tensor) -> Entries:
    """The true entries of a batch (B, D), bool, on a CPU."""
    if flags.is_inference():  # which have no version
        return Entries(flags)
    version, entries = _KNOWN.get(flags, (None, None))
    if entries is None or version != flags._version:
        entries = Entries(flags)
        _KNOWN[flags] = flags._version, entries
    return entries
