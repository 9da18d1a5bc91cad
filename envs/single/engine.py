"""Any Gymnasium environments as the sub-environments of a stream, brought back where they were by replay."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from neoteny.envs.engine import Spaces, TaskFunction, episode_seed
from neoteny.envs.schedule import Schedule
from neoteny.envs.single.episodes import Episode, EpisodeLog
from neoteny.envs.single.serial import TaskEnvs
from neoteny.envs.single.workers import Workers


class PlayedEnvs:
    """N environments, each of which starts episode after episode from seeds of its own.

    They live in the memory of the CPU. The interface is that of
    :class:`neoteny.envs.grid.engine.GridEnvs` too.

    Args:
        num_envs: N.
        workers, worker_timeout, replay: as in :class:`neoteny.envs.stream.StreamConfig`.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        task: TaskFunction,
        spaces: Spaces,
        num_envs: int,
        workers: int = 0,
        worker_timeout: float = 60.0,
        replay: bool = True,
    ) -> None:
        self.num_envs, self.replay = num_envs, replay
        self.log = EpisodeLog(batch_space(spaces[1], num_envs))
        self.members: TaskEnvs | Workers = (
            Workers(task, spaces, self.log, workers, worker_timeout)
            if workers
            else TaskEnvs(task, spaces, num_envs, stride=num_envs)
        )
        self.clear()

    @property
    def observations(self) -> Tensor:
        """The latest, (N, ...)."""
        return torch.from_numpy(self.members.observations.copy())

    def clear(self) -> None:
        """Go back to before the first episode."""
        self.exact = True  # what comes is a function of seeds and actions alone
        self.episodes = np.full(self.num_envs, -1)
        self.log.clear()

    def enter(self, schedule: Schedule, step: int) -> None:
        """Go over to the task that is on at ``step`` of the stream; all must be reset then."""
        self.seed, self.task, self.now = schedule.seed, schedule.task_at(step), step
        self.log.clear()
        self.members.enter(schedule, step)

    def reset(self, done: Tensor | None = None) -> None:
        """Start an episode where ``done``, (N,); everywhere if it is ``None``."""
        mask = np.ones(self.num_envs, dtype=bool) if done is None else done.numpy()
        self.episodes[mask] += 1
        seeds = [self._seed(env) if mask[env] else None for env in range(self.num_envs)]
        for env, (seed, lifelong) in enumerate(zip(seeds, self.members.reset(seeds))):
            if seed is not None:
                self.log.begin(env, self.now, seed, lifelong)

    def step(self, actions: NDArray[Any]) -> tuple[Tensor, Tensor, Tensor, list[dict[str, Any]]]:
        """Step all; returns rewards, float64, terminated and truncated, (N,), and the info of each.

        Actions, (N, ...), have the dtype of their space and are kept.
        """
        *arrays, infos = self.members.step(actions)
        self.log.append(actions)
        self.now += self.num_envs
        rewards, terminated, truncated = map(torch.from_numpy, arrays)
        return rewards, terminated, truncated, infos

    def state_dict(self) -> dict[str, Any]:
        """Which episodes are running, and how far they came."""
        return {
            "raw": self.members.observations.copy(),
            "episodes": self.episodes.copy(),
            "running": [dataclasses.asdict(episode) for episode in self.log.running()],
        }

    def load_state_dict(self, state: dict[str, Any], schedule: Schedule, step: int) -> None:
        """Go to where others of the same tasks were at ``step`` of the stream.

        Raises ValueError if the episodes come out otherwise. Without ``replay``, each is cut short and a new
        one begins, with what the old one carried over from those before it; what comes is not ``exact`` then.
        """
        self.enter(schedule, step)
        self.episodes = state["episodes"].copy()
        running = [Episode(**episode) for episode in state["running"]]
        if not self.replay:
            self.episodes += 1
            running = [
                Episode(step, self._seed(env), old.lifelong, old.actions[:0])
                for env, old in enumerate(running)
            ]
        self.members.restore(running)
        self.log.load(running)
        self.exact = self.replay
        raw = self.members.observations
        if self.replay and not np.array_equal(raw, state["raw"], equal_nan=raw.dtype.kind == "f"):
            raise ValueError(
                f"task {self.task} is no function of seeds and actions: its replay went elsewhere; "
                f"--stream.no-replay starts new episodes instead"
            )

    def close(self) -> None:
        """Close all."""
        self.members.close()

    def _seed(self, env: int) -> int:
        """Of the episode that is on in an environment."""
        return episode_seed(self.seed, self.task, env, int(self.episodes[env]))
