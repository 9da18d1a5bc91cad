"""The flags of a stream, and its construction from them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium.envs.registration import EnvSpec
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import ImgObsWrapper

from neoteny.envs.atari import streams as _atari  # noqa: F401  (registers its streams)
from neoteny.envs.atari.engine import AtariConfig
from neoteny.envs.atari.game import ale, check_games
from neoteny.envs.auditor import AuditMode
from neoteny.envs.control import streams as _control  # noqa: F401
from neoteny.envs.control.engine import ControlConfig
from neoteny.envs.engine import EngineConfig
from neoteny.envs.grid import streams as _grid  # noqa: F401
from neoteny.envs.grid.engine import GridConfig
from neoteny.envs.minatar import streams as _minatar
from neoteny.envs.minatar.board import RuleSet
from neoteny.envs.minatar.engine import MinAtarConfig
from neoteny.envs.minatar.games import check_minatar_games
from neoteny.envs.observations import ObservationSpec
from neoteny.envs.registry import Names, imported
from neoteny.envs.schedule import Order, Schedule
from neoteny.envs.single.engine import SingleConfig
from neoteny.envs.stream import Stream, observation_spec, recurring_tasks
from neoteny.envs.tasks import TaskFunction
from neoteny.envs.typed import Typed

ENGINES: tuple[EngineConfig, ...] = (
    GridConfig(), ControlConfig(), MinAtarConfig(), AtariConfig(), SingleConfig()
)  # fmt: skip

MOST_ENVS = 2**20

CHECKS = {"atari": check_games, "minatar": check_minatar_games}
"""Checks of the games of streams that take any."""


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """Which stream the agent learns on."""

    id: Typed = "cartpole-rotations"
    """A registered stream, module:id for one of your own, or any Gymnasium id (a stream of one task)."""
    period: int | None = None
    """Environment steps per task, summed over sub-environments (default: the stream's)."""
    tasks: tuple[int, ...] | None = None
    """Numbers of the tasks, visited in cycles in this order (default: the stream's)."""
    order: Order = "cycle"
    """Order of recurring tasks: the same in every cycle, or drawn anew for each."""
    jitter: float = 0.0
    """Random shift of each switch, at most this share of half a period either way; 0 to less than 1."""
    games: tuple[str, ...] | None = None
    """Games of the stream "atari", in this order: Pong, or Freeway/1/0 for mode 1, difficulty 0; or of the
    stream "minatar"."""
    rules: RuleSet | None = None
    """Rules of MinAtar's games: the package's (default), or gymnax's, by which many papers play."""
    cycles: int | None = dataclasses.field(default=None, metadata={"resumable": True})
    """Length of the run in cycles through all recurring tasks, instead of --total-steps."""
    drift_fraction: float | None = None
    """Share of each visit over which the old task turns gradually into the new (default: the stream's)."""
    audit: AuditMode = dataclasses.field(default="on", metadata={"resumable": True})
    """Check that tasks differ: refuse tasks that do not before training and warn at a switch, only warn, or
    do not check."""
    wrap: Typed | None = None
    """module:function that wraps every task: function(env), function(env, seed), which is given (seed, k), or
    function(env, k, seed)."""
    observations: Literal["auto", "codes", "pictures", "planes", "vectors"] = "auto"
    """Kind of observation: MiniGrid's codes, pictures or planes (for convolutions), or vectors."""
    channels: Literal["auto", "first", "last"] = "auto"
    """Which axis of pictures and planes holds their channels."""
    normalizer: Literal["none", "keep", "reset"] = "none"
    """Normalize observations by a running mean and variance, which a switch keeps or resets."""
    task_id: Literal["none", "onehot"] = "none"
    """Append a one-hot id of the current task to observations, as numbers or as channels."""
    engine: Literal["auto", "single", "grid", "control", "minatar", "atari"] = "auto"
    """What steps the environments: MiniGrid, classic control or MinAtar on tensors, Atari games in a batch,
    or any environment one by one; by default the fastest that gives the same results as single environments,
    classic control on tensors only for agents on a CUDA device."""
    # Without these docstrings tyro would read the source of this file for comments, at each parse.
    single: SingleConfig = dataclasses.field(default_factory=SingleConfig)
    """Environments that are stepped one by one in this process, or in worker processes."""
    grid: GridConfig = dataclasses.field(default_factory=GridConfig)
    """MiniGrid as tensors on the agent's device."""
    atari: AtariConfig = dataclasses.field(default_factory=AtariConfig)
    """Atari games on ale-py's vector environment."""

    def spec(self) -> EnvSpec:
        """The Gymnasium spec of the id; ValueError if it is not registered."""
        module, _, name = self.id.rpartition(":")
        if module and module not in sys.modules:
            raise ValueError(
                f"there is no stream {self.id!r}: import {module} first (only the command line imports it)"
            )
        if name.startswith("ALE/"):
            ale()  # registers its games
        try:
            return gym.spec(name)
        except gym.error.Error as error:
            raise ValueError(f"there is no stream {self.id!r}: {error}") from error

    def schedule(self) -> Schedule:
        """The stream's schedule with the changes of the flags.

        Raises:
            ValueError: a flag is invalid, or would be ignored.
        """
        own = self.spec().kwargs.get("schedule", Schedule())
        if self.games is not None:
            if self.id not in CHECKS:
                needed = f"--stream.games needs --stream.id {' or '.join(CHECKS)}"
                raise ValueError(f"{needed}: the tasks of {self.id} are fixed")
            if not self.games:
                raise ValueError("--stream.games must name at least one game")
            own = dataclasses.replace(own, tasks=len(self.games))
        flags = {"period": self.period, "tasks": self.tasks, "drift_fraction": self.drift_fraction}
        given = {name: value for name, value in flags.items() if value is not None}
        changed = dataclasses.replace(own, order=self.order, jitter=self.jitter, **given)
        if own.period is None and self.wrap is None and changed != own:
            raise ValueError(f"{self.id} never switches, so flags of its schedule would be ignored")
        if changed.period is None and changed != own:
            raise ValueError(f"{self.id} never switches without --stream.period")
        if unknown := set(changed.cycle) - set(own.cycle or changed.cycle):
            raise ValueError(f"{self.id} has tasks 0 to {len(own.cycle) - 1}, not {sorted(unknown)}")
        if self.cycles is not None and not changed.cycle:
            raise ValueError(f"--stream.cycles needs recurring tasks, but those of {self.id} never recur")
        if self.cycles is not None and self.cycles < 1:
            raise ValueError(f"--stream.cycles must be at least 1, not {self.cycles}")
        return changed

    def total_steps(self) -> int | None:
        """Environment steps of all ``cycles``; ``None`` if ``cycles`` is not given."""
        schedule = self.schedule()
        if self.cycles is None or schedule.period is None:
            return None
        return self.cycles * len(schedule.cycle) * schedule.period

    def unused(self) -> dict[str, str]:
        """Flags that have no effect -> why."""
        if self.schedule().period is not None:
            return {}
        return {"audit": f"{self.id} never switches"}

    def check(self, num_envs: int) -> None:
        """Raise ValueError for an unknown id or an invalid flag, before any environment is made."""
        period = self.schedule().period
        if num_envs > MOST_ENVS:
            raise ValueError(f"--num-envs must be at most {MOST_ENVS:,}, not {num_envs:,}")
        if period is not None and period < num_envs:
            raise ValueError(
                f"--stream.period must be at least one step of all {num_envs} environments, not {period}"
            )
        for engine in self._engines():
            engine.check(num_envs)
        if self.games:
            CHECKS[self.id](self.games)
        if self.rules is not None and not self._is_minatar():
            raise ValueError(f"--stream.rules would be ignored: {self.id} is not a stream of MinAtar")
        if self.task_id == "onehot":
            recurring_tasks(self.schedule())

    def observation_spec(self) -> ObservationSpec:
        """The kind of the first task's observations, without normalizer and task id.

        Raises:
            ValueError: the stream cannot be made, or its observations cannot be read.
        """
        with contextlib.closing(self._task()(self.schedule().task_at(0), 0)) as env:
            return observation_spec(env, self._engines(), self.observations, self.channels)

    def make(self, num_envs: int, seed: int = 0, device: torch.device | str | None = None) -> Stream:
        """Make the stream; an ordinary Gymnasium id becomes a stream of one task.

        Raises:
            ValueError: a flag is invalid for the stream, or would be ignored.
        """
        self.check(num_envs)
        names = ("audit", "normalizer", "task_id", "observations", "channels", "engine")
        stream = Stream(
            self._task(),
            self.schedule(),
            self._engines(),
            num_envs,
            seed,
            device,
            names=self._names(),
            **{name: getattr(self, name) for name in names},
        )
        for engine in self._engines():
            if engine.name != stream.engine_name and engine != type(engine)():
                stream.close()
                raise ValueError(
                    f"--stream.{engine.name} flags would be ignored: {self.id} is stepped by "
                    f"--stream.engine {stream.engine_name}"
                )
        return stream

    def _engines(self) -> tuple[EngineConfig, ...]:
        return tuple(getattr(self, engine.name, engine) for engine in ENGINES)  # some have no flags

    def _names(self) -> Names:
        """The names of the tasks, or the function that names them."""
        names = self.spec().kwargs.get("names", ())
        if self.games is None:
            return names
        return functools.partial(names, games=self.games) if callable(names) else self.games

    def _is_minatar(self) -> bool:
        """Whether the tasks are games of MinAtar."""
        spec = self.spec()
        if "task" in spec.kwargs:
            return spec.kwargs["task"].__module__ == _minatar.__name__
        return spec.entry_point == _minatar.ENTRY_POINT

    def _task(self) -> TaskFunction:
        """The function that makes the tasks."""
        spec = self.spec()
        task = spec.kwargs.get("task") or functools.partial(make_ordinary, spec)
        given = {"games": self.games, "rules": self.rules}
        if options := {name: value for name, value in given.items() if value is not None}:
            task = functools.partial(task, **options)
        return task if self.wrap is None else WrappedTask(task, imported(self.wrap), self.wrap)


def make_stream(
    num_envs: int,
    task: TaskFunction,
    schedule: Schedule,
    names: Names,
    engines: Sequence[EngineConfig] = ENGINES,
    **options: Any,
) -> Stream:
    """Entry point of registered streams for ``gymnasium.make_vec``; options are those of :class:`Stream`."""
    return Stream(task, schedule, engines, num_envs, names=names, **options)


def make_ordinary(spec: EnvSpec, k: int, seed: int, **options: Any) -> gym.Env:
    """Make an environment of any Gymnasium id; of MiniGrid's dict observations only the image is kept."""
    env = gym.make(spec, **options)
    is_dict = isinstance(env.observation_space, gym.spaces.Dict) and "image" in env.observation_space.spaces
    return ImgObsWrapper(env) if isinstance(env.unwrapped, MiniGridEnv) and is_dict else env


class WrappedTask:
    """A task whose environments are wrapped by a user's function.

    Args:
        task: makes task ``k`` from ``(k, seed)``.
        wrap: function of the environment and, if it has such parameters, of ``k`` and ``seed``.
        name: of the function, for error messages.

    Raises:
        ValueError: the function has other required parameters.
    """

    def __init__(self, task: TaskFunction, wrap: Callable[..., gym.Env], name: str) -> None:
        self.task, self.wrap, self.name = task, wrap, name
        self.arguments = self._arguments()

    def __call__(self, k: int, seed: int) -> gym.Env:
        """Task ``k``, wrapped."""
        values = {"k": k, "seed": seed, "both": (seed, k)}
        arguments = {name: values[value] for name, value in self.arguments.items()}
        env = self.wrap(self.task(k, seed), **arguments)
        if not isinstance(env, gym.Env):
            raise ValueError(f"--stream.wrap {self.name} returned {env!r}, which is not an environment")
        return env

    def _arguments(self) -> dict[str, str]:
        """Arguments besides the environment: name of the parameter -> k, seed or both."""
        environment, *others = inspect.signature(self.wrap).parameters.values() or (None,)
        found = {each.name: "seed" for each in others if each.name.endswith("seed")}
        found |= {each.name: "k" for each in others if each.name in ("k", "task")}
        optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        required = {each.name for each in others if each.default is each.empty and each.kind not in optional}
        if environment is None or len(set(found.values())) < len(found) or required - found.keys():
            raise ValueError(f"--stream.wrap {self.name} must take (env), (env, seed) or (env, k, seed)")
        return found if "k" in found.values() else dict.fromkeys(found, "both")
