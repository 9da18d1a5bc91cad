"""Observations with mean 0 and variance 1, by what the agent has seen so far."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Normalizer:
    """Running mean and variance of each entry of an observation.

    Exact for all that was seen, batch by batch: Chan, Golub and LeVeque (1983), in float64.

    Args:
        shape: of one observation.
        device: where observations live.
    """

    clip = 10.0
    """Normalized entries stay within plus or minus this."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | str) -> None:
        self.mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)  # sum of squared distances from the mean
        self.count = 0

    def reset(self) -> None:
        """Forget everything."""
        self.mean.zero_()
        self.squares.zero_()
        self.count = 0

    def update(self, observations: Tensor) -> None:
        """Take in a batch, (B, ...)."""
        batch = observations.double()
        share = len(batch) / (self.count + len(batch))
        away = batch.mean(0) - self.mean
        self.squares += (batch - batch.mean(0)).square().sum(0) + away.square() * self.count * share
        self.mean += away * share
        self.count += len(batch)

    def __call__(self, observations: Tensor) -> Tensor:
        """Observations (B, ...) -> the same in units of standard deviations from the mean, float32."""
        deviation = (self.squares / max(1, self.count)).sqrt().clamp(min=1e-4)
        return ((observations - self.mean) / deviation).clamp(-self.clip, self.clip).float()

    def state_dict(self) -> dict[str, Any]:
        """All that was learnt."""
        return {
            "count": self.count,
            "mean": self.mean.cpu().numpy().copy(),
            "squares": self.squares.cpu().numpy().copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count = int(state["count"])
        self.mean.copy_(torch.as_tensor(np.asarray(state["mean"])))
        self.squares.copy_(torch.as_tensor(np.asarray(state["squares"])))
