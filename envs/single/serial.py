"""Sub-environments that are stepped in this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neoteny.envs.checks import (
    NUMBERS,
    BrokenEnvironmentError,
    check_reward,
    check_step,
    exited,
    write_observation,
)
from neoteny.envs.schedule import Schedule
from neoteny.envs.single.episodes import Episode
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction

Step = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]
"""Rewards, terminated and truncated, (n,)."""

NO_STEP: Any = object()


class SerialEnvs:
    """Sub-environments that are stepped in this process, one after the other.

    :class:`neoteny.envs.single.workers.ProcessEnvs` has the same interface.

    Args:
        count: n, number of environments held here.
        stride: steps of the stream per step of its sub-environments, that is their total number.
        alive: called after each replayed step.
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
        """The latest observations, (n, ...); overwritten in place."""
        self.infos: list[dict[str, Any]] = []
        """The environments' infos of the latest step."""

    def enter(self, schedule: Schedule, steps: int) -> None:
        """Switch to the task of the stream's step ``steps``; all environments must be reset afterwards."""
        for env in self.envs:
            env.enter(schedule, steps)

    def reset(self, seeds: Sequence[int | None]) -> list[list[Any]]:
        """Start an episode in each environment that is given a seed; returns the lifelong states.

        Raises:
            BrokenEnvironmentError: an observation does not fit its space, or an environment called
                ``sys.exit``.
            Exception: any exception of an environment.
        """
        lifelong: list[list[Any]] = [[] for _ in self.envs]
        i = 0
        try:
            for i, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
                if seed is not None:
                    lifelong[i] = env.lifelong
                    self._observe(i, env.reset(seed))
        except (Exception, SystemExit) as error:
            self._locate(i, error)
            raise
        return lifelong

    def step(self, actions: np.ndarray) -> Step:
        """Step all environments, actions (n, ...).

        Raises:
            BrokenEnvironmentError: a result is not what a step must return, or an environment called
                ``sys.exit``.
            Exception: any exception of an environment.
        """
        rewards = np.empty(len(self.envs))
        terminated, truncated = (np.empty(len(self.envs), dtype=bool) for _ in range(2))
        infos = []
        shape, dtype = self.observations.shape[1:], self.observations.dtype
        i, result = 0, NO_STEP
        try:
            # A copy, since an environment may change its action in place, and the log keeps the original.
            for i, (env, action) in enumerate(zip(self.envs, actions.copy(), strict=True)):
                result = env.step(action)
                observation, reward, terminated[i], truncated[i], info = result
                if type(reward) not in NUMBERS:
                    check_reward(reward, env.env)
                rewards[i] = reward
                if (
                    type(observation) is np.ndarray
                    and observation.dtype is dtype
                    and observation.shape == shape
                ):
                    self.observations[i] = observation
                else:
                    self._observe(i, observation)
                infos.append(info)
        except (Exception, SystemExit) as error:
            self._locate(i, error, result)
            raise
        self.infos = infos
        return rewards, terminated, truncated

    def latest_infos(self) -> list[dict[str, Any]]:
        """The environments' infos of the latest step."""
        return self.infos

    def restore(self, episodes: Sequence[Episode | None]) -> NDArray[np.float64]:
        """Replay episodes in freshly made environments; ``None`` where none was running.

        Returns:
            The returns of the episodes, (n,); NaN for one that ended before its last step.
        """
        returns = np.zeros(len(self.envs))
        for i, (env, episode) in enumerate(zip(self.envs, episodes, strict=True)):
            for observation, reward, ended in () if episode is None else replay(env, episode):
                self._observe(i, observation)
                returns[i] = np.nan if ended else returns[i] + reward
                self.alive()
        self.infos = [{} for _ in self.envs]
        return returns

    def close(self) -> None:
        """Close all environments."""
        for env in self.envs:
            env.close()

    def _observe(self, i: int, observation: Any) -> None:
        write_observation(self.observations[i, ...], observation, self.envs[i].env)

    def _locate(self, i: int, error: BaseException, result: Any = NO_STEP) -> None:
        """Tell where an environment failed: raise an error that says so, or add a note to its own.

        Args:
            i: number of the environment.
            error: what was raised.
            result: of the step in which it failed, if it was that.

        Raises:
            BrokenEnvironmentError: unless it is an error of the environment's own.
        """
        env = self.envs[i]
        where = f"in task {env.task} at step {env.steps:,}"
        try:
            if isinstance(error, SystemExit):
                raise exited(env.env, error)
            if result is not NO_STEP:
                check_step(result, env.env)
            if isinstance(error, BrokenEnvironmentError):
                raise error
        except BrokenEnvironmentError as broken:
            raise BrokenEnvironmentError(f"{broken} ({where})") from None
        error.add_note(f"raised by {env.env.unwrapped} {where}")


def replay(env: TaskEnv, episode: Episode) -> Iterator[tuple[Any, Any, bool]]:
    """Replay an episode in a freshly made environment, until its last logged action or its end.

    Yields:
        Observation, reward and whether the episode ended, for the reset and for each step.
    """
    if env.visit != env.schedule.visit_at(episode.began):  # the same task twice in a row is no switch
        env.enter(env.schedule, episode.began)
    env.steps = episode.began
    env.lifelong = episode.lifelong
    yield env.reset(episode.seed), 0.0, False
    for action in episode.actions.copy():
        observation, reward, terminated, truncated, _ = env.step(action)
        ended = bool(terminated or truncated)
        yield observation, reward, ended
        if ended:
            return
