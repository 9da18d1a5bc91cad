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

from neoteny.envs.audit import Fingerprint, fingerprint, set_parameters
from neoteny.envs.normalizer import Normalizer
from neoteny.envs.schedule import Order, Schedule
from neoteny.envs.tasks import Episode, EpisodeLog, TaskEnvs, TaskFunction
from neoteny.envs.workers import Workers, check_workers


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
    left out, since the return of half an episode says nothing about the agent.

    The Stream owns every reset: episode ``j`` of sub-environment ``i`` in task ``k`` starts from a seed that
    is a pure function of (run seed, k, i, j). No two runs share an episode, and any stream is restored where
    it was (:meth:`state_dict`) by playing the running episodes again.

    The audit: at every switch a separate copy of the new task is rolled out under fixed seeds and actions,
    and ``info["fingerprint"]``, what it did, must differ from the old task's. If the schedule lets tasks turn
    gradually into one another, a copy of the new task with the old one's parameters must do just what the old
    one did, so that nothing jumps. Training is not touched. ``info["audit_seconds"]`` is what it cost so far.

    Args:
        task: makes task ``k`` from ``(k, seed)``; called once per sub-environment at every switch.
        schedule: which task is on at which step.
        num_envs: N, the number of sub-environments.
        seed: the run's seed.
        device: where observations, rewards and ends of episodes are returned as tensors (observations in
            their own dtype, rewards as float32); ``None`` returns NumPy arrays, as Gymnasium does.
        audit: whether switches are audited.
        normalizer: observations as they are; or normalized by a running mean and variance that are kept
            through switches; or by ones that start anew at each.
        task_id: "onehot" appends the task to each observation, as numbers to a vector, as channels that are
            0 or 255 to an image. Tasks must recur.
        workers: step the sub-environments in so many processes of their own, for slow environments; 0: in
            this one. A worker that dies or hangs is replaced, and nothing else changes.
        worker_timeout: seconds that the workers may take for one step, or to make or reset environments.
        replay: play the running episodes of a loaded state again; else new ones start.

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
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"a stream needs at least 1 environment, not {num_envs}")
        check_workers(workers, num_envs, worker_timeout)
        self.make_task = task
        self.schedule = dataclasses.replace(schedule, seed=seed)
        self.num_envs = num_envs
        self.device = device
        self.audit = audit and schedule.period is not None
        self.audit_seconds = 0.0
        self.fingerprints: dict[int, Fingerprint] = {}
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.steps = 0
        self.task = self.schedule.task_at(0)
        self.replay = replay
        self.exact = True  # what it returns is a function of the run's seed and the actions alone
        spaces = self._copy_spaces()
        space, self.single_action_space = spaces
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
        self.episodes = np.full(num_envs, -1)
        self.log = EpisodeLog(self.action_space)
        self.envs: TaskEnvs | Workers = (
            Workers(task, spaces, self.log, workers, worker_timeout)
            if workers
            else TaskEnvs(task, spaces, num_envs, stride=num_envs)
        )
        self.envs.enter(self.schedule, 0)

    @property
    def seed(self) -> int:
        """The run's."""
        return self.schedule.seed

    @property
    def observation(self) -> Any:
        """Observations, (N, ...), as they were returned last."""
        return self._seen()

    @property
    def rebuilds(self) -> int:
        """How often a worker was lost and made anew."""
        return self.envs.rebuilds

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Go back to step 0 of the stream; ``seed`` replaces the run's seed.

        Returns:
            Observations, shape (N, ...), and ``{"task": k}``.
        """
        if options:
            raise ValueError(f"a stream takes no reset options, got {sorted(options)}")
        if self.episodes[0] >= 0 or seed not in (None, self.seed):
            self.fingerprints.clear()
            self.schedule = dataclasses.replace(self.schedule, seed=self.seed if seed is None else seed)
            self.steps = 0
            self._enter()
        self.episodes = np.full(self.num_envs, -1)
        self.returns = np.zeros(self.num_envs)
        self.lengths = np.zeros(self.num_envs, dtype=np.int64)
        self.exact = True
        if self.normalizer is not None:
            self.normalizer.reset()
        if self.audit:
            self._audit()
        return self._reset_envs(np.ones(self.num_envs, dtype=bool)), {"task": self.task}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every sub-environment once; switch the task if its last step was made.

        Args:
            actions: tensor or array, shape (N, ...).

        Returns:
            Observations (N, ...), rewards (N,), terminated (N,), truncated (N,) and info.
        """
        actions = self._checked(actions)
        rewards, terminated, truncated, infos = self.envs.step(actions)
        self.log.append(actions)
        self.steps += self.num_envs
        self.returns += rewards
        self.lengths += 1
        info: dict[str, Any] = {}
        for env, its in enumerate(infos):
            info = self._add_info(info, its, env)
        info["task"] = self.task
        if self.audit:
            info |= {"fingerprint": self.fingerprints[self.task], "audit_seconds": self.audit_seconds}

        next_task = self.schedule.task_at(self.steps)
        done = terminated | truncated
        if done.any():
            info |= {"episode_return": self.returns.copy(), "_episode_return": done}
            info |= {"episode_length": self.lengths.copy(), "_episode_length": done}
        if next_task != self.task:
            truncated = truncated | ~terminated
            done = np.ones_like(done)
        if done.any():
            info |= {"final_obs": self._seen(), "_final_obs": done}
            if next_task != self.task:
                self._switch()
            observations = self._reset_envs(done)
        else:
            observations = self._seen(learn=True)
        if self.device is not None:
            rewards = rewards.astype(np.float32)
        return observations, self._out(rewards), self._out(terminated), self._out(truncated), info

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: numbers, texts and arrays in dicts and lists."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "raw": self.envs.observations.copy(),
            "episodes": self.episodes.copy(),
            "returns": self.returns.copy(),
            "lengths": self.lengths.copy(),
            "running": [dataclasses.asdict(episode) for episode in self.log.running()],
            "fingerprints": {str(k): dataclasses.asdict(print) for k, print in self.fingerprints.items()},
            "audit_seconds": self.audit_seconds,
            "normalizer": None if self.normalizer is None else self.normalizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Go to where another stream of the same id and flags was, by playing the running episodes again.

        Without ``replay``, each is cut short and a new one begins, with what the old one carried over from
        those before it; the stream is not ``exact`` then.

        Returns:
            Observations, shape (N, ...): as that stream returned them last, or of the new episodes.

        Raises:
            ValueError: the episodes come out otherwise, since an environment is no function of seed and
                actions.
        """
        self.schedule = dataclasses.replace(self.schedule, seed=state["seed"])
        self.steps = state["steps"]
        self._enter()
        self.episodes, self.returns, self.lengths = (
            state[name].copy() for name in ("episodes", "returns", "lengths")
        )
        running = [Episode(**episode) for episode in state["running"]]
        if not self.replay:
            self._count(np.ones(self.num_envs, dtype=bool))
            running = [
                Episode(self.steps, self._episode_seed(env), old.lifelong, old.actions[:0])
                for env, old in enumerate(running)
            ]
        self.envs.restore(running)
        self.log.load(running)
        self.exact = self.replay
        raw = self.envs.observations
        if self.replay and not np.array_equal(raw, state["raw"], equal_nan=raw.dtype.kind == "f"):
            raise ValueError(
                f"task {self.task} is no function of seeds and actions: its replay went elsewhere; "
                f"--stream.no-replay starts new episodes instead"
            )
        self.fingerprints = {int(k): Fingerprint(**print) for k, print in state["fingerprints"].items()}
        self.audit_seconds = state["audit_seconds"]
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["normalizer"])
        return self._seen(learn=not self.replay)

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
        self.log.clear()
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

    def _copy_spaces(self) -> tuple[gym.Space, gym.Space]:
        """Of one observation and one action of the first task."""
        env = self._copy()
        env.close()
        for kind, space in (("observations", env.observation_space), ("actions", env.action_space)):
            if space.shape is None:
                raise ValueError(f"{kind} of a stream are arrays of numbers, not {space}: wrap the task")
        return env.observation_space, env.action_space

    def _checked(self, actions: Any) -> np.ndarray:
        """Actions, (N, ...), as a copy of their space's dtype: what is logged is what is done."""
        array = actions.cpu().numpy() if isinstance(actions, torch.Tensor) else np.asarray(actions)
        if array.shape != self.action_space.shape:
            raise ValueError(f"actions of shape {array.shape} are not of {self.action_space}")
        return array.astype(self.action_space.dtype, casting="same_kind")

    def _count(self, mask: np.ndarray) -> None:
        """The next episode begins where ``mask`` is set."""
        self.episodes[mask] += 1
        self.returns[mask] = 0.0
        self.lengths[mask] = 0

    def _episode_seed(self, env: int) -> int:
        """Of the episode that is on in sub-environment ``env``."""
        return episode_seed(self.seed, self.task, env, int(self.episodes[env]))

    def _reset_envs(self, mask: np.ndarray) -> Any:
        """Start the next episode where ``mask`` is set; returns all observations, (N, ...)."""
        self._count(mask)
        seeds = [self._episode_seed(env) if mask[env] else None for env in range(self.num_envs)]
        for env, (seed, lifelong) in enumerate(zip(seeds, self.envs.reset(seeds))):
            if seed is not None:
                self.log.begin(env, self.steps, seed, lifelong)
        return self._seen(learn=True)

    def _seen(self, learn: bool = False) -> Any:
        """What the agent sees of the latest observations, (N, ...), of the task that is on."""
        raw = self.envs.observations
        if self.normalizer is None and not self.marked_tasks:
            return self._out(raw.copy())
        seen = torch.as_tensor(raw, device=self.device or "cpu")
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
        return seen.numpy() if self.device is None else seen

    def _out(self, array: np.ndarray) -> Any:
        """NumPy as a tensor on the agent's device, if it has one."""
        return array if self.device is None else torch.as_tensor(array, device=self.device)


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


