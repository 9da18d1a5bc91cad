"""Rewards as the agents learn from them; logged returns stay those of the environments."""

from __future__ import annotations

from torch import Tensor


def learned_rewards(rewards: Tensor, scale: float, clip: bool) -> Tensor:
    """Rewards (N,), or their signs with ``clip``, times ``scale``. A NaN stays a NaN, which ends the run."""
    if clip:
        rewards = rewards.sign().where(rewards.isfinite(), rewards * 0)  # sign makes 0 of a NaN
    return scale * rewards
