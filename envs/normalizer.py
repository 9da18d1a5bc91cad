"""Normalization of observations by their running mean and variance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Normalizer:
    """Running mean and variance of each entry of an observation.

    Exact over all batches so far, in float64: Chan, Golub and LeVeque (1983).

    Args:
        shape: of one observation.
        device: of the observations.
    """

    clip = 10.0
    """Normalized entries are clipped to plus or minus this."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | str) -> None:
        self.mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)  # sum of squared distances from the mean
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def reset(self) -> None:
        """Reset mean, variance and count."""
        self.mean.zero_()
        self.squares.zero_()
        self.count.zero_()

    def update(self, observations: Tensor) -> None:
        """Update mean and variance with a batch, (B, ...)."""
        batch = observations.double()
        share = len(batch) / (self.count + len(batch))
        away = batch.mean(0) - self.mean
        self.squares += (batch - batch.mean(0)).square().sum(0) + away.square() * self.count * share
        self.mean += away * share
        self.count += len(batch)

    def __call__(self, observations: Tensor) -> Tensor:
        """Normalize observations (B, ...): standard deviations from the mean, float32."""
        deviation = (self.squares / self.count.clamp(min=1)).sqrt().clamp(min=1e-4)
        return ((observations - self.mean) / deviation).clamp(-self.clip, self.clip).float()

    def state_dict(self) -> dict[str, Any]:
        """Count, mean and sum of squares."""
        return {
            "count": int(self.count),
            "mean": self.mean.cpu().numpy().copy(),
            "squares": self.squares.cpu().numpy().copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore count, mean and sum of squares."""
        self.count.fill_(int(state["count"]))
        self.mean.copy_(torch.as_tensor(np.asarray(state["mean"])))
        self.squares.copy_(torch.as_tensor(np.asarray(state["squares"])))
