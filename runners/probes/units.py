"""Dormant and dead units."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

TAUS = (0.0, 0.025, 0.1)


def dormant_fraction(activations: Tensor, tau: float) -> Tensor:
    """Share of units whose mean absolute activation is at most tau times the layer's mean.

    Compared without division, so that in a layer of zeros all units are dormant, where a quotient would be
    0 / 0. (Sokar et al., The Dormant Neuron Phenomenon in Deep Reinforcement Learning, 2023, definition 3.1.)

    Args:
        activations: Outputs of the units, (B, units), or (B, channels, ...) with one unit a channel.
        tau: Threshold, at least 0.

    Returns:
        Scalar in [0, 1], float64; nan if an activation is not finite.
    """
    sizes = unit_sizes(activations)
    dormant = (sizes <= tau * sizes.mean()).double().mean()
    return torch.where(sizes.isfinite().all(), dormant, torch.nan)


def dead_fraction(activations: Tensor) -> Tensor:
    """Share of units that are exactly zero on every sample and at every position: dormant with tau = 0.

    This is not the fraction of zero activations, which is large in a healthy ReLU layer too.
    """
    return dormant_fraction(activations, tau=0.0)


UNIT_PROBES: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"dormant_{tau:g}": partial(dormant_fraction, tau=tau) for tau in TAUS},
    "dead": dead_fraction,
}


def unit_sizes(activations: Tensor) -> Tensor:
    """Mean absolute activation of every unit: (B, units, ...) to (units,), float64."""
    sizes = activations.abs()
    if sizes.dim() > 2:
        sizes = sizes.flatten(2).mean(2)  # positions first, so that little is left to convert to float64
    return sizes.double().mean(0)
