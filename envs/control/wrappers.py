"""The wrappers of the classic control streams; the engine on tensors reads their attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


class Rotation(gym.ObservationWrapper):
    """Multiply each observation by a matrix: ``matrix @ observation``.

    Args:
        env: its observations are vectors of n numbers, float32.
        matrix: (m, n), such as the first n columns of a rotation of m dimensions.

    Raises:
        ValueError: the shapes do not fit.
    """

    def __init__(self, env: gym.Env, matrix: NDArray[np.floating]) -> None:
        super().__init__(env)
        self.matrix = np.asarray(matrix, np.float32)
        inner = env.observation_space
        if self.matrix.ndim != 2 or inner.shape != self.matrix.shape[1:] or inner.dtype != np.float32:
            raise ValueError(f"a matrix of shape {self.matrix.shape} does not fit observations of {inner}")
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, self.matrix.shape[:1], np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """The matrix times the observation."""
        return self.matrix @ observation


class PermutedActions(gym.ActionWrapper):
    """Give actions other meanings: action ``i`` does what ``order[i]`` did.

    Args:
        env: its actions are numbered from 0.
        order: a permutation of all actions.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, env: gym.Env, order: Sequence[int] | NDArray[np.integer]) -> None:
        super().__init__(env)
        self.order = [int(action) for action in order]
        space = env.action_space
        if not isinstance(space, gym.spaces.Discrete) or space.start != 0:
            raise ValueError(f"permuted actions must be numbered from 0, unlike {space}")
        if sorted(self.order) != list(range(int(space.n))):
            raise ValueError(f"{self.order} is not a permutation of 0 to {space.n - 1}")

    def action(self, action: Any) -> int:
        """The action that is carried out."""
        return self.order[action]


class Repeat(gym.Wrapper):
    """Repeat each action a number of times; rewards are summed."""

    def __init__(self, env: gym.Env, times: int) -> None:
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step up to ``times`` times, until the episode ends."""
        total = 0.0
        for _ in range(self.times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info
