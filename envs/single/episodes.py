"""What it takes to replay running episodes.

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

from neoteny.envs.action_log import ActionLog


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

    Args:
        action_space: of all sub-environments, (N, ...).
    """

    def __init__(self, action_space: gym.Space) -> None:
        self.actions = ActionLog(action_space)
        self.num_envs = self.actions.num_envs
        self.clear()

    def clear(self) -> None:
        """No episode is running."""
        self.actions.clear()
        self._starts: list[tuple[int, int, list[Any]] | None] = [None] * self.num_envs

    def begin(self, env: int, step: int, seed: int, lifelong: list[Any]) -> None:
        """In sub-environment ``env`` an episode begins at ``step`` of the stream."""
        self.actions.begin(env)
        self._starts[env] = step, seed, lifelong

    def append(self, actions: np.ndarray) -> None:
        """All sub-environments have carried out their actions, (N, ...)."""
        self.actions.append(actions)

    def __getitem__(self, env: int) -> Episode | None:
        """What is running in sub-environment ``env``."""
        start = self._starts[env]
        return None if start is None else Episode(*start, self.actions[env])

    def running(self) -> list[Episode]:
        """All running episodes: between two steps, one of each sub-environment."""
        return [episode for env in range(self.num_envs) if (episode := self[env]) is not None]

    def load(self, episodes: Sequence[Episode]) -> None:
        """These episodes are running."""
        self.actions.load([episode.actions for episode in episodes])
        self._starts = [(episode.began, episode.seed, episode.lifelong) for episode in episodes]
