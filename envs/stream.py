"""Streams: vector environments whose task changes while the agent learns.

A *task* is an ordinary Gymnasium environment, made by a pure function of the task's number ``k`` and the
run's seed. A *schedule* says which task is on at which step. A :class:`Stream` steps ``num_envs`` copies of
the current task and replaces all of them, at one and the same step, when the schedule says so.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import FrameStackObservation, OrderEnforcing, PassiveEnvChecker, TimeLimit
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import ImgObsWrapper

from neoteny.envs.atari.engine import ArcadeEnvs
from neoteny.envs.atari.game import check_games, is_game, vector_options
from neoteny.envs.audit import Fingerprint, fingerprint, set_parameters
from neoteny.envs.engine import TaskFunction, UncoveredError
from neoteny.envs.grid.engine import GridEnvs, GridTask, check_bank
from neoteny.envs.normalizer import Normalizer
from neoteny.envs.schedule import Order, Schedule
from neoteny.envs.single.engine import PlayedEnvs
from neoteny.envs.single.task_env import TaskEnv
from neoteny.envs.single.workers import check_workers


class Stream(VectorEnv):
    """A Gymnasium vector environment whose sub-environments change task together.

    Autoreset is SAME_STEP. Two kinds of step end an episode:

    * the environment's own end: ``terminated`` or ``truncated``, as it says itself;
    * the last step of a task: every episode that still runs is ``truncated``.

    In each case ``info["final_obs"]`` (shape (N, ...), valid where ``info["_final_obs"]``) is the last
    observation of the ended episode, still of the old task, and the returned observation is the first of the
    next episode, after a switch of the new task. ``info["task"]`` is the task in which the step was made.
    Undiscounted returns and lengths of episodes stand in ``info["episode_return"]`` and
    ``info["episode_length"]``, valid where ``info["_episode_return"]``: episodes that a switch cut short are
    left out, since the return of half an episode says nothing about the agent. ``info["game"]`` is the name
    of an Atari game.

    The Stream owns every reset: episode ``j`` of sub-environment ``i`` in task ``k`` starts from a seed that
    is a pure function of (run seed, k, i, j), or, in an Atari game, where the one before it left an emulator
    with such a seed. Any stream is restored where it was by playing the running episodes again.

    The audit: at every switch a separate copy of the new task is rolled out under fixed seeds and actions,
    and ``info["fingerprint"]``, what it did, must differ from the old task's. If the schedule lets tasks turn
    gradually into one another, a copy of the new task with the old one's parameters must do just what the old
    one did, so that nothing jumps. ``info["audit_seconds"]`` is what it cost so far.

    Args:
        task: makes task ``k`` from ``(k, seed)``; called once per sub-environment at every switch.
        schedule: which task is on at which step.
        num_envs: N, the number of sub-environments.
        seed: the run's seed.
        device: where observations, rewards and ends of episodes are returned as tensors (observations in
            their own dtype, rewards as float32); ``None`` returns NumPy arrays, as Gymnasium does.
        games: names of the tasks, if they are Atari games.
        audit, normalizer, task_id, workers, worker_timeout, replay, engine, layouts, renew_every: as in
            :class:`StreamConfig`. A task id is ones and zeros in a vector, 0 and 255 in an image.

    Raises:
        ValueError: observations or actions are not arrays; at a switch, if the new task's spaces differ from
            the first task's, if it does just what the old task did, if a task that recurs is not what it was,
            or if a gradual change would jump.
    """

    def __init__(
        self,
        task: TaskFunction,
        schedule: Schedule,
        num_envs: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        audit: bool = True,
        normalizer: Literal["none", "keep", "reset"] = "none",
        task_id: Literal["none", "onehot"] = "none",
        workers: int = 0,
        worker_timeout: float = 60.0,
        replay: bool = True,
        engine: Literal["auto", "package"] = "auto",
        layouts: int = 256,
        renew_every: int = 16,
        games: tuple[str, ...] = (),
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"a stream needs at least 1 environment, not {num_envs}")
        check_workers(workers, num_envs, worker_timeout)
        check_bank(layouts, renew_every)
        self.make_task = task
        self.schedule = dataclasses.replace(schedule, seed=seed)
        self.num_envs = num_envs
        self.device = device
        self.audit = audit and schedule.period is not None
        self.audit_seconds = 0.0
        self.games = games
        self.fingerprints: dict[int, Fingerprint] = {}
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.steps = 0
        self.task = self.schedule.task_at(0)
        first = self._copy()
        self.raw_spaces = spaces = first.observation_space, first.action_space
        for what, each in zip(("observations", "actions"), spaces):
            if each.shape is None:
                raise ValueError(f"{what} of a stream are arrays of numbers, not {each}: wrap the task")
        space, self.single_action_space = spaces
        self.frame_stack = 1 if task_id == "onehot" else _frame_stack(first)
        """How many frames are stacked along the first axis of an observation, zeros before the first."""
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.normalizer: Normalizer | None = None
        self.forgetful = normalizer == "reset"
        if normalizer != "none":
            space = _normalized(space)
            self.normalizer = Normalizer(space.shape, device or "cpu")
        self.marked_tasks: list[int] = []
        if task_id == "onehot":
            self.marked_tasks = _recurring(schedule)
            space = _marked(space, len(self.marked_tasks))
        self.single_observation_space = space
        self.observation_space = batch_space(space, num_envs)
        kind = self._kind(first) if engine == "auto" else PlayedEnvs
        first.close()
        if workers and kind is not PlayedEnvs:
            what = "MiniGrid on tensors" if kind is GridEnvs else "ale-py's vector environment"
            raise ValueError(f"{what} has no use for --stream.workers: --stream.engine package does")
        self.envs: GridEnvs | ArcadeEnvs | PlayedEnvs
        if kind is GridEnvs:
            self.envs = GridEnvs(task, spaces, num_envs, device or "cpu", layouts, renew_every)
        elif kind is ArcadeEnvs:
            self.envs = ArcadeEnvs(task, spaces, num_envs, replay)
        else:
            self.envs = PlayedEnvs(task, spaces, num_envs, workers, worker_timeout, replay)
        self.envs.enter(self.schedule, 0)
        self.began = False

    @property
    def seed(self) -> int:
        """The run's."""
        return self.schedule.seed

    @property
    def observation(self) -> Any:
        """What the agent sees of the latest observations, (N, ...)."""
        return self.view(self.envs.observations)

    @property
    def exact(self) -> bool:
        """Whether what it returns is a function of the run's seed and the actions alone."""
        return self.envs.exact

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Go back to step 0; ``seed`` replaces the run's. Returns observations, (N, ...), and the task."""
        if options:
            raise ValueError(f"a stream takes no reset options, got {sorted(options)}")
        if self.began or seed not in (None, self.seed):
            self.fingerprints.clear()
            self.schedule = dataclasses.replace(self.schedule, seed=self.seed if seed is None else seed)
            self.steps = 0
            self.envs.clear()
            self._enter()
        self.began = True
        self.returns = torch.zeros(self.num_envs, dtype=torch.float64, device=self.envs.device)
        self.lengths = torch.zeros(self.num_envs, dtype=torch.int64, device=self.envs.device)
        if self.normalizer is not None:
            self.normalizer.reset()
        if self.audit:
            self._audit()
        self.envs.reset()
        return self.view(self.envs.observations, learn=True), {"task": self.task}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every sub-environment once, actions (N, ...); switch the task if its last step was made.

        Returns:
            Observations (N, ...), rewards (N,), terminated (N,), truncated (N,) and info.
        """
        rewards, terminated, truncated, infos = self.envs.step(self._checked(actions))
        self.steps += self.num_envs
        self.returns += rewards
        self.lengths += 1
        info: dict[str, Any] = {}
        for env, its in enumerate(infos):
            info = self._add_info(info, its, env)
        info["task"] = self.task
        if self.games:
            info["game"] = self.games[self.task]
        if self.audit:
            info |= {"fingerprint": self.fingerprints[self.task], "audit_seconds": self.audit_seconds}

        done = terminated | truncated
        switches = self.schedule.task_at(self.steps) != self.task
        # On a GPU, to ask whether any episode ended would take longer than to reset none.
        some = self.envs.device.type != "cpu" or bool(done.any())
        if some:
            ended = self._out(done)
            info |= {"episode_return": self._out(self.returns.clone()), "_episode_return": ended}
            info |= {"episode_length": self._out(self.lengths.clone()), "_episode_length": ended}
        if switches:
            truncated = truncated | ~terminated
            done = torch.ones_like(done)
        if some or switches:
            info |= {"final_obs": self.observation, "_final_obs": self._out(done)}
            if switches:
                self._switch()
            self.returns.masked_fill_(done, 0.0)
            self.lengths.masked_fill_(done, 0)
            self.envs.reset(done)
        observations = self.view(self.envs.observations, learn=True)
        if self.device is not None:
            rewards = rewards.float()
        return observations, self._out(rewards), self._out(terminated), self._out(truncated), info

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: numbers, texts, arrays and tensors in dicts and lists."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "returns": self.returns.clone(),
            "lengths": self.lengths.clone(),
            "envs": self.envs.state_dict(),
            "fingerprints": {str(k): dataclasses.asdict(print) for k, print in self.fingerprints.items()},
            "audit_seconds": self.audit_seconds,
            "normalizer": None if self.normalizer is None else self.normalizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where another stream of the same id and flags was, its running episodes included.

        Raises ValueError if these come out otherwise: some environment is no function of seed and actions.
        """
        self.began = True
        self.schedule = dataclasses.replace(self.schedule, seed=state["seed"])
        self.steps = state["steps"]
        self.task = self.schedule.task_at(self.steps)
        self.returns = state["returns"].to(self.envs.device, copy=True)
        self.lengths = state["lengths"].to(self.envs.device, copy=True)
        self.envs.load_state_dict(state["envs"], self.schedule, self.steps)
        self.fingerprints = {int(k): Fingerprint(**print) for k, print in state["fingerprints"].items()}
        self.audit_seconds = state["audit_seconds"]
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["normalizer"])
        if not self.exact:  # other episodes began
            self.returns.zero_()
            self.lengths.zero_()
            self.view(self.envs.observations, learn=True)

    def twin(self) -> TaskEnv:
        """One more sub-environment of the task that is on, as it is at this step, which stays as it is."""
        twin = TaskEnv(self.make_task, self.raw_spaces, stride=0)
        twin.enter(self.schedule, self.steps)
        if isinstance(self.envs, PlayedEnvs) and (running := self.envs.log[0]):
            twin.lifelong = running.lifelong
        return twin

    def view(self, observations: torch.Tensor, learn: bool = False) -> Any:
        """What the agent sees of observations (B, ...) of the task that is on; the normalizer may learn."""
        if self.normalizer is None and not self.marked_tasks:
            return self._out(observations)
        seen = observations.to(self.device or "cpu")
        if self.normalizer is not None:
            if learn:
                self.normalizer.update(seen)
            seen = self.normalizer(seen)
        if self.marked_tasks:
            axis = channel_axis(seen.shape[1:])
            shape = list(seen.shape)
            shape[axis] = len(self.marked_tasks)
            mark = torch.zeros(shape, dtype=seen.dtype, device=seen.device)
            mark.select(axis, self.marked_tasks.index(self.task)).fill_(_MARK[len(shape) - 1])
            seen = torch.cat((seen, mark), dim=axis)
        return self._out(seen)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the sub-environments."""
        self.envs.close()

    def _switch(self) -> None:
        old = self.task
        self._enter()
        if self.normalizer is not None and self.forgetful:
            self.normalizer.reset()
        if self.audit:
            self._audit(old)
            if self.schedule.tasks is None:
                del self.fingerprints[old]

    def _enter(self) -> None:
        """Go over to the task that is on now."""
        self.task = self.schedule.task_at(self.steps)
        self.envs.enter(self.schedule, self.steps)

    def _audit(self, old: int | None = None) -> None:
        """Take the fingerprint of the task that is on; compare it with the ``old`` task's and its own."""
        started = time.perf_counter()
        now = fingerprint(self._copy())
        if not self.fingerprints.setdefault(self.task, now).same_as(now):
            raise ValueError(f"task {self.task} is not what it was: it must be a function of (k, seed) alone")
        if old is not None:
            before = self.fingerprints[old]
            if now.same_as(before):
                raise ValueError(
                    f"the switch changed nothing: task {self.task} does just what task {old} did"
                )
            if self.schedule.span and not fingerprint(self._copy(before.parameters)).same_as(before):
                raise ValueError(
                    f"task {old} cannot turn gradually into task {self.task}, which differs in more than "
                    f"numeric attributes of the environment"
                )
        self.audit_seconds += time.perf_counter() - started

    def _copy(self, changed: dict[str, float] | None = None) -> gym.Env:
        """The task that is on, made once more, with parameters ``changed``."""
        env = self.make_task(self.task, self.seed)
        set_parameters(env, changed or {})
        return env

    def _kind(self, first: gym.Env) -> type[GridEnvs] | type[ArcadeEnvs] | type[PlayedEnvs]:
        """What can step all tasks; tells if it is the slow one, though the first could be stepped fast."""
        kind: type[GridEnvs] | type[ArcadeEnvs]
        if isinstance(first.unwrapped, MiniGridEnv):
            kind, slow = GridEnvs, "MiniGrid's own package steps this stream, many times slower than tensors"
        elif is_game(first):
            kind, slow = ArcadeEnvs, "the games of this stream are stepped one by one"
        else:
            return PlayedEnvs
        try:
            if self.schedule.span:
                raise UncoveredError("tasks that turn gradually into one another are stepped singly")
            for k in self.schedule.cycle or (self.task,):
                env = self.make_task(k, self.seed)
                GridTask(env).draw(0) if kind is GridEnvs else vector_options(env)
        except UncoveredError as reason:
            print(f"{slow}: {reason}")
            return PlayedEnvs
        return kind

    def _checked(self, actions: Any) -> Any:
        """Actions, (N, ...), as a copy of their space's dtype: what is logged is what is done."""
        if np.shape(actions) != self.action_space.shape:
            raise ValueError(f"actions of shape {tuple(np.shape(actions))} are not of {self.action_space}")
        if isinstance(actions, torch.Tensor) and isinstance(self.envs, GridEnvs):
            return actions  # which stay where they are
        array = actions.cpu().numpy() if isinstance(actions, torch.Tensor) else np.asarray(actions)
        return array.astype(self.action_space.dtype, casting="same_kind")

    def _out(self, tensor: torch.Tensor) -> Any:
        """A tensor on the agent's device; NumPy if there is none."""
        return tensor.numpy() if self.device is None else tensor.to(self.device)


