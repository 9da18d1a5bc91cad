"""A log of the running episodes, from which they can be replayed.

The state of an environment is a function of its seed, its lifelong state (what it carries over from earlier
episodes) and the actions. An :class:`EpisodeLog` keeps these three for each running episode, so that any
environment, even one that cannot save its state, is restored after a stop or after its process was killed.
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
    """A running episode up to now."""

    began: int
    """Step of the stream at which it began."""
    seed: int
    """Seed of its reset."""
    lifelong: list[Any]
    """Lifelong states of the environment and its wrappers at the reset, the outermost first."""
    actions: np.ndarray
    """Actions so far, (L, ...)."""


class EpisodeLog:
    """The running episodes of all N sub-environments.

    Args:
        action_space: batched action space of all sub-environments, (N, ...).
    """

    def __init__(self, action_space: gym.Space) -> None:
        self.actions = ActionLog(action_space)
        self.num_envs = self.actions.num_envs
        self.clear()

    def clear(self) -> None:
        """Discard all episodes."""
        self.actions.clear()
        self._starts: list[tuple[int, int, list[Any]] | None] = [None] * self.num_envs

    def begin(self, env: int, step: int, seed: int, lifelong: list[Any]) -> None:
        """Log that an episode of sub-environment ``env`` begins at ``step`` of the stream."""
        self.actions.begin(env)
        self._starts[env] = step, seed, lifelong

    def append(self, actions: np.ndarray) -> None:
        """Log the actions of one step of all sub-environments, (N, ...)."""
        self.actions.append(actions)

    def __getitem__(self, env: int) -> Episode | None:
        """The running episode of sub-environment ``env``, if any."""
        start = self._starts[env]
        return None if start is None else Episode(*start, self.actions[env])

    def running(self) -> list[Episode]:
        """All running episodes; between two steps there is one per sub-environment."""
        return [episode for env in range(self.num_envs) if (episode := self[env]) is not None]

    def load(self, episodes: Sequence[Episode]) -> None:
        """Replace the log by these episodes, one per sub-environment."""
        self.actions.load([episode.actions for episode in episodes])
        self._starts = [(episode.began, episode.seed, episode.lifelong) for episode in episodes]
