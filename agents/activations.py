"""Activations for networks whose layers are to be isometries, beside the usual ones.

A layer with weight W and activation f has the Jacobian D W, where D is the derivative of f. Where D^T D = I,
(D W)^T (D W) = W^T W: the layer has the singular values of W, at every input. Signals that go backward are
another matter. Only a square layer, whose Jacobian J has J J^T = I too, keeps the norm of every gradient
(Rosseau et al., "Preserving Plasticity in Continual Learning via Dynamical Isometry", ICML 2026, eq. 14). A
tall one, even with orthonormal columns, keeps the part of a gradient in its range and loses the rest.

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

    Where no pair is equal, the derivative is a permutation: the layer has the singular values of its weight.

    Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", ICML 2019.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The maxima and minima of units (0, 1), (2, 3), ..., each pair in place."""
        pairs = x.unflatten(1, (-1, 2))
        return torch.stack((pairs.amax(2), pairs.amin(2)), dim=2).flatten(1, 2)


class GroupSort(nn.Module):
    """Sort neighbouring groups of units, the largest first, (B, D, ...) -> (B, D, ...); pairs are MaxMin.

    Where no two of a group are equal, the derivative is a permutation: the layer has the singular values of
    its weight. (Anil et al., 2019.)

    Args:
        size: units of a group; it divides D. Networks have groups of 4: enough to differ from pairs, and
            widths that are powers of two stay possible.
    """

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Sort units 0 to size - 1, size to 2 size - 1, ..., each group in place."""
        return x.unflatten(1, (-1, self.size)).sort(dim=2, descending=True).values.flatten(1, 2)


class Abs(nn.Module):
    """Absolute value, of any shape.

    Where no unit is 0, the derivative is diagonal, of 1 and -1, and so orthogonal: the layer has the singular
    values of its weight.
    """

    def forward(self, x: Tensor) -> Tensor:
        """|x|."""
        return x.abs()


class CReLU(nn.Module):
    """Positive and negative parts, (B, D, ...) -> (B, 2 D, ...).

    Where no unit is 0, exactly one of the two outputs of a unit has a slope, of 1 or -1: D^T D = I, so that
    the layer has the singular values of its weight. With as many outputs as inputs the weight has half as
    many rows as columns, though: its Jacobian has half the rank, and the other half of what enters is lost.

    Shang et al., "Understanding and improving convolutional neural networks via concatenated rectified linear
    units", ICML 2016; against loss of plasticity, Abbas et al., 2023.
    """

    def forward(self, x: Tensor) -> Tensor:
        """relu(x) in front of relu(-x)."""
        return torch.cat((x.relu(), (-x).relu()), dim=1)


class Fourier(nn.Module):
    """Sine and cosine, (B, D, ...) -> (B, 2 D, ...): deep Fourier features.

    The slopes of a unit's two outputs are cos z and -sin z: D^T D = I everywhere, so that the layer has the
    singular values of its weight. Its rank is at most half its outputs, as with `CReLU`.

    Lewandowski et al., "Plastic learning with deep Fourier features", 2024.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The sines in front of the cosines."""
        return torch.cat((x.sin(), x.cos()), dim=1)


class Activation(NamedTuple):
    """An activation function and what a network has to know of it."""

    make: Callable[[], nn.Module]
    gain: float  # of the orthogonal weight before it: keeps the mean square of a signal from layer to layer
    outputs: int = 1  # of each unit
    multiple: int = 1  # widths, counted after the activation, are multiples of this


# Gains are those of layers with as many outputs as inputs, whose weights are random orthogonal matrices.
ACTIVATIONS = {
    # D is diagonal, 1 where a unit is open, else 0: half of the mean square is lost. The Jacobian of a square
    # orthogonal layer has singular values of 0 and 1 (times the gain) and nothing in between.
    "relu": Activation(nn.ReLU, math.sqrt(2)),
    # The same with 0.01 for 0.
    "leaky_relu": Activation(nn.LeakyReLU, nn.init.calculate_gain("leaky_relu")),
    # No single gain serves all sizes of signals; this is the customary one.
    "tanh": Activation(nn.Tanh, 5 / 3),
    "abs": Activation(Abs, 1.0),
    "maxmin": Activation(MaxMin, 1.0, multiple=2),
    "groupsort": Activation(GroupSort, 1.0, multiple=4),
    # The sum of squares of a unit's two outputs is its own square. But there are half as many units as
    # inputs: the rows of the weight span half of the space, and see half of the sum of squares that enters.
    "crelu": Activation(CReLU, math.sqrt(2), outputs=2, multiple=2),
    # The mean square is 1/2 whatever the gain, as sin^2 + cos^2 = 1. This one keeps the mean square of a
    # small change of the signal, for which the sum over a unit is the square of its own change, as above. It
    # gives units a mean square of 1.
    "fourier": Activation(Fourier, math.sqrt(2), outputs=2, multiple=2),
}