def _frame_stack(env: gym.Env) -> int:
    """How many frames are stacked along the first axis of its observations, zeros before the first; or 1."""
    while isinstance(env, OrderEnforcing | PassiveEnvChecker | TimeLimit):
        env = env.env
    padded = isinstance(env, FrameStackObservation) and env.padding_type == "zero"
    return env.stack_size if padded else 1  # type: ignore[attr-defined]


def channel_axis(shape: Sequence[int]) -> int:
    """Which axis of an observation, counted from its end, holds its features or channels.

    The last of a vector and of MiniGrid's codes (H, W, 3); the first of an image (C, H, W).
    """
    return -3 if len(shape) == 3 and max(shape[:2]) >= 36 else -1


_MARK = {1: 1, 3: 255}  # what marks the task in a vector and in an image


def _normalized(space: gym.Space) -> Box:
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"a normalizer needs observations of floating-point numbers, not {space}")
    return Box(-Normalizer.clip, Normalizer.clip, space.shape, np.float32)


def _recurring(schedule: Schedule) -> list[int]:
    """Numbers of the recurring tasks."""
    if not schedule.cycle:
        raise ValueError("a one-hot task id needs tasks that recur: name some, --stream.tasks 0 1 2")
    return sorted(set(schedule.cycle))


def _marked(space: gym.Space, tasks: int) -> Box:
    """The space of observations to which a one-hot number of so many tasks is appended."""
    if not isinstance(space, Box) or len(space.shape) not in _MARK:
        raise ValueError(f"a task id is appended to vectors and images, not to {space}")
    axis = channel_axis(space.shape)
    shape = list(space.shape)
    shape[axis] = tasks
    low, high = np.zeros(shape, space.dtype), np.full(shape, _MARK[len(shape)], space.dtype)
    low, high = np.concatenate((space.low, low), axis), np.concatenate((space.high, high), axis)
    return Box(low, high, dtype=space.dtype.type)


