"""Tasks of a stream: the functions that make them, what they share, and the environment of one of them."""

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
"""Of one observation and one action, the same in all tasks of a stream."""


class TaskEnv:
    """One sub-environment: the environment of whichever task is on.

    What an environment or a wrapper carries from one episode to the next must be offered as
    ``lifelong_state``.

    Args:
        stride: by how much one step here moves the stream on.
    """

    def __init__(self, task: TaskFunction, spaces: Spaces, stride: int) -> None:
        self.make_task, self.spaces, self.stride = task, spaces, stride
        self.env: Any = None

    def enter(self, schedule: Schedule, steps: int) -> None:
        """Make the environment of the task that is on at step ``steps``; its spaces must be the stream's."""
        self.close()
        self.schedule, self.steps = schedule, steps
        self.visit = schedule.visit_at(steps)
        task = schedule.task_of(self.visit)
        self.env = self.make_task(task, schedule.seed)
        check_spaces(self.env, self.spaces, task)
        layers = [self.env]  # its wrappers, from the outermost, and the environment itself
        while isinstance(layers[-1], gym.Wrapper):
            layers.append(layers[-1].env)
        self.layers = [layer for layer in layers if hasattr(layer, "lifelong_state")]
        self.path: dict[str, tuple[float, float]] = {}
        if schedule.span and self.visit:
            before = self.make_task(schedule.task_of(self.visit - 1), schedule.seed)
            old, new = parameters(before), parameters(self.env)
            before.close()
            self.path = {name: (old[name], new[name]) for name in new if name in old}

    @property
    def lifelong(self) -> list[Any]:
        """What the environment and its wrappers carry from one episode to the next, the outermost first."""
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
        """Where tasks turn into one another gradually: set the parameters of this very step."""
        if self.path:
            progress = self.schedule.progress_at(self.steps)
            set_parameters(self.env, {name: _between(*ends, progress) for name, ends in self.path.items()})


def check_spaces(env: gym.Env, spaces: Spaces, task: int) -> None:
    """Raise ValueError for an environment whose spaces are not the stream's."""
    for kind, space in zip(("observation_space", "action_space"), spaces):
        if getattr(env, kind) != space:
            raise ValueError(
                f"all tasks of a stream share their spaces, but {kind} of task {task} is "
                f"{getattr(env, kind)} and was {space}"
            )


def write_observation(out: np.ndarray, observation: Any, env: gym.Env) -> None:
    """Copy an observation into its place, checked as Gymnasium's SyncVectorEnv checks it.

    Raises:
        ValueError: its shape, or the type of its numbers, is not that of the environment's space.
    """
    array: np.ndarray = np.asarray(observation)
    is_shape, is_kind = array.shape == out.shape, np.can_cast(array.dtype, out.dtype, "same_kind")
    if not (is_shape and is_kind):
        found = array.dtype if is_shape else f"shape {array.shape}"
        raise ValueError(
            f"{env.unwrapped} gave an observation of {found}, which is not in its {env.observation_space}"
        )
    out[...] = observation


def try_out(env: gym.Env, steps: int = 16) -> np.ndarray:
    """Reset and step an environment of its own for this, under random actions, and check what it gives.

    Returns:
        The observations of all steps, (steps, ...).

    Raises:
        ValueError: an observation is not in the environment's space.
        Exception: whatever the environment raises.
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
            raise ValueError(f"a step of {env.unwrapped} gave {len(result)} values, not Gymnasium's five")
        observation, reward, terminated, truncated, _ = result
        write_observation(seen[step, ...], observation, env)
        number: np.ndarray = np.asarray(reward)
        if number.ndim or number.dtype.kind not in "biuf":
            raise ValueError(f"{env.unwrapped} gave {reward!r} as a reward, which is no number")
        ended = bool(terminated or truncated)
    return seen


def episode_seed(run: int, task: int, env: int, episode: int) -> int:
    """The 63-bit seed of one episode: independent streams, where ``seed + env`` overlaps between runs."""
    return int(np.random.SeedSequence([run, task, env, episode]).generate_state(1, np.uint64)[0] >> 1)


def _between(old: float, new: float, progress: float) -> float:
    """The value at 0 to 1 of the way; whole numbers stay whole."""
    value = new if progress == 1 else old + progress * (new - old)
    return round(value) if isinstance(old, int) and isinstance(new, int) else value
