"""One sub-environment of a stream, whichever task is on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from neoteny.envs.audit import parameters, set_parameters
from neoteny.envs.engine import Spaces, TaskFunction, check_spaces
from neoteny.envs.schedule import Schedule
from neoteny.envs.single.episodes import Episode


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
        observation = self.env.reset(seed=seed)[0]
        if np.shape(observation) != self.spaces[0].shape:
            raise ValueError(
                f"an observation of shape {np.shape(observation)} is none of {self.spaces[0]}: {self.env}"
            )
        return observation

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the task's environment."""
        self._move()
        self.steps += self.stride
        return self.env.step(action)

    def play(self, episode: Episode) -> Iterator[Any]:
        """Play an episode in the environment that was just made; yields its observations."""
        if self.visit != self.schedule.visit_at(episode.began):  # the same task twice in a row is no switch
            self.enter(self.schedule, episode.began)
        self.steps = episode.began
        self.lifelong = episode.lifelong
        yield self.reset(episode.seed)
        for action in episode.actions.copy():
            yield self.step(action)[0]

    def close(self) -> None:
        """Close the task's environment."""
        if self.env is not None:
            self.env.close()

    def _move(self) -> None:
        """Where tasks turn into one another gradually: set the parameters of this very step."""
        if self.path:
            progress = self.schedule.progress_at(self.steps)
            set_parameters(self.env, {name: _between(*ends, progress) for name, ends in self.path.items()})


def _between(old: float, new: float, progress: float) -> float:
    """The value at 0 to 1 of the way; whole numbers stay whole."""
    value = new if progress == 1 else old + progress * (new - old)
    return round(value) if isinstance(old, int) and isinstance(new, int) else value
