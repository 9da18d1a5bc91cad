"""Any Gymnasium environments as the sub-environments of a stream, restored by replay."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from neoteny.envs.engine import StepResult
from neoteny.envs.observations import ObservationSpec
from neoteny.envs.schedule import Schedule
from neoteny.envs.single.episodes import Episode, EpisodeLog
from neoteny.envs.single.serial import SerialEnvs
from neoteny.envs.single.workers import ProcessEnvs
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction, episode_seed


@dataclasses.dataclass(frozen=True)
class SingleConfig:
    """Environments that are stepped one by one, or in processes."""

    name: ClassVar[str] = "single"
    gradual: ClassVar[bool] = True
    otherwise: ClassVar[str] = ""

    workers: int = dataclasses.field(default=0, metadata={"resumable": True})
    """Step the sub-environments in so many processes of their own; 0: in this one."""
    replay: bool = dataclasses.field(default=True, metadata={"resumable": True})
    """When a stopped run goes on, replay its running episodes, for the same bits; else start new ones."""

    def recognizes(self, env: gym.Env) -> bool:
        """Any environment."""
        return True

    def covers(self, env: gym.Env) -> None:
        """All."""

    def observation_spec(self, env: gym.Env) -> ObservationSpec | None:
        """Nothing is known of environments in general."""
        return None

    def check(self, num_envs: int) -> None:
        """Raise ValueError unless there is an environment for each worker."""
        if not 0 <= self.workers <= num_envs:
            raise ValueError(
                f"--stream.single.workers must be 0 to {num_envs}, the number of environments, "
                f"not {self.workers}"
            )

    def make(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, device: torch.device | str | None
    ) -> SingleEngine:
        """An engine for N sub-environments."""
        return SingleEngine(task, spaces, num_envs, self.workers, self.replay)


class SingleEngine:
    """N environments, each of which starts episode after episode from seeds of its own.

    They live in the memory of the CPU.

    Args:
        num_envs: N.
        workers, replay: as in :class:`SingleConfig`.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        task: TaskFunction,
        spaces: Spaces,
        num_envs: int,
        workers: int = 0,
        replay: bool = True,
    ) -> None:
        self.make_task, self.spaces, self.num_envs, self.replay = task, spaces, num_envs, replay
        self.log = EpisodeLog(batch_space(spaces[1], num_envs))
        self.envs: SerialEnvs | ProcessEnvs = (
            ProcessEnvs(task, spaces, self.log, workers)
            if workers
            else SerialEnvs(task, spaces, num_envs, stride=num_envs)
        )
        self.clear()

    @property
    def observations(self) -> Tensor:
        """The latest, (N, ...)."""
        return torch.from_numpy(self.envs.observations.copy())

    def clear(self) -> None:
        """Go back to before the first episode."""
        self.exact = True
        self.episodes = np.full(self.num_envs, -1)
        self.log.clear()

    def enter(self, schedule: Schedule, step: int) -> None:
        """Go over to the task that is on at ``step`` of the stream; all must be reset then."""
        self.seed, self.task, self.now = schedule.seed, schedule.task_at(step), step
        self.log.clear()
        self.envs.enter(schedule, step)

    def reset(self, done: Tensor | None = None) -> None:
        """Start an episode where ``done``, (N,); everywhere if it is ``None``."""
        mask = np.ones(self.num_envs, dtype=bool) if done is None else done.numpy()
        self.episodes[mask] += 1
        seeds = [self._seed(env) if mask[env] else None for env in range(self.num_envs)]
        for env, (seed, lifelong) in enumerate(zip(seeds, self.envs.reset(seeds))):
            if seed is not None:
                self.log.begin(env, self.now, seed, lifelong)

    def step(self, actions: Tensor | NDArray[Any]) -> StepResult:
        """Step all, actions (N, ...); they are logged as they are carried out."""
        array = actions.cpu().numpy() if isinstance(actions, Tensor) else actions
        array = array.astype(self.log.actions.dtype, casting="same_kind")
        *results, infos = self.envs.step(array)
        self.log.append(array)
        self.now += self.num_envs
        rewards, terminated, truncated = map(torch.from_numpy, results)
        return rewards, terminated, truncated, infos

    def single_env(self, schedule: Schedule, step: int) -> TaskEnv:
        """One more, which carries what the first of the others carried into its episode."""
        env = TaskEnv(self.make_task, self.spaces, stride=0)
        env.enter(schedule, step)
        if running := self.log[0]:
            env.lifelong = running.lifelong
        return env

    def state_dict(self) -> dict[str, Any]:
        """Which episodes are running, and how far they came."""
        return {
            "observations": self.envs.observations.copy(),
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
        self.envs.restore(running)
        self.log.load(running)
        self.exact = self.replay
        now, before = self.envs.observations, state["observations"]
        if self.replay and not np.array_equal(now, before, equal_nan=now.dtype.kind == "f"):
            raise ValueError(
                f"task {self.task} is no function of seeds and actions: its replay went elsewhere; "
                f"--stream.single.no-replay starts new episodes instead"
            )

    def close(self) -> None:
        """Close all."""
        self.envs.close()

    def _seed(self, env: int) -> int:
        """Of the episode that is on in an environment."""
        return episode_seed(self.seed, self.task, env, int(self.episodes[env]))
