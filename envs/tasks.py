"""Tasks of a stream: task functions, shared spaces and seeds, and the environment of the current task."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from neoteny.envs.audit import parameters, set_parameters
from neoteny.envs.schedule import Schedule

TaskFunction = Callable[[int, int], gym.Env]
"""Makes task ``k`` from ``(k, seed)``."""

Spaces = tuple[gym.Space, gym.Space]
"""Observation and action space of one environment, the same in all tasks of a stream."""


class TaskEnv:
    """One environment of a stream, replaced by that of the new task at each switch.

    An environment or wrapper that carries state from one episode to the next must expose it as
    ``lifelong_state``.

    Args:
        stride: steps of the stream per step of this environment.
    """

    def __init__(self, task: TaskFunction, spaces: Spaces, stride: int) -> None:
        self.make_task, self.spaces, self.stride = task, spaces, stride
        self.env: Any = None

    def enter(self, schedule: Schedule, steps: int) -> None:
        """Make the environment of the task at the stream's step ``steps``; ValueError for other spaces."""
        self.close()
        self.schedule, self.steps = schedule, steps
        self.visit = schedule.visit_at(steps)
        task = schedule.task_of(self.visit)
        self.env = self.make_task(task, schedule.seed)
        check_spaces(self.env, self.spaces, task)
        layers = [self.env]  # wrappers from the outermost, then the environment
        while isinstance(layers[-1], gym.Wrapper):
            layers.append(layers[-1].env)
        self.layers = [layer for layer in layers if hasattr(layer, "lifelong_state")]
        self.path: dict[str, tuple[float, float]] = {}
        if schedule.drift_fraction and self.visit:
            before = self.make_task(schedule.task_of(self.visit - 1), schedule.seed)
            old, new = parameters(before), parameters(self.env)
            before.close()
            self.path = {name: (old[name], new[name]) for name in new if name in old}

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
        return self.env.step(action)

    def close(self) -> None:
        """Close the task's environment."""
        if self.env is not None:
            self.env.close()

    def _move(self) -> None:
        """Set the parameters of the current step, if tasks turn gradually into one another."""
        if self.path:
            progress = self.schedule.progress_at(self.steps)
            set_parameters(self.env, {name: _between(*ends, progress) for name, ends in self.path.items()})


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


def write_observation(out: np.ndarray, observation: Any, env: gym.Env) -> None:
    """Copy an observation into ``out``, with the checks of Gymnasium's SyncVectorEnv.

    Raises:
        ValueError: its shape or dtype does not fit the environment's space.
    """
    array: np.ndarray = np.asarray(observation)
    is_shape, is_kind = array.shape == out.shape, np.can_cast(array.dtype, out.dtype, "same_kind")
    if not (is_shape and is_kind):
        found = array.dtype if is_shape else f"shape {array.shape}"
        raise ValueError(
            f"{env.unwrapped} returned an observation of {found}, which is not in its {env.observation_space}"
        )
    out[...] = observation


def try_out(env: gym.Env, steps: int = 16) -> np.ndarray:
    """Reset and step an environment, used for nothing else, with random actions, and check its results.

    Returns:
        The observations of all steps, (steps, ...).

    Raises:
        ValueError: an observation does not fit the space, a reward is not a number, or a step does not
            return five values.
        Exception: any exception of the environment.
    """
    space = env.observation_space
    assert space.shape is not None
    seen = np.empty((steps, *space.shape), space.dtype)
    env.action_space.seed(0)
    ended = True
    for step in range(steps):
        if ended:
            write_observation(seen[step, ...], env.reset(seed=step)[0], env)
        result = env.step(env.action_space.sample())
        if len(result) != 5:
            raise ValueError(f"a step of {env.unwrapped} returned {len(result)} values, not Gymnasium's five")
        observation, reward, terminated, truncated, _ = result
        write_observation(seen[step, ...], observation, env)
        number: np.ndarray = np.asarray(reward)
        if number.ndim or number.dtype.kind not in "biuf":
            raise ValueError(f"{env.unwrapped} returned the reward {reward!r}, which is not a number")
        ended = bool(terminated or truncated)
    return seen


def episode_seed(run: int, task: int, env: int, episode: int) -> int:
    """The 63-bit seed of one episode, hashed so that runs do not share seeds as with ``seed + env``."""
    return int(np.random.SeedSequence([run, task, env, episode]).generate_state(1, np.uint64)[0] >> 1)


def _between(old: float, new: float, progress: float) -> float:
    """Linear interpolation at ``progress`` in [0, 1]; integers are rounded to integers."""
    value = new if progress == 1 else old + progress * (new - old)
    return round(value) if isinstance(old, int) and isinstance(new, int) else value