def episode_seed(run: int, task: int, env: int, episode: int) -> int:
    """The 63-bit seed of one episode: independent streams, where ``seed + env`` overlaps between runs."""
    return int(np.random.SeedSequence([run, task, env, episode]).generate_state(1, np.uint64)[0] >> 1)


def task_rng(seed: int, task: int) -> np.random.Generator:
    """The random generator from which task ``task`` of a stream draws what it changes."""
    return np.random.default_rng(np.random.SeedSequence([seed, task]))


def stream(
    id: str, *, period: int, tasks: int | None = None, span: float = 0.0
) -> Callable[[TaskFunction], TaskFunction]:
    """Register ``task(k, seed) -> env`` with Gymnasium as the stream ``id``.

    Args:
        id: a Gymnasium id; ``module:id`` on a command line imports the module first.
        period: environment steps, summed over sub-environments, that each task lasts by default.
        tasks: how many different tasks there are, if they come in cycles.
        span: share of each visit over which the old task turns gradually into the new.
    """

    def register(task: TaskFunction) -> TaskFunction:
        def make(num_envs: int, **options: Any) -> Stream:
            return Stream(task, num_envs=num_envs, **options)

        schedule = Schedule(period, tasks, span=span)
        gym.register(id, vector_entry_point=make, kwargs={"schedule": schedule})  # type: ignore[arg-type]
        return task

    return register


