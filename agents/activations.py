"""The usual activations, and those that preserve a layer's singular values (dynamical isometry).

A layer with weight W and activation f has the Jacobian D W, where D is the derivative of f. If D^T D = I,
then (D W)^T (D W) = W^T W: the Jacobian has the singular values of W at every input. This holds for the
forward pass. In the backward pass only a square layer, whose Jacobian J also has J J^T = I, preserves the
norm of every gradient (Rosseau et al., "Preserving Plasticity in Continual Learning via Dynamical Isometry",
ICML 2026, eq. 14); a tall one, even with orthonormal columns, loses the part of a gradient outside its range.

All take vectors (B, D) and images (B, C, H, W), whose channels are the units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class MaxMin(nn.Module):
    """Sort neighbouring pairs of units, (B, 2 D, ...) -> (B, 2 D, ...).

    The derivative is a permutation unless a pair is equal, so the layer has its weight's singular values.

    Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", ICML 2019.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maximum and minimum of units (0, 1), (2, 3), ..., in the places of the pair."""
        pairs = x.unflatten(1, (-1, 2))
        return torch.stack((pairs.amax(2), pairs.amin(2)), dim=2).flatten(1, 2)


class GroupSort(nn.Module):
    """Sort neighbouring groups of units in descending order, (B, D, ...) -> (B, D, ...).

    Groups of two are MaxMin. The derivative is a permutation unless two units of a group are equal, so the
    layer has its weight's singular values (Anil et al., 2019).

    Args:
        size: units per group; it must divide D. The default of 4 differs from MaxMin and still allows widths
            that are powers of two.
    """

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Sort units 0 to size - 1, size to 2 size - 1, ..., within each group."""
        return x.unflatten(1, (-1, self.size)).sort(dim=2, descending=True).values.flatten(1, 2)


class Abs(nn.Module):
    """Absolute value, of any shape.

    The derivative is diagonal with entries 1 and -1 unless a unit is 0. It is thus orthogonal, and the layer
    has its weight's singular values.
    """

    def forward(self, x: Tensor) -> Tensor:
        """|x|."""
        return x.abs()


class CReLU(nn.Module):
    """Positive and negative parts, (B, D, ...) -> (B, 2 D, ...).

    Unless a unit is 0, exactly one of its two outputs has a slope, 1 or -1. So D^T D = I, and the layer has
    its weight's singular values. But with as many outputs as inputs the weight has half as many rows as
    columns, so the Jacobian has half the rank and discards half of the input's dimensions.

    Shang et al., "Understanding and improving convolutional neural networks via concatenated rectified linear
    units", ICML 2016; used against loss of plasticity by Abbas et al., 2023.
    """

    def forward(self, x: Tensor) -> Tensor:
        """relu(x), then relu(-x)."""
        return torch.cat((x.relu(), (-x).relu()), dim=1)


class Fourier(nn.Module):
    """Sine and cosine, (B, D, ...) -> (B, 2 D, ...): deep Fourier features.

    The slopes of a unit's two outputs are cos z and -sin z. So D^T D = I everywhere, and the layer has its
    weight's singular values. The rank is at most half the number of outputs, as with `CReLU`.

    Lewandowski et al., "Plastic learning with deep Fourier features", 2024.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The sines, then the cosines."""
        return torch.cat((x.sin(), x.cos()), dim=1)


class Activation(NamedTuple):
    """An activation function and its properties."""

    make: Callable[[], nn.Module]
    gain: float  # gain of the orthogonal weight before it; preserves the mean square of activations
    outputs: int = 1  # outputs per unit
    multiple: int = 1  # widths, counted after the activation, must be multiples of this


# Gains assume layers with as many outputs as inputs, whose weights are random orthogonal matrices.
ACTIVATIONS = {
    # D is diagonal, 1 where a unit is active, else 0, so half of the mean square is lost. The singular values
    # of a square orthogonal layer's Jacobian are all either 0 or 1 (times the gain).
    "relu": Activation(nn.ReLU, math.sqrt(2)),
    # As ReLU, with 0.01 instead of 0.
    "leaky_relu": Activation(nn.LeakyReLU, nn.init.calculate_gain("leaky_relu")),
    # The right gain depends on the size of the signal; this is PyTorch's.
    "tanh": Activation(nn.Tanh, 5 / 3),
    "abs": Activation(Abs, 1.0),
    "maxmin": Activation(MaxMin, 1.0, multiple=2),
    "groupsort": Activation(GroupSort, 1.0, multiple=4),
    # A unit's two outputs have the same sum of squares as the unit. But there are half as many units as
    # inputs: the rows of the weight span half of the space and receive half of the input's sum of squares.
    "crelu": Activation(CReLU, math.sqrt(2), outputs=2, multiple=2),
    # The mean square of the outputs is 1/2 for any gain, as sin^2 + cos^2 = 1. This gain preserves the mean
    # square of a small change of the input, by the argument for CReLU; units get a mean square of 1.
    "fourier": Activation(Fourier, math.sqrt(2), outputs=2, multiple=2),
}