def task_rng(seed: int, task: int) -> np.random.Generator:
    """The random generator from which task ``task`` of a stream draws what it changes."""
    return np.random.default_rng(np.random.SeedSequence([seed, task]))


def stream(
    id: str, *, period: int, tasks: int | None = None, span: float = 0.0, games: tuple[str, ...] = ()
) -> Callable[[TaskFunction], TaskFunction]:
    """Register ``task(k, seed) -> env`` with Gymnasium as the stream ``id``.

    Args:
        id: a Gymnasium id; ``module:id`` on a command line imports the module first.
        period: environment steps, summed over sub-environments, that each task lasts by default.
        tasks: how many different tasks there are, if they come in cycles.
        span: share of each visit over which the old task turns gradually into the new.
        games: names of the tasks instead of their number, if they are Atari games that come in cycles.
    """

    def register(task: TaskFunction) -> TaskFunction:
        def make(num_envs: int, **options: Any) -> Stream:
            chosen = options["games"]
            made = task if chosen == games else functools.partial(task, games=chosen)  # type: ignore[call-arg]
            return Stream(made, num_envs=num_envs, **options)

        kwargs = {"schedule": Schedule(period, len(games) or tasks, span=span), "games": games}
        gym.register(id, vector_entry_point=make, kwargs=kwargs)  # type: ignore[arg-type]
        return task

    return register