def import_typed(id: str) -> str:
    """Import the module of a ``module:id`` that somebody typed; returns the id.

    Names that come from a file never get here, since an import runs whatever the module holds.

    Raises:
        ValueError: the module cannot be imported.
    """
    module = id.rpartition(":")[0]
    if module:
        # A script's own folder is on the path, the folder it is called from is not.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except ImportError as error:
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

    def spec(self) -> EnvSpec:
        """What Gymnasium knows of the id.

        Raises:
            ValueError: the id is unknown, or its module was not imported.
        """
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
        """The stream's own schedule with what the flags change.

        Raises:
            ValueError: the id is unknown, or a flag is out of range or would be ignored.
        """
        own = self.spec().kwargs.get("schedule", Schedule())
        flags = {"period": self.period, "tasks": self.tasks, "span": self.span}
        given = {name: value for name, value in flags.items() if value is not None}
        changed = dataclasses.replace(own, order=self.order, jitter=self.jitter, **given)
        if own.period is None and changed != own:
            raise ValueError(f"{self.id} never switches, so flags of its schedule would be ignored")
        if unknown := set(changed.cycle) - set(own.cycle or changed.cycle):
            raise ValueError(f"{self.id} has tasks 0 to {len(own.cycle) - 1}, not {sorted(unknown)}")
        return changed

    def check(self, num_envs: int) -> None:
        """Refuse what cannot run, before anything is made.

        Raises:
            ValueError: the id is unknown, or a flag is out of range, would be ignored or does not suit
                ``num_envs``.
        """
        period = self.schedule().period
        if period is not None and period < num_envs:
            raise ValueError(
                f"--stream.period must be at least one step of all {num_envs} environments, not {period}"
            )
        check_workers(self.workers, num_envs, self.worker_timeout)
        if self.task_id == "onehot":
            _recurring(self.schedule())

    def make(self, num_envs: int, seed: int = 0, device: torch.device | str | None = None) -> Stream:
        """Make the stream; an ordinary Gymnasium id becomes a stream of one task."""
        self.check(num_envs)
        spec = self.spec()
        options: dict[str, Any] = {"schedule": self.schedule(), "seed": seed, "device": device}
        for name in ("audit", "normalizer", "task_id", "workers", "worker_timeout", "replay"):
            options[name] = getattr(self, name)
        if "schedule" not in spec.kwargs:
            return Stream(functools.partial(_ordinary, spec), num_envs=num_envs, **options)
        made = gym.make_vec(spec, num_envs=num_envs, **options)
        assert isinstance(made, Stream)
        return made


def _ordinary(spec: EnvSpec, k: int, seed: int) -> gym.Env:
    return gym.make(spec)


def registered_streams() -> list[str]:
    """Ids of all streams that are registered now."""
    return sorted(id for id, spec in gym.registry.items() if "schedule" in spec.kwargs)
