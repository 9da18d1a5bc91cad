"""A linear layer for inputs that are flags, most of them false, such as the cells of a small board.

On a CPU its output is a sum of the few columns of the weight whose flags are true, and the gradient of a
column a sum over the few samples in which its flag is. Both equal the matrix products up to rounding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

LEAST = 1 << 16
"""Entries of a batch below which a matrix product is faster."""
MOST = 1 / 16
"""Share of true entries above which it is."""


class Entries(NamedTuple):
    """The true entries of a batch (B, D), listed twice."""

    columns: Tensor  # of each entry, sample by sample
    first: Tensor  # (B,), where the entries of each sample begin
    samples: Tensor  # of each entry, column by column
    first_of_column: Tensor  # (D,)


class FlagLinear(nn.Linear):
    """A linear layer that also takes flags: (B, D), bool or float -> (B, K)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply it."""
        if inputs.dtype != torch.bool:
            return super().forward(inputs)
        output: Tensor = _SumOfColumns.apply(self.weight, self.bias, *true_entries(inputs))
        return output


class _SumOfColumns(torch.autograd.Function):
    """Sums of columns of a weight (K, D), plus a bias (K,): (B, K)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, *entries: Tensor) -> Tensor:
        """Add the columns of each sample."""
        ctx.save_for_backward(*entries[2:])
        return F.embedding_bag(entries[0], weight.t().contiguous(), entries[1], mode="sum").add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Add the gradients of the samples of each column."""
        samples, first = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_columns = F.embedding_bag(samples, gradient, first, mode="sum")
        return of_columns.t(), gradient.sum(0), None, None, None, None


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
        return _list_entries(flags)
    version, entries = _KNOWN.get(flags, (None, None))
    if entries is None or version != flags._version:
        entries = _list_entries(flags)
        _KNOWN[flags] = flags._version, entries
    return entries


def _list_entries(flags: Tensor) -> Entries:
    array = flags.numpy()
    samples, width = array.shape
    places = np.flatnonzero(array)
    first = np.searchsorted(places, np.arange(0, array.size, width))
    counts = np.diff(first, append=len(places))
    columns = places - np.repeat(np.arange(0, array.size, width), counts)
    # Sorting numbers of 16 bits takes a sixth of the time.
    short = columns.astype(np.uint16 if width <= 1 << 16 else np.int64)
    by_column = np.argsort(short, kind="stable")
    first_of_column = np.searchsorted(short[by_column], np.arange(width, dtype=short.dtype))
    of_samples = np.repeat(np.arange(samples), counts)[by_column]
    return Entries(*map(torch.from_numpy, (columns, first, of_samples, first_of_column)))
