"""The interface of engines, which step the sub-environments of a stream, and the choice of one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import torch
from torch import Tensor

from neoteny.envs.observations import ObservationSpec
from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction

StepResult = tuple[Tensor, Tensor, Tensor, Sequence[dict[str, Any]]]
"""Rewards, (N,) float64, terminated and truncated, (N,), and one info per environment, or no infos at all."""


OTHER_ENGINE = "running episodes were replaced by new ones, since another engine had stepped them"
"""Why an engine cannot continue episodes from the state of another."""


def without_gradients() -> contextlib.AbstractContextManager[Any]:
    """Context in which tensors are computed without gradients, in the fastest way; it can be compiled."""
    return torch.no_grad() if torch.compiler.is_compiling() else torch.inference_mode()


class UncoveredError(ValueError):
    """An engine cannot step a task; the message says why."""


class Engine(Protocol):
    """Steps the N sub-environments of a stream; the stream decides when to reset and which task to enter."""

    device: torch.device
    """Device of observations, rewards, terminated and truncated; actions are moved to it."""
    capturable: bool
    """Whether `step`, `reset` and `observations` compute on static tensors, see
    :mod:`neoteny.runners.capture`, until the engine enters another task."""
    inexact: str
    """Why a restore could not continue the running episodes exactly as they were; empty if it did."""

    @property
    def observations(self) -> Tensor:
        """A copy of the latest observations, (N, ...); the final one of an ended episode until its reset."""

    def clear(self) -> None:
        """Discard all episodes and tasks, as if just constructed."""

    def enter(self, schedule: Schedule, step: int) -> None:
        """Switch to the task of the stream's ``step``; all environments must be reset afterwards."""

    def reset(self, done: Tensor | None = None) -> None:
        """Start new episodes where ``done``, (N,), is true; in all environments if it is ``None``."""

    def begin_step(self) -> None:
        """Called before each step: what it does on the host."""

    def step(self, actions: Any) -> StepResult:
        """Step all, actions (N, ...), an array or a tensor on any device; never floats for integers."""

    def single_env(self, schedule: Schedule, step: int) -> TaskEnv:
        """A separate environment of the task at ``step``, as for evaluation."""

    def state_dict(self) -> dict[str, Any]:
        """The state of all environments: numbers, strings, arrays and tensors in dicts and lists."""

    def load_state_dict(self, state: dict[str, Any], schedule: Schedule, step: int, returns: Tensor) -> None:
        """Restore a state saved at ``step`` of a stream with the same tasks.

        Running episodes that cannot be continued exactly are replaced by new ones, and ``inexact`` says why.

        Args:
            state: from :meth:`state_dict`.
            schedule: of the stream.
            step: at which the state was saved.
            returns: of the running episodes, (N,), float64, with which those of a replay are compared.

        Raises:
            ValueError: the state does not fit the tasks.
        """

    def close(self) -> None:
        """Close all environments."""


class EngineConfig(Protocol):
    """The flags of one kind of engine (a frozen dataclass), and which environments it can step."""

    name: ClassVar[str]
    """As in ``--stream.engine NAME`` and ``--stream.NAME.FLAG``."""
    gradual: ClassVar[bool]
    """Whether it supports tasks that turn gradually into one another."""
    on_cpu: ClassVar[bool]
    """Whether ``--stream.engine auto`` may choose it for agents on a CPU, too, not only on a CUDA device."""
    otherwise: ClassVar[str]
    """Message to the user if this engine recognizes an environment but cannot step it."""

    def recognizes(self, env: gym.Env) -> bool:
        """Whether an environment comes from the package that the engine is made for."""

    def covers(self, task: TaskFunction, k: int, seed: int) -> None:
        """Raise UncoveredError unless the engine reproduces single environments of task ``k`` exactly.

        What is not from the package that the engine is made for has to prove it, by reading and by playing.
        """

    def unrepeatable(self, task: TaskFunction, spaces: Spaces, schedule: Schedule) -> str:
        """Why the same seeds and actions may give other results after a restore; empty if they do not.

        It is found by trying, see :mod:`neoteny.envs.repeatable`.
        """

    def observation_spec(self, env: gym.Env) -> ObservationSpec | None:
        """The kind of an environment's observations, if its package defines it; else ``None``."""

    def check(self, num_envs: int) -> None:
        """Raise ValueError if a flag is invalid."""

    def make(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, device: torch.device | str | None
    ) -> Engine:
        """Make an engine for N sub-environments; ``device`` is the agent's."""


def choose_engine(
    engines: Sequence[EngineConfig], task: TaskFunction, schedule: Schedule, first: gym.Env
) -> EngineConfig:
    """Choose the first engine that covers the first tasks; print why a preferred one cannot, one line each.

    Args:
        engines: in order of preference.
        task: makes the tasks of the schedule.
        schedule: determines which tasks there are.
        first: an environment of the first task.

    Raises:
        ValueError: no engine covers the tasks.
    """
    reasons = []
    for engine in engines:
        if not engine.recognizes(first):
            continue
        try:
            if schedule.drift_fraction and not engine.gradual:
                raise UncoveredError("it does not support tasks that turn gradually into one another")
            for k in first_tasks(schedule):
                engine.covers(task, k, schedule.seed)
        except UncoveredError as reason:
            reasons.append(f"{engine.otherwise}: {reason}")
        else:
            for line in reasons:
                print(line)
            return engine
    names = ", ".join(engine.name for engine in engines)
    raise ValueError("; ".join(reasons) or f"--stream.engine {names} cannot step {first}")


def first_tasks(schedule: Schedule) -> list[int]:
    """The tasks that are looked at before training: all that recur, else the first two."""
    if schedule.period is None:
        return [schedule.task_at(0)]
    return sorted(set(schedule.cycle or range(2)))
