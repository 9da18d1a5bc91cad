"""Sub-environments of a stream, and what it takes to play their running episodes again.

Whatever the task, an environment is a function of its seed, of what it carries over from the episodes before
and of the actions. An :class:`EpisodeLog` keeps these for each running episode, so any environment, without
a way to save its state, is brought back to where it was: after a stop, or when its process was killed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from neoteny.envs.audit import parameters, set_parameters
from neoteny.envs.schedule import Schedule

TaskFunction = Callable[[int, int], gym.Env]
"""Makes task ``k`` from ``(k, seed)``."""

Spaces = tuple[gym.Space, gym.Space]
"""Of one observation and one action, the same in all tasks of a stream."""

Step = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], list[dict[str, Any]]]
"""Rewards, terminated and truncated, (n,), and all infos."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """A running episode, as far as it came."""

    began: int
    """Step of the stream at which it began."""
    seed: int
    """Of its reset."""
    lifelong: list[Any]
    """What the environment and its wrappers carried into it, the outermost first."""
    actions: np.ndarray
    """All so far, (L, ...)."""


class EpisodeLog:
    """The running episodes of all N sub-environments.

    One row of actions for each step since the oldest of them began: as all sub-environments step together,
    appending to N episodes is writing one row.

    Args:
        action_space: of all sub-environments, (N, ...).
    """

    def __init__(self, action_space: gym.Space) -> None:
        assert action_space.shape is not None
        self.num_envs = action_space.shape[0]
        self.actions = np.empty((64, *action_space.shape), action_space.dtype)
        self.clear()

    def clear(self) -> None:
        """No episode is running."""
        self.rows = 0
        self.starts: list[tuple[int, int, int, list[Any]] | None] = [None] * self.num_envs

    def begin(self, env: int, step: int, seed: int, lifelong: list[Any]) -> None:
        """In sub-environment ``env`` an episode begins at ``step`` of the stream."""
        self.starts[env] = self.rows, step, seed, lifelong

    def append(self, actions: np.ndarray) -> None:
        """All sub-environments have carried out their actions, (N, ...)."""
        if self.rows == len(self.actions):
            self._make_room()
        self.actions[self.rows] = actions
        self.rows += 1

    def __getitem__(self, env: int) -> Episode | None:
        """What is running in sub-environment ``env``."""
        start = self.starts[env]
        if start is None:
            return None
        row, step, seed, lifelong = start
        return Episode(step, seed, lifelong, self.actions[row : self.rows, env].copy())

    def running(self) -> list[Episode]:
        """All running episodes: between two steps, one of each sub-environment."""
        return [episode for env in range(self.num_envs) if (episode := self[env]) is not None]

    def load(self, episodes: Sequence[Episode]) -> None:
        """These episodes are running."""
        self.clear()
        rows = max(len(episode.actions) for episode in episodes)
        self.actions = np.empty((rows + 64, *self.actions.shape[1:]), self.actions.dtype)
        self.rows = rows
        for env, episode in enumerate(episodes):
            row = rows - len(episode.actions)
            self.actions[row:rows, env] = episode.actions
            self.starts[env] = row, episode.began, episode.seed, episode.lifelong

    def _make_room(self) -> None:
        """Drop what came before the oldest running episode; if that is not much, double the space."""
        oldest = min(start[0] for start in self.starts if start is not None)
        used = self.actions[oldest : self.rows]
        size = len(self.actions) * (1 if 2 * len(used) <= len(self.actions) else 2)
        self.actions = np.empty((size, *used.shape[1:]), used.dtype)
        self.actions[: len(used)] = used
        self.rows = len(used)
        self.starts = [start and (start[0] - oldest, *start[1:]) for start in self.starts]


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


class TaskEnvs:
    """Some sub-environments of a stream, stepped in this process one after the other.

    The interface is that of :class:`neoteny.envs.workers.Workers` too.

    Args:
        count: n, how many there are here.
        stride: by how much one step of all of them, here and elsewhere, moves the stream on.
        alive: called after each step that is played again.
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
        """The latest of each, (n, ...); overwritten by the next."""

    def enter(self, schedule: Schedule, steps: int) -> None:
        """Go over to the task that is on at step ``steps`` of the stream; all must be reset then."""
        for env in self.envs:
            env.enter(schedule, steps)

    def reset(self, seeds: Sequence[int | None]) -> list[list[Any]]:
        """Start an episode in each that is given a seed; returns what it carries into it."""
        lifelong: list[list[Any]] = [[] for _ in self.envs]
        for i, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
            if seed is not None:
                lifelong[i] = env.lifelong
                self.observations[i] = env.reset(seed)
        return lifelong

    def step(self, actions: np.ndarray) -> Step:
        """Step all, actions (n, ...)."""
        rewards = np.empty(len(self.envs))
        terminated, truncated = (np.empty(len(self.envs), dtype=bool) for _ in range(2))
        infos = []
        # An environment may change its action in place, which the log must not see.
        for i, (env, action) in enumerate(zip(self.envs, actions.copy(), strict=True)):
            self.observations[i], rewards[i], terminated[i], truncated[i], info = env.step(action)
            infos.append(info)
        return rewards, terminated, truncated, infos

    def restore(self, episodes: Sequence[Episode | None]) -> None:
        """Play episodes again in sub-environments that were just made; ``None`` where none was running."""
        for i, (env, episode) in enumerate(zip(self.envs, episodes, strict=True)):
            for observation in () if episode is None else env.play(episode):
                self.observations[i] = observation
                self.alive()

    def close(self) -> None:
        """Close all."""
        for env in self.envs:
            env.close()


def check_spaces(env: gym.Env, spaces: Spaces, task: int) -> None:
    """Raise ValueError for an environment whose spaces are not the stream's."""
    for kind, space in zip(("observation_space", "action_space"), spaces):
        if getattr(env, kind) != space:
            raise ValueError(
                f"all tasks of a stream share their spaces, but {kind} of task {task} is "
                f"{getattr(env, kind)} and was {space}"
            )


def episode_seed(run: int, task: int, env: int, episode: int) -> int:
    """The 63-bit seed of one episode: independent streams, where ``seed + env`` overlaps between runs."""
    return int(np.random.SeedSequence([run, task, env, episode]).generate_state(1, np.uint64)[0] >> 1)


def _between(old: float, new: float, progress: float) -> float:
    """The value at 0 to 1 of the way; whole numbers stay whole."""
    value = new if progress == 1 else old + progress * (new - old)
    return round(value) if isinstance(old, int) and isinstance(new, int) else value
