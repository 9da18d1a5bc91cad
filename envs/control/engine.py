"""CartPole, Acrobot and MountainCar on tensors: N environments stepped at once, on the agent's device.

The equations are Gymnasium's (:mod:`neoteny.envs.control.physics`): steps from the same state differ by less
than 1e-12, but at the highest speeds of Acrobot, where a step amplifies the rounding of the state itself.
Episodes begin in states from the same distribution, though not in the same ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neoteny.envs.control.physics import Physics
from neoteny.envs.control.proof import play, unrepeatable_parameters
from neoteny.envs.control.task import ControlTask, simulator_of
from neoteny.envs.engine import OTHER_ENGINE, StepResult, UncoveredError
from neoteny.envs.grid.board import mix
from neoteny.envs.observations import ObservationSpec
from neoteny.envs.repeatable import first_reason
from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction, is_shipped, make_task_env

TRIED = 4
"""Environments that are stepped in a proof."""


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """Classic control as tensors on the agent's device."""

    name: ClassVar[str] = "control"
    gradual: ClassVar[bool] = True
    on_cpu: ClassVar[bool] = False
    otherwise: ClassVar[str] = "Gymnasium's own classes step this stream on the CPU, which takes longer"

    def recognizes(self, env: gym.Env) -> bool:
        """Whether it is CartPole, Acrobot or MountainCar."""
        return simulator_of(env.unwrapped) is not None

    def covers(self, task: TaskFunction, k: int, seed: int) -> None:
        """Raise UncoveredError unless tensors do what the task does; what is a user's is tried."""
        make = functools.partial(task, k, seed)
        env = make()
        try:
            definition = ControlTask(env)
            check_package(type(definition.physics))  # type: ignore[arg-type]
            if not is_shipped(task):
                other = make()
                if name := definition.unlike(ControlTask(other)):
                    raise UncoveredError(f"{name} differs between environments of the same task")
                other.close()
            if definition.is_users:
                prove(make)
        except UncoveredError:
            raise
        except Exception as error:
            raise UncoveredError(f"{type(error).__name__}: {error}") from error
        finally:
            env.close()

    def unrepeatable(self, task: TaskFunction, spaces: Spaces, schedule: Schedule) -> str:
        """Why a task may be another when it is made again; empty if it is not. States are stored."""
        return first_reason(schedule, lambda visit: unrepeatable_parameters(task, schedule, visit))

    def observation_spec(self, env: gym.Env) -> ObservationSpec | None:
        """``None``: the observation space says all that is known."""
        return None

    def check(self, num_envs: int) -> None:
        """Nothing to check."""

    def make(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, device: torch.device | str | None
    ) -> ControlEngine:
        """An engine for N sub-environments, on the agent's device."""
        return ControlEngine(task, spaces, num_envs, device or "cpu")


