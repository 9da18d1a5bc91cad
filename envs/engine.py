"""What steps the sub-environments of a stream: the interface of all engines, and how one is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import torch
from torch import Tensor

from neoteny.envs.observations import ObservationSpec
from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction

StepResult = tuple[Tensor, Tensor, Tensor, Sequence[dict[str, Any]]]
"""Rewards, (N,) float64, terminated and truncated, (N,), and the infos of environments, if there are any."""


class UncoveredError(ValueError):
    """An engine cannot step a task; the message says why."""


class Engine(Protocol):
    """Steps the N sub-environments of a stream, which says when they are reset and which task is on."""

    device: torch.device
    """Where observations, rewards and ends of episodes are, and where actions are used."""
    exact: bool
    """Whether all that it gives is a function of seeds and actions alone, also after it was restored."""

    @property
    def observations(self) -> Tensor:
        """A copy of the latest, (N, ...); of ended episodes the last, until they are reset."""

    def clear(self) -> None:
        """Discard all episodes and tasks, as if just constructed."""

    def enter(self, schedule: Schedule, step: int) -> None:
        """Switch to the task of the stream's ``step``; all environments must be reset afterwards."""

    def reset(self, done: Tensor | None = None) -> None:
        """Start new episodes where ``done``, (N,), is true; in all environments if it is ``None``."""

    def step(self, actions: Any) -> StepResult:
        """Step all, actions (N, ...), of their space's dtype: an array or a tensor on any device."""

    def single_env(self, schedule: Schedule, step: int) -> TaskEnv:
        """One more sub-environment of the task that is on at ``step``, apart from the others."""

    def state_dict(self) -> dict[str, Any]:
        """Where all environments are: numbers, texts, arrays and tensors in dicts and lists."""

    def load_state_dict(self, state: dict[str, Any], schedule: Schedule, step: int) -> None:
        """Go to where others of the same tasks were at ``step`` of the stream; ValueError if they cannot."""

    def close(self) -> None:
        """Close all."""


class EngineConfig(Protocol):
    """The flags of one kind of engine, a frozen dataclass, and what the kind can step."""

    name: ClassVar[str]
    """As in ``--stream.engine NAME`` and ``--stream.NAME.FLAG``."""
    gradual: ClassVar[bool]
    """Whether it steps tasks that turn gradually into one another."""
    otherwise: ClassVar[str]
    """What it means for the user, in words, if another engine must step what this one recognizes."""

    def recognizes(self, env: gym.Env) -> bool:
        """Whether an environment is of the package that the engine stands for."""

    def covers(self, env: gym.Env) -> None:
        """Raise UncoveredError unless an engine does just what this environment does."""

    def observation_spec(self, env: gym.Env) -> ObservationSpec | None:
        """What the observations of an environment are, if its package says so; else ``None``."""

    def check(self, num_envs: int) -> None:
        """Raise ValueError if a flag does not suit."""

    def make(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, device: torch.device | str | None
    ) -> Engine:
        """An engine for N sub-environments, and an agent on a device."""


def choose_engine(
    engines: Sequence[EngineConfig], task: TaskFunction, schedule: Schedule, first: gym.Env
) -> EngineConfig:
    """The first engine that covers every task; says in one line why another one cannot.

    Args:
        engines: in the order of preference.
        task: makes the tasks of the schedule.
        schedule: which tasks there are.
        first: an environment of the first task.

    Raises:
        ValueError: none does.
    """
    reasons = []
    for engine in engines:
        if not engine.recognizes(first):
            continue
        try:
            if schedule.span and not engine.gradual:
                raise UncoveredError("tasks that turn gradually into one another are stepped singly")
            engine.covers(first)
            for k in sorted(set(schedule.cycle) - {schedule.task_at(0)}):
                env = task(k, schedule.seed)
                engine.covers(env)
                env.close()
        except UncoveredError as reason:
            reasons.append(f"{engine.otherwise}: {reason}")
        else:
            for line in reasons:
                print(line)
            return engine
    names = ", ".join(engine.name for engine in engines)
    raise ValueError("; ".join(reasons) or f"{first} is not stepped by --stream.engine {names}")
