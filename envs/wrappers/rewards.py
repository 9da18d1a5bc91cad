"""Wrappers that change rewards."""

from __future__ import annotations

import math

import gymnasium as gym
from gymnasium.wrappers import TransformReward


def scale_rewards(env: gym.Env, scale: float) -> gym.Env:
    """Multiply every reward by ``scale``; a negative one inverts the objective.

    Raises:
        ValueError: the scale is 0 (nothing could be learned) or not finite.
    """
    if not math.isfinite(scale) or scale == 0:
        raise ValueError(f"the scale of rewards must be finite and not 0, not {scale}")
    return TransformReward(env, lambda reward: scale * float(reward))
