"""Wrappers that change observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TransformObservation

from neoteny.envs.wrappers.drawing import Seed, check_size, draw_order, random_generator


def permute_observations(
    env: gym.Env, seed: Seed | None = None, *, order: Sequence[int] | None = None, axis: int = -1
) -> gym.Env:
    """Reorder the features of a flat observation, or the channels of an image.

    Shuffled inputs as a test of plasticity: Juliani and Ash (2024), "A study of plasticity loss in on-policy
    deep reinforcement learning". The choice of axis, and never drawing the identity, are ours.

    Args:
        env: observations in a Box with at least one axis.
        seed: for drawing the permutation, uniformly from all but the identity; seeds ``(seed, k)`` of tasks
            that follow one another give different ones.
        order: the permutation itself instead of a seed: entry ``i`` becomes the old entry ``order[i]``. The
            identity is accepted here, for an unchanged first task.
        axis: which axis of one observation; the last by default, -3 for images with channels first.

    The bounds of the new Box hold for every order, so that all tasks have the same.
    """
    space = _box(env)
    axis = axis if axis < 0 else axis - len(space.shape)
    place = draw_order(space.shape[axis], "permute_observations", seed, order)
    low = np.broadcast_to(space.low.min(axis, keepdims=True), space.shape)
    high = np.broadcast_to(space.high.max(axis, keepdims=True), space.shape)
    permuted = Box(low, high, space.shape, dtype=space.dtype.type)
    return TransformObservation(env, lambda observation: np.take(observation, place, axis), permuted)


def offset_observations(env: gym.Env, seed: Seed, std: float = 2.0) -> gym.Env:
    """Add one vector, whose entries are drawn once from N(0, std), to every observation.

    TRAC's drifting observations (Muppidi et al., 2024, "Fast TRAC"): N(0, 2), drawn anew for each task. We
    read the 2 as a standard deviation, in the units of the observation. Observations are in a Box of
    floating-point numbers, which becomes unbounded, so that all tasks have the same.
    """
    space = _box(env, np.floating)
    offset = (
        random_generator(seed, "offset_observations")
        .normal(0.0, check_size(std), space.shape)
        .astype(space.dtype)
    )
    return TransformObservation(env, lambda observation: observation + offset, _unbounded(space))


def noisy_observations(env: gym.Env, std: float, seed: Seed = 0) -> gym.Env:
    """Add independent Gaussian noise to every observation, new at each step and each reset.

    A textbook sensor corruption; ``std`` is in the units of the observation. Observations are in a Box of
    floating-point numbers, which becomes unbounded.
    """
    return _Noise(env, std, seed)


class _Noise(gym.ObservationWrapper):
    def __init__(self, env: gym.Env, std: float, seed: Seed) -> None:
        super().__init__(env)
        space = _box(env, np.floating)
        self.observation_space = _unbounded(space)
        self.std, self.seed = check_size(std), seed
        self.rng = random_generator(seed, "noisy_observations")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        if seed is not None:  # else the generator continues
            self.rng = random_generator(self.seed, "noisy_observations", seed)
        return super().reset(seed=seed, options=options)

    def observation(self, observation: Any) -> Any:
        return observation + self.rng.normal(0.0, self.std, observation.shape).astype(observation.dtype)


def _unbounded(space: Box) -> Box:
    """The space without its bounds."""
    return Box(-np.inf, np.inf, space.shape, dtype=space.dtype.type)


def _box(env: gym.Env, kind: type[np.generic] = np.generic) -> Box:
    """The observation space; TypeError unless it is a Box of dtype ``kind`` with at least one axis."""
    space = env.observation_space
    if not isinstance(space, Box) or not space.shape or not np.issubdtype(space.dtype, kind):
        numbers = "floating-point numbers" if kind is np.floating else "numbers"
        raise TypeError(f"this needs observations in a Box of {numbers}, not {space}")
    return space