class ControlEngine:
    """N environments of classic control on tensors.

    Environment ``i`` does not depend on N: the first state of an episode is a function of seed, task, ``i``
    and the number of the episode.

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
        self.numbers: dict[int, Tensor] = {}
        """Numbers of the latest episodes, (N,), by task."""

    def enter(self, schedule: Schedule, step: int) -> None:
        """Switch to the task of the stream's ``step``; all environments must be reset afterwards."""
        env = make_task_env(self.make_task, self.spaces, schedule, step)
        self.k, self.task = env.task, ControlTask(env.env)
        physics = self.task.physics
        self.drift = Drift(self.task.parameters, env.path, schedule, step, self.num_envs, self.device)
        self.constants = physics.constants(self.drift.values.unbind())
        env.close()
        if not schedule.cycle:  # earlier tasks never recur
            self.numbers = {k: numbers for k, numbers in self.numbers.items() if k == self.k}
        shape = len(physics.low), self.num_envs
        self.episodes = self.numbers.setdefault(self.k, torch.full(shape[1:], -1, device=self.device))
        key = int(np.random.SeedSequence([schedule.seed, self.k]).generate_state(1, np.uint64)[0] >> 1)
        each = torch.arange(self.num_envs, device=self.device)
        self.keys = mix(mix(each + key) + torch.arange(shape[0], device=self.device)[:, None])
        """Of the random numbers of each environment, (n, N)."""
        low, high = self._put(physics.low)[:, None], self._put(physics.high)[:, None]
        self.low, self.width = low, (high - low) / 2**53
        self.pushes = self._put(self.task.pushes)
        self.matrix = None if self.task.matrix is None else self._put(self.task.matrix)
        self.state = torch.zeros(shape, dtype=torch.float64, device=self.device)
        """States of the simulators, (n, N)."""
        self.count = torch.zeros_like(self.episodes)
        """Steps of the simulators in the running episodes, (N,)."""

    def reset(self, done: Tensor | None = None) -> None:
        """Start new episodes where ``done``, (N,), is true; in all environments if it is ``None``."""
        if done is None:
            done = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self.episodes += done
        bits = mix(self.keys + self.episodes) & ((1 << 53) - 1)
        first = self.task.physics.first(bits.double().mul_(self.width).add_(self.low))
        torch.where(done, first, self.state, out=self.state)
        self.count.masked_fill_(done, 0)

    def begin_step(self) -> None:
        """Nothing to do before a step."""

    def step(self, actions: Tensor | NDArray[Any]) -> StepResult:
        """Step all environments, actions (N,); observations of ended episodes are their final ones."""
        task, physics, constants = self.task, self.task.physics, self.constants
        if self.drift.is_on:
            constants = physics.constants(self.drift.advance().unbind())
        push = self.pushes.index_select(0, torch.as_tensor(actions, device=self.device))
        before = self.count.clone() if task.times > 1 else None
        self.state.copy_(physics.step(self.state, push, constants))
        self.count += 1
        ended = physics.ended(self.state, constants)
        for _ in range(task.times - 1):
            running = (self.count < task.limit).logical_and_(~ended)
            moved = physics.step(self.state, push, constants)
            torch.where(running, moved, self.state, out=self.state)
            self.count += running
            ended = physics.ended(self.state, constants)
        return self._rewards(physics, ended, before), ended, self.count >= task.cut, ()

    @property
    def observations(self) -> Tensor:
        """The latest observations, (N, ...)."""
        seen = self.task.physics.observe(self.state)
        if self.matrix is not None:
            seen = self.matrix @ seen.float().double()  # in float64 it does not depend on N or the device
        return seen.T.to(torch.float32, memory_format=torch.contiguous_format)

    def single_env(self, schedule: Schedule, step: int) -> TaskEnv:
        """Gymnasium's environment of the current task."""
        return make_task_env(self.make_task, self.spaces, schedule, step)

    def state_dict(self) -> dict[str, Any]:
        """The state of all environments."""
        return {
            "state": self.state.clone(),
            "count": self.count.clone(),
            "episodes": {str(k): numbers.clone() for k, numbers in self.numbers.items()},
        }

    def load_state_dict(self, state: dict[str, Any], schedule: Schedule, step: int, returns: Tensor) -> None:
        """Restore a state that was saved at ``step`` of a stream with the same tasks.

        Raises:
            ValueError: the tensors have other shapes than the task's.
        """
        self.clear()
        if "count" not in state:
            self.enter(schedule, step)
            self.reset()
            self.inexact = OTHER_ENGINE
            return
        self.numbers = {int(k): number.to(self.device, copy=True) for k, number in state["episodes"].items()}
        self.enter(schedule, step)
        for name, tensor in {"state": self.state, "count": self.count}.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} of shape {tuple(state[name].shape)} does not fit task {self.k}")
            tensor.copy_(state[name])

    def close(self) -> None:
        """Nothing to close."""

    def _rewards(self, physics: Physics, ended: Tensor, before: Tensor | None) -> Tensor:
        """Rewards of a step, (N,); ``before`` it the simulators had made so many steps, if actions repeat."""
        each, last = physics.rewards
        if before is None:
            rewards = torch.full(ended.shape, each, dtype=torch.float64, device=self.device)
        else:
            rewards = (self.count - before).double().mul_(each)
        return rewards.add_(ended.double().mul_(last)) if last else rewards

    def _put(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self.device)


class Drift:
    """The parameters of a simulator, which may turn gradually from those of one task into those of the next.

    Each step has the parameters that single environments have at it, see
    :class:`neoteny.envs.tasks.TaskEnv`. They are computed on the device, where the steps are counted too,
    since a captured step does not read from the host.

    Args:
        parameters: of the current task, by name.
        path: values at the beginning and at the end of a gradual change, by name.
        schedule: of the stream.
        step: of the stream, as it is now.
        stride: steps of the stream per step of all environments.
        device: of the parameters.
    """

    def __init__(
        self,
        parameters: Mapping[str, float],
        path: Mapping[str, tuple[float, float]],
        schedule: Schedule,
        step: int,
        stride: int,
        device: torch.device,
    ) -> None:
        ends = [path.get(name, (value, value)) for name, value in parameters.items()]
        old, new = torch.tensor(ends, dtype=torch.float64, device=device).unbind(1)
        self.values = new.clone()
        """Of this step, (P,)."""
        self.is_on = bool(parameters.keys() & path.keys())
        if self.is_on:
            visit = schedule.visit_at(step)
            start = schedule.start_of(visit)
            self.span = schedule.drift_fraction * (schedule.start_of(visit + 1) - start)
            self.made = torch.tensor(float(step - start), dtype=torch.float64, device=device)
            self.stride, self.old, self.new, self.change = stride, old, new, new - old
            whole = [isinstance(was, int) and isinstance(now, int) for was, now in ends]
            self.whole = torch.tensor(whole, device=device) if any(whole) else None

    def advance(self) -> Tensor:
        """The parameters of the step that is about to be made, (P,)."""
        progress = (self.made / self.span).clamp_(max=1.0)
        values = (self.change * progress).add_(self.old)
        if self.whole is not None:
            values = torch.where(self.whole, values.round(), values)
        torch.where(progress == 1, self.new, values, out=self.values)
        self.made += self.stride
        return self.values


def prove(make: Callable[[], gym.Env]) -> None:
    """Raise UncoveredError unless environments are found to do the same on tensors as in the package."""
    env = make()
    engine = ControlEngine(lambda k, seed: make(), (env.observation_space, env.action_space), TRIED)
    env.close()
    engine.enter(Schedule(), 0)
    play(engine, make)


@functools.cache
def check_package(simulator: type[Physics]) -> None:
    """Raise UncoveredError if the installed package has other rules than the simulator."""
    prove(simulator.kind)
