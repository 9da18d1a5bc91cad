"""The engine that steps N games of MinAtar on tensors, on the agent's device."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import gymnasium as gym
import torch
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from numpy.typing import NDArray
from torch import Tensor

from neoteny.envs.engine import OTHER_ENGINE, StepResult, UncoveredError, without_gradients
from neoteny.envs.minatar.env import MinAtar
from neoteny.envs.minatar.games import Definition, Games, leaves
from neoteny.envs.observations import ObservationSpec
from neoteny.envs.repeatable import first_reason, later, shared_state
from neoteny.envs.schedule import Schedule
from neoteny.envs.seeds import EpisodeSeeds
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction, make_task_env
from neoteny.envs.user_code import users_members


@dataclasses.dataclass(frozen=True)
class MinAtarConfig:
    """Games of MinAtar as tensors on the agent's device."""

    name: ClassVar[str] = "minatar"
    gradual: ClassVar[bool] = False
    on_cpu: ClassVar[bool] = True
    otherwise: ClassVar[str] = "the games of this stream are stepped one by one, which takes much longer"

    def recognizes(self, env: gym.Env) -> bool:
        """Whether it is a game of MinAtar."""
        return isinstance(env.unwrapped, MinAtar)

    def covers(self, task: TaskFunction, k: int, seed: int) -> None:
        """Raise UncoveredError if something was added to the game, or two environments of a task differ."""
        if definition_of(task(k, seed)) != definition_of(task(k, seed)):
            raise UncoveredError("two environments of the same task are different games")

    def unrepeatable(self, task: TaskFunction, spaces: Spaces, schedule: Schedule) -> str:
        """Why a task may be another game when it is made again; empty if it is not. States are stored."""
        return first_reason(schedule, lambda visit: _unrepeatable(task, schedule, visit))

    def observation_spec(self, env: gym.Env) -> ObservationSpec | None:
        """Planes, whose channels come last, whatever their number."""
        game = env.unwrapped
        if type(game) is MinAtar and env.observation_space == game.observation_space:
            return ObservationSpec(game.definition.space, "planes", "last")
        return None

    def check(self, num_envs: int) -> None:
        """Nothing to check."""

    def make(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, device: torch.device | str | None
    ) -> MinAtarEngine:
        """An engine for N sub-environments, on the agent's device."""
        return MinAtarEngine(task, spaces, num_envs, device or "cpu")


class MinAtarEngine:
    """N games of MinAtar on tensors, which do the same as N single environments.

    Environment ``i`` does not depend on N: its random numbers are functions of the seed of the episode and
    the number of the step.

    Args:
        num_envs: N.
        device: device of all tensors.
    """

    capturable = True

    def __init__(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, device: torch.device | str = "cpu"
    ) -> None:
        self.make_task, self.spaces, self.num_envs = task, spaces, num_envs
        self.device = torch.device(device)
        self.clear()

    def clear(self) -> None:
        """Discard all episodes and tasks, as if just constructed."""
        self.inexact = ""
        self.episodes = torch.full((self.num_envs,), -1, device=self.device)
        """Numbers of the running episodes, counted over all tasks, (N,)."""

    def enter(self, schedule: Schedule, step: int) -> None:
        """Switch to the task of the stream's ``step``; all environments must be reset afterwards."""
        env = make_task_env(self.make_task, self.spaces, schedule, step)
        self.k = env.task
        self.games = Games(definition_of(env.env), self.num_envs, self.device)
        self.seeds = EpisodeSeeds(schedule.seed, self.k, self.num_envs, self.device)
        env.close()

    def reset(self, done: Tensor | None = None) -> None:
        """Start new episodes where ``done``, (N,), is true; in all environments if it is ``None``."""
        if done is None:
            done = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        with without_gradients():
            self.episodes += done
            self.games.reset(done, self.seeds(self.episodes))

    def begin_step(self) -> None:
        """Nothing to do before a step."""

    def step(self, actions: Tensor | NDArray[Any]) -> StepResult:
        """Step all environments, actions (N,); observations of ended episodes are their final ones."""
        with without_gradients():
            results = self.games.step(torch.as_tensor(actions, device=self.device))
        reward, terminated, truncated = (tensor.clone() for tensor in results)
        return reward, terminated, truncated, ()

    @property
    def observations(self) -> Tensor:
        """The latest observations, (N, 10, 10, C)."""
        return self.games.observe()

    def single_env(self, schedule: Schedule, step: int) -> TaskEnv:
        """A single game of the current task."""
        return make_task_env(self.make_task, self.spaces, schedule, step)

    def state_dict(self) -> dict[str, Any]:
        """The state of all environments."""
        return {
            "episodes": self.episodes.clone(),
            "games": {name: tensor.clone() for name, tensor in self._tensors().items()},
        }

    def load_state_dict(self, state: dict[str, Any], schedule: Schedule, step: int, returns: Tensor) -> None:
        """Restore a state that was saved at ``step`` of a stream with the same tasks.

        Raises:
            ValueError: the tensors have other shapes than the task's.
        """
        self.clear()
        self.enter(schedule, step)
        if "games" not in state:
            self.reset()
            self.inexact = OTHER_ENGINE
            return
        self.episodes.copy_(state["episodes"])
        for name, tensor in self._tensors().items():
            saved = state["games"].get(name)
            if saved is None or saved.shape != tensor.shape:
                raise ValueError(f"{name} of the saved games does not fit task {self.k}")
            tensor.copy_(saved)
        self.games.mix_seeds()

    def close(self) -> None:
        """Nothing to close."""

    def _tensors(self) -> dict[str, Tensor]:
        games = self.games
        own = {"seeds": games.seeds, "count": games.count, "last_action": games.last_action}
        return own | dict(leaves(games.state))


def definition_of(env: gym.Env) -> Definition:
    """The game of an environment; UncoveredError if something was added to it."""
    while isinstance(env, OrderEnforcing | PassiveEnvChecker):
        env = env.env
    if isinstance(env, gym.Wrapper) or type(env) is not MinAtar:
        raise UncoveredError(f"what {type(env).__name__} does is not known")
    if changed := users_members(env):
        raise UncoveredError(f"the game has another {', '.join(sorted(changed))}")
    return env.definition


def _unrepeatable(task: TaskFunction, schedule: Schedule, visit: int) -> str:
    k = schedule.task_of(visit)
    with shared_state() as shared:
        one = definition_of(task(k, schedule.seed))
        with later():
            other = definition_of(task(k, schedule.seed))
        return shared.changed() or ("the game depends on the time" if one != other else "")
