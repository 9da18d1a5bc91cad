"""What it takes to play running episodes again.

Whatever the task, an environment is a function of its seed, of what it carries over from the episodes before
and of the actions. An :class:`EpisodeLog` keeps these for each running episode, so any environment, without
a way to save its state, is brought back to where it was: after a stop, or when its process was killed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np


@dataclasses.dataclass(frozen=True)
class Episode:
    """A running episode, as far as it came."""

    began: int
    """Step of the stream at which it began."""
    seed: int
    """Of its reset."""
    lifelong: list[Any]
    """What the environment and its wrappers carried into it, the outermost first."""
    actions: np.ndarray
    """All so far, (L, ...)."""


class EpisodeLog:
    """The running episodes of all N sub-environments.

    One row of actions for each step since the oldest of them began: as all sub-environments step together,
    appending to N episodes is writing one row.

    Args:
        action_space: of all sub-environments, (N, ...).
    """

    def __init__(self, action_space: gym.Space) -> None:
        assert action_space.shape is not None
        self.num_envs = action_space.shape[0]
        self.actions = np.empty((64, *action_space.shape), action_space.dtype)
        self.clear()

    def clear(self) -> None:
        """No episode is running."""
        self.rows = 0
        self.starts: list[tuple[int, int, int, list[Any]] | None] = [None] * self.num_envs

    def begin(self, env: int, step: int, seed: int, lifelong: list[Any]) -> None:
        """In sub-environment ``env`` an episode begins at ``step`` of the stream."""
        self.starts[env] = self.rows, step, seed, lifelong

    def append(self, actions: np.ndarray) -> None:
        """All sub-environments have carried out their actions, (N, ...)."""
        if self.rows == len(self.actions):
            self._make_room()
        self.actions[self.rows] = actions
        self.rows += 1

    def __getitem__(self, env: int) -> Episode | None:
        """What is running in sub-environment ``env``."""
        start = self.starts[env]
        if start is None:
            return None
        row, step, seed, lifelong = start
        return Episode(step, seed, lifelong, self.actions[row : self.rows, env].copy())

    def running(self) -> list[Episode]:
        """All running episodes: between two steps, one of each sub-environment."""
        return [episode for env in range(self.num_envs) if (episode := self[env]) is not None]

    def load(self, episodes: Sequence[Episode]) -> None:
        """These episodes are running."""
        self.clear()
        rows = max(len(episode.actions) for episode in episodes)
        self.actions = np.empty((rows + 64, *self.actions.shape[1:]), self.actions.dtype)
        self.rows = rows
        for env, episode in enumerate(episodes):
            row = rows - len(episode.actions)
            self.actions[row:rows, env] = episode.actions
            self.starts[env] = row, episode.began, episode.seed, episode.lifelong

    def _make_room(self) -> None:
        """Drop what came before the oldest running episode; if that is not much, double the space."""
        oldest = min(start[0] for start in self.starts if start is not None)
        used = self.actions[oldest : self.rows]
        size = len(self.actions) * (1 if 2 * len(used) <= len(self.actions) else 2)
        self.actions = np.empty((size, *used.shape[1:]), used.dtype)
        self.actions[: len(used)] = used
        self.rows = len(used)
        self.starts = [start and (start[0] - oldest, *start[1:]) for start in self.starts]
