"""A log of the latest actions of all sub-environments."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np


class ActionLog:
    """Actions of N sub-environments, each logged from its own starting step.

    Stored as one row of N actions per step, back to the oldest starting step; appending writes one row.

    Args:
        action_space: batched action space of all sub-environments, (N, ...).
    """

    def __init__(self, action_space: gym.Space) -> None:
        assert action_space.shape is not None
        self.num_envs = action_space.shape[0]
        self._actions = np.empty((64, *action_space.shape), action_space.dtype)
        self.clear()

    @property
    def dtype(self) -> np.dtype:
        """Data type of the actions."""
        return self._actions.dtype

    def clear(self) -> None:
        """Discard all actions and starting steps."""
        self._rows = 0
        self._starts: list[int | None] = [None] * self.num_envs

    def begin(self, env: int) -> None:
        """Start logging sub-environment ``env``; its earlier actions are dropped."""
        self._starts[env] = self._rows

    def append(self, actions: np.ndarray) -> None:
        """Log the actions of one step of all sub-environments, (N, ...)."""
        if self._rows == len(self._actions):
            self._make_room()
        self._actions[self._rows] = actions
        self._rows += 1

    def length(self, env: int) -> int:
        """Number of logged actions of a sub-environment."""
        start = self._starts[env]
        return 0 if start is None else self._rows - start

    def __getitem__(self, env: int) -> np.ndarray:
        """A copy of the logged actions of a sub-environment, (L, ...)."""
        return self._actions[self._rows - self.length(env) : self._rows, env].copy()

    def load(self, actions: Sequence[np.ndarray]) -> None:
        """Replace the log by the given actions of each sub-environment, (L, ...) each."""
        self._rows = max(map(len, actions))
        self._actions = np.empty((self._rows + 64, *self._actions.shape[1:]), self.dtype)
        self._starts = [self._rows - len(each) for each in actions]
        for env, each in enumerate(actions):
            self._actions[self._rows - len(each) : self._rows, env] = each

    def _make_room(self) -> None:
        """Drop rows before the oldest starting step; if that frees less than half, double the buffer."""
        oldest = min(start for start in self._starts if start is not None)
        kept = self._actions[oldest : self._rows]
        size = len(self._actions) * (1 if 2 * len(kept) <= len(self._actions) else 2)
        self._actions = np.empty((size, *kept.shape[1:]), kept.dtype)
        self._actions[: len(kept)] = kept
        self._rows = len(kept)
        self._starts = [None if start is None else start - oldest for start in self._starts]
