"""The engine for any Gymnasium environment; running episodes are restored by replay."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from neoteny.envs.engine import OTHER_ENGINE, StepResult
from neoteny.envs.observations import ObservationSpec
from neoteny.envs.repeatable import first_reason, unrepeatable_episodes
from neoteny.envs.schedule import Schedule
from neoteny.envs.seeds import episode_seed
from neoteny.envs.single.episodes import Episode, EpisodeLog
from neoteny.envs.single.serial import SerialEnvs
from neoteny.envs.single.workers import ProcessEnvs
from neoteny.envs.tasks import (
    Spaces,
    TaskEnv,
    TaskFunction,
    agent_actions,
    make_task_env,
)

LONG = 1_000_000  # steps of an episode whose replay is worth a warning
MOST_ENVS = 2**14
MOST_WORKERS = 256


@dataclasses.dataclass(frozen=True)
class SingleConfig:
    """Environments that are stepped one by one in this process, or in worker processes."""

    name: ClassVar[str] = "single"
    gradual: ClassVar[bool] = True
    on_cpu: ClassVar[bool] = True
    otherwise: ClassVar[str] = ""

    workers: int = dataclasses.field(default=0, metadata={"resumable": True})
    """Number of worker processes that step the sub-environments; 0: step them in this process."""
    replay: bool = dataclasses.field(default=True, metadata={"resumable": True})
    """On resume, replay the running episodes for bit-identical results; else start new ones."""

    def recognizes(self, env: gym.Env) -> bool:
        """Any environment."""
        return True

    def covers(self, task: TaskFunction, k: int, seed: int) -> None:
        """Accept any task."""

    def unrepeatable(self, task: TaskFunction, spaces: Spaces, schedule: Schedule) -> str:
        """Why episodes of the same seed and actions may differ; empty if they do not."""
        return first_reason(schedule, lambda visit: unrepeatable_episodes(task, spaces, schedule, visit))

    def observation_spec(self, env: gym.Env) -> ObservationSpec | None:
        """``None``: the observation space says all that is known."""
        return None

    def check(self, num_envs: int) -> None:
        """Raise ValueError if there are more workers than environments, or than a machine can run."""
        if not 0 <= self.workers <= min(num_envs, MOST_WORKERS):
            why = "the number of environments" if num_envs <= MOST_WORKERS else "each a process of 200 MB"
            raise ValueError(
                f"--stream.single.workers must be 0 to {min(num_envs, MOST_WORKERS)}, {why}, "
                f"not {self.workers}"
            )

    def make(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, device: torch.device | str | None
    ) -> SingleEngine:
        """An engine for N sub-environments; ValueError if they are too many to be stepped one by one."""
        if num_envs > MOST_ENVS:
            raise ValueError(f"at most {MOST_ENVS:,} environments are stepped one by one, not {num_envs:,}")
        return SingleEngine(task, spaces, num_envs, self.workers, self.replay)


class SingleEngine:
    """N environments on the CPU, each with its own sequence of episode seeds.

    Args:
        num_envs: N.
        workers, replay: as in :class:`SingleConfig`.
    """

    device = torch.device("cpu")
    capturable = False

    def __init__(
        self,
        task: TaskFunction,
        spaces: Spaces,
        num_envs: int,
        workers: int = 0,
        replay: bool = True,
    ) -> None:
        self.make_task, self.spaces, self.num_envs, self.replay = task, spaces, num_envs, replay
        self.log = EpisodeLog(batch_space(agent_actions(spaces[1]), num_envs))
        self.envs: SerialEnvs | ProcessEnvs = (
            ProcessEnvs(task, spaces, self.log, workers)
            if workers
            else SerialEnvs(task, spaces, num_envs, stride=num_envs)
        )
        self._warned = False
        self.clear()

    @property
    def observations(self) -> Tensor:
        """The latest observations, (N, ...)."""
        return torch.from_numpy(self.envs.observations.copy())

    def clear(self) -> None:
        """Discard all episodes and tasks, as if just constructed."""
        self.inexact = ""
        self.episodes = np.full(self.num_envs, -1)
        self.log.clear()

    def enter(self, schedule: Schedule, step: int) -> None:
        """Switch to the task of the stream's ``step``; all environments must be reset afterwards."""
        self.seed, self.task, self.now = schedule.seed, schedule.task_at(step), step
        self.log.clear()
        self.envs.enter(schedule, step)

    def reset(self, done: Tensor | None = None) -> None:
        """Start new episodes where ``done``, (N,), is true; in all environments if it is ``None``."""
        mask = np.ones(self.num_envs, dtype=bool) if done is None else done.numpy()
        self.episodes[mask] += 1
        seeds = [self._seed(env) if mask[env] else None for env in range(self.num_envs)]
        for env, (seed, lifelong) in enumerate(zip(seeds, self.envs.reset(seeds))):
            if seed is not None:
                self.log.begin(env, self.now, seed, lifelong)

    def begin_step(self) -> None:
        """Nothing to do before a step."""

    def step(self, actions: Tensor | NDArray[Any]) -> StepResult:
        """Step all environments and log the actions, (N, ...)."""
        array = actions.cpu().numpy() if isinstance(actions, Tensor) else actions
        array = array.astype(self.log.actions.dtype, casting="same_kind")
        results = self.envs.step(array)
        self.log.append(array)
        self.now += self.num_envs
        rewards, terminated, truncated = map(torch.from_numpy, results)
        return rewards, terminated, truncated, self.envs.infos

    def single_env(self, schedule: Schedule, step: int) -> TaskEnv:
        """One more environment, with the lifelong state with which environment 0 began its episode."""
        env = make_task_env(self.make_task, self.spaces, schedule, step)
        if running := self.log[0]:
            env.lifelong = running.lifelong
        return env

    def state_dict(self) -> dict[str, Any]:
        """The running episodes: seeds, actions so far and lifelong states; without ``replay`` no actions."""
        running = self.log.running()
        longest = max((len(episode.actions) for episode in running), default=0)
        if not self.replay:
            running = [dataclasses.replace(episode, actions=episode.actions[:0]) for episode in running]
        elif longest > LONG and not self._warned:
            self._warned = True
            print(
                f"warning: an episode has {longest:,} steps so far: each checkpoint holds its actions, and a "
                "resume plays them again; --stream.single.no-replay begins a new one instead",
                file=sys.stderr,
            )
        return {
            "observations": self.envs.observations.copy(),
            "episodes": self.episodes.copy(),
            "running": [dataclasses.asdict(episode) for episode in running],
            "replay": self.replay,
        }

    def load_state_dict(self, state: dict[str, Any], schedule: Schedule, step: int, returns: Tensor) -> None:
        """Restore a state that was saved at ``step`` of a stream with the same tasks.

        Without ``replay``, or if it gives other observations, rewards or ends than before, every running
        episode is cut short and a new one begins with the lifelong state of the old one.
        """
        self.enter(schedule, step)
        if "running" not in state:
            self.inexact = OTHER_ENGINE
            self.reset()
            return
        self.episodes = state["episodes"].copy()
        running = [Episode(**episode) for episode in state["running"]]
        self.inexact = "running episodes were replaced by new ones (--stream.single.no-replay)"
        if self.replay and state.get("replay", True):
            replayed = self.envs.restore(running)
            self.inexact = self._difference(state["observations"], returns, replayed)
        if self.inexact:
            self.enter(schedule, step)
            self.episodes += 1
            running = [
                Episode(step, self._seed(env), old.lifelong, old.actions[:0])
                for env, old in enumerate(running)
            ]
            self.envs.restore(running)
        self.log.load(running)

    def close(self) -> None:
        """Close all environments."""
        self.envs.close()

    def _difference(self, observations: NDArray[Any], returns: Tensor, replayed: NDArray[Any]) -> str:
        """What differs between the running episodes, as saved, and their replay; empty if nothing does."""
        now = self.envs.observations
        same = np.array_equal(now, observations, equal_nan=now.dtype.kind == "f")
        if same and np.array_equal(replayed, returns.numpy()):
            return ""
        what = "rewards or ends" if same else "observations"
        return (
            f"the replay of task {self.task} gave other {what} than before, so new episodes began: the task "
            "is not a function of seeds and actions, or its code has changed"
        )

    def _seed(self, env: int) -> int:
        """Seed of the running episode of an environment."""
        return episode_seed(self.seed, self.task, env, int(self.episodes[env]))
