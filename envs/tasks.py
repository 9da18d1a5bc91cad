"""Tasks of a stream: task functions, shared spaces and seeds, and the environment of the current task."""

from __future__ import annotations

import copy
import functools
import re
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete

from neoteny.envs.audit import parameters, set_parameters
from neoteny.envs.schedule import Schedule
from neoteny.envs.user_code import module_of

TaskFunction = Callable[[int, int], gym.Env]
"""Makes task ``k`` from ``(k, seed)``."""

Spaces = tuple[gym.Space, gym.Space]
"""Observation and action space of one environment, the same in all tasks of a stream."""


class TaskEnv:
    """One environment of a stream, replaced by that of the new task at each switch.

    An environment or wrapper that carries state from one episode to the next must expose it as
    ``lifelong_state``.

    Discrete actions are numbered from 0, see :func:`agent_actions`.

    Args:
        stride: steps of the stream per step of this environment.
    """

    def __init__(self, task: TaskFunction, spaces: Spaces, stride: int) -> None:
        self.make_task, self.spaces, self.stride = task, spaces, stride
        self.same_actions = agent_actions(spaces[1]) is spaces[1]
        self.env: Any = None

    def enter(self, schedule: Schedule, steps: int) -> None:
        """Make the environment of the task at the stream's step ``steps``; ValueError for other spaces."""
        self.close()
        self.schedule, self.steps = schedule, steps
        self.visit = schedule.visit_at(steps)
        self.task = schedule.task_of(self.visit)
        self.env = self.make_task(self.task, schedule.seed)
        check_spaces(self.env, self.spaces, self.task)
        layers = [self.env]  # wrappers from the outermost, then the environment
        while isinstance(layers[-1], gym.Wrapper):
            layers.append(layers[-1].env)
        self.layers = [layer for layer in layers if hasattr(layer, "lifelong_state")]
        self.path: dict[str, tuple[float, float]] = {}
        if schedule.drift_fraction and self.visit:
            before = self.make_task(schedule.task_of(self.visit - 1), schedule.seed)
            old, new = parameters(before), parameters(self.env)
            before.close()
            # Only what differs, since an environment may count its steps in a number of its own.
            both = {name: (old[name], new[name]) for name in new if name in old}
            self.path = {name: (was, now) for name, (was, now) in both.items() if was != now}

    @property
    def lifelong(self) -> list[Any]:
        """Copies of the lifelong states of the wrappers and the environment, the outermost first."""
        return [copy.deepcopy(layer.lifelong_state) for layer in self.layers]

    @lifelong.setter
    def lifelong(self, states: list[Any]) -> None:
        for layer, state in zip(self.layers, states, strict=True):
            layer.lifelong_state = copy.deepcopy(state)

    def reset(self, seed: int) -> Any:
        """Start an episode; returns its first observation."""
        self._move()
        return self.env.reset(seed=seed)[0]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the task's environment."""
        self._move()
        self.steps += self.stride
        return self.env.step(action if self.same_actions else self._own_action(action))

    def close(self) -> None:
        """Close the task's environment; what fails in that loses nothing, so it only prints a warning."""
        if self.env is not None:
            try:
                self.env.close()
            except (Exception, SystemExit) as error:
                print(f"warning: {self.env.unwrapped} could not be closed: {error!r}", file=sys.stderr)

    def _own_action(self, action: Any) -> Any:
        """An action as the environment numbers it, in the dtype of its space."""
        space: Any = self.spaces[1]
        return np.asarray(action + space.start).astype(space.dtype)[()]

    def _move(self) -> None:
        """Set the parameters of the current step, if tasks turn gradually into one another."""
        if self.path:
            progress = self.schedule.progress_at(self.steps)
            set_parameters(self.env, {name: _between(*ends, progress) for name, ends in self.path.items()})


def is_shipped(task: TaskFunction) -> bool:
    """Whether a task function is a shipped stream's, which the project's tests check, without a wrapper."""
    while isinstance(task, functools.partial):  # with --stream.games
        task = task.func
    return re.fullmatch(r"neoteny\.envs\.\w+\.streams", module_of(task)) is not None


def make_task_env(task: TaskFunction, spaces: Spaces, schedule: Schedule, step: int) -> TaskEnv:
    """A separate environment of the task at ``step`` of a stream, which stays as it is at that step."""
    env = TaskEnv(task, spaces, stride=0)
    env.enter(schedule, step)
    return env


class SpacesError(ValueError):
    """A task of a stream has other spaces than the first."""


def check_spaces(env: gym.Env, spaces: Spaces, task: int) -> None:
    """Raise SpacesError if an environment's spaces differ from the stream's."""
    for kind, space in zip(("observation_space", "action_space"), spaces):
        if getattr(env, kind) != space:
            message = (
                f"all tasks of a stream share their spaces, but {kind} of task {task} is "
                f"{getattr(env, kind)} and was {space}"
            )
            raise SpacesError(" ".join(message.split()))


def agent_actions(space: gym.Space) -> gym.Space:
    """The action space that a stream offers for environments with ``space``.

    It is the space itself, unless there are discrete actions that are not numbered from 0 in int64.
    """
    if isinstance(space, Discrete) and (space.start or space.dtype != np.int64):
        return Discrete(int(space.n))
    if isinstance(space, MultiDiscrete) and (space.start.any() or space.dtype != np.int64):
        return MultiDiscrete(space.nvec)
    return space


def _between(old: float, new: float, progress: float) -> float:
    """Linear interpolation at ``progress`` in [0, 1]; integers are rounded to integers."""
    value = new if progress == 1 else old + progress * (new - old)
    return round(value) if isinstance(old, int) and isinstance(new, int) else value
