"""Sub-environments of a stream, stepped in this process one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neoteny.envs.schedule import Schedule
from neoteny.envs.single.episodes import Episode
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction, write_observation

Step = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], list[dict[str, Any]]]
"""Rewards, terminated and truncated, (n,), and all infos."""


class SerialEnvs:
    """Some sub-environments of a stream, stepped in this process one after the other.

    The interface is that of :class:`neoteny.envs.single.workers.ProcessEnvs` too.

    Args:
        count: n, how many there are here.
        stride: by how much one step of all of them, here and elsewhere, moves the stream on.
        alive: called after each step that is replayed.
    """

    def __init__(
        self,
        task: TaskFunction,
        spaces: Spaces,
        count: int,
        stride: int,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.alive = alive
        self.envs = [TaskEnv(task, spaces, stride) for _ in range(count)]
        self.observations = np.zeros((count, *(spaces[0].shape or ())), spaces[0].dtype)
        """The latest of each, (n, ...); overwritten by the next."""

    def enter(self, schedule: Schedule, steps: int) -> None:
        """Go over to the task that is on at step ``steps`` of the stream; all must be reset then."""
        for env in self.envs:
            env.enter(schedule, steps)

    def reset(self, seeds: Sequence[int | None]) -> list[list[Any]]:
        """Start an episode in each that is given a seed; returns what it carries into it."""
        lifelong: list[list[Any]] = [[] for _ in self.envs]
        for i, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
            if seed is not None:
                lifelong[i] = env.lifelong
                self._observe(i, env.reset(seed))
        return lifelong

    def step(self, actions: np.ndarray) -> Step:
        """Step all, actions (n, ...)."""
        rewards = np.empty(len(self.envs))
        terminated, truncated = (np.empty(len(self.envs), dtype=bool) for _ in range(2))
        infos = []
        shape, dtype = self.observations.shape[1:], self.observations.dtype
        # An environment may change its action in place, which the log must not see.
        for i, (env, action) in enumerate(zip(self.envs, actions.copy(), strict=True)):
            observation, rewards[i], terminated[i], truncated[i], info = env.step(action)
            if type(observation) is np.ndarray and observation.dtype is dtype and observation.shape == shape:
                self.observations[i] = observation
            else:
                self._observe(i, observation)
            infos.append(info)
        return rewards, terminated, truncated, infos

    def restore(self, episodes: Sequence[Episode | None]) -> None:
        """Replay episodes in sub-environments that were just made; ``None`` where none was running."""
        for i, (env, episode) in enumerate(zip(self.envs, episodes, strict=True)):
            for observation in () if episode is None else replay(env, episode):
                self._observe(i, observation)
                self.alive()

    def close(self) -> None:
        """Close all."""
        for env in self.envs:
            env.close()

    def _observe(self, i: int, observation: Any) -> None:
        write_observation(self.observations[i, ...], observation, self.envs[i].env)


def replay(env: TaskEnv, episode: Episode) -> Iterator[Any]:
    """Replay an episode in an environment that was just made; yields its observations."""
    if env.visit != env.schedule.visit_at(episode.began):  # the same task twice in a row is no switch
        env.enter(env.schedule, episode.began)
    env.steps = episode.began
    env.lifelong = episode.lifelong
    yield env.reset(episode.seed)
    for action in episode.actions.copy():
        yield env.step(action)[0]