def import_typed(id: str) -> str:
    """Import the module of a ``module:id`` that somebody typed; returns the id.

    Names that come from a file never get here, since an import runs whatever the module holds.

    Raises:
        ValueError: there is no such module.
        Exception: whatever the module itself raises.
    """
    module = id.rpartition(":")[0]
    if module:
        # A script's own folder is on the path, the folder it is called from is not.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # one that the module imports
                raise
            raise ValueError(f"there is no stream {id!r}: {error}") from error
    return id


TypedId = Annotated[
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="ID",
        instance_from_str=lambda words: import_typed(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda id: [id],
    ),
]


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """Which stream the agent lives on."""

    id: TypedId = "cartpole-rotations"
    """A registered stream, module:id for one in your own file, or any Gymnasium id (which never switches)."""
    period: int | None = None
    """Environment steps, summed over sub-environments, that each task lasts (default: the stream's own)."""
    tasks: tuple[int, ...] | None = None
    """Numbers of the tasks to visit, in this order, again and again (default: the stream's own)."""
    order: Order = "cycle"
    """Recurring tasks come always in the same order, or in one that is drawn anew for every cycle."""
    jitter: float = 0.0
    """Switches come up to this share of half a period early or late, at random; 0 to less than 1."""
    games: tuple[str, ...] | None = None
    """Atari games to play in turn, of the stream "atari": Pong, or Freeway/1/0 in mode 1, difficulty 0."""
    cycles: int | None = None
    """Length of the run, in visits to all recurring tasks, instead of --total-steps."""
    span: float | None = None
    """Share of each visit over which the old task turns gradually into the new (default: the stream's)."""
    audit: bool = True
    """Prove at every switch, on a separate copy, that the new task does what the old one did not."""
    normalizer: Literal["none", "keep", "reset"] = "none"
    """Normalize observations by a running mean and variance; keep them at a switch, or start them anew."""
    task_id: Literal["none", "onehot"] = "none"
    """Tell the agent which of the recurring tasks is on, as numbers or channels of its observation."""
    workers: int = 0
    """Step the sub-environments in so many processes of their own; 0: in this one."""
    worker_timeout: float = 60.0
    """Seconds that a worker may take to step, reset or make its sub-environments, before it is replaced."""
    replay: bool = True
    """When a stopped run goes on, play its running episodes again, for the same bits; else start new ones."""
    engine: Literal["auto", "package"] = "auto"
    """Step MiniGrid as tensors on the agent's device, and Atari games together, wherever that gives the same;
    or one environment after the other by its package."""
    layouts: int = 256
    """Layouts of MiniGrid that are held for each task, from which episodes start; a power of two."""
    renew_every: int = 16
    """Steps of all sub-environments after which one of these layouts is replaced by a new one."""

    def spec(self) -> EnvSpec:
        """What Gymnasium knows of the id; raises ValueError if that is nothing."""
        module, _, name = self.id.rpartition(":")
        if module and module not in sys.modules:
            raise ValueError(
                f"there is no stream {self.id!r}: import {module} first, only a command line does"
            )
        try:
            return gym.spec(name)
        except gym.error.Error as error:
            raise ValueError(f"there is no stream {self.id!r}: {error}") from error

    def schedule(self) -> Schedule:
        """The stream's own with what the flags change; ValueError if one does not suit or is ignored."""
        own = self.spec().kwargs.get("schedule", Schedule())
        if self.games is not None:
            if self.id != "atari":
                raise ValueError(f"--stream.games are for --stream.id atari, {self.id} has tasks of its own")
            if not self.games:
                raise ValueError("--stream.games must name at least one Atari game")
            own = dataclasses.replace(own, tasks=len(self.games))
        flags = {"period": self.period, "tasks": self.tasks, "span": self.span}
        given = {name: value for name, value in flags.items() if value is not None}
        changed = dataclasses.replace(own, order=self.order, jitter=self.jitter, **given)
        if own.period is None and changed != own:
            raise ValueError(f"{self.id} never switches, so flags of its schedule would be ignored")
        if unknown := set(changed.cycle) - set(own.cycle or changed.cycle):
            raise ValueError(f"{self.id} has tasks 0 to {len(own.cycle) - 1}, not {sorted(unknown)}")
        if self.cycles is not None and not changed.cycle:
            raise ValueError(f"--stream.cycles needs tasks that recur, which those of {self.id} do not")
        if self.cycles is not None and self.cycles < 1:
            raise ValueError(f"--stream.cycles must be at least 1, not {self.cycles}")
        return changed

    def total_steps(self) -> int | None:
        """Environment steps of all ``cycles``; ``None`` if their number is not given."""
        schedule = self.schedule()
        if self.cycles is None or schedule.period is None:
            return None
        return self.cycles * len(schedule.cycle) * schedule.period

    def check(self, num_envs: int) -> None:
        """Raise ValueError, before anything is made, for an unknown id or a flag that does not suit."""
        period = self.schedule().period
        if period is not None and period < num_envs:
            raise ValueError(
                f"--stream.period must be at least one step of all {num_envs} environments, not {period}"
            )
        check_workers(self.workers, num_envs, self.worker_timeout)
        check_bank(self.layouts, self.renew_every)
        check_games(self._games())
        if self.task_id == "onehot":
            _recurring(self.schedule())

    def make(self, num_envs: int, seed: int = 0, device: torch.device | str | None = None) -> Stream:
        """Make the stream; an ordinary Gymnasium id becomes a stream of one task."""
        self.check(num_envs)
        spec = self.spec()
        when = {"id", "period", "tasks", "order", "jitter", "span", "cycles"}
        options = {name: value for name, value in vars(self).items() if name not in when}
        options |= {"schedule": self.schedule(), "games": self._games(), "seed": seed, "device": device}
        if "schedule" not in spec.kwargs:
            return Stream(functools.partial(_ordinary, spec), num_envs=num_envs, **options)
        made = gym.make_vec(spec, num_envs=num_envs, **options)
        assert isinstance(made, Stream)
        return made

    def _games(self) -> tuple[str, ...]:
        """Atari games of the stream, if its tasks are such."""
        return self.games or self.spec().kwargs.get("games", ())


def _ordinary(spec: EnvSpec, k: int, seed: int) -> gym.Env:
    env = gym.make(spec)
    return ImgObsWrapper(env) if isinstance(env.unwrapped, MiniGridEnv) else env


def registered_streams() -> list[str]:
    """Ids of all streams that are registered now."""
    return sorted(id for id, spec in gym.registry.items() if "schedule" in spec.kwargs)
