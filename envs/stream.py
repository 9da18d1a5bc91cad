"""Streams: vector environments whose task changes while the agent learns.

A *task* is an ordinary Gymnasium environment, made by a pure function of the task's number ``k`` and the
run's seed. A *schedule* says which task is on at which step. A :class:`Stream` steps ``num_envs`` copies of
the current task and replaces all of them, at one and the same step, when the schedule says so.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

TaskFunction = Callable[[int, int], gym.Env]
Order = Literal["cycle", "random"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When the task changes and which task comes next, as pure functions of the step.

    >>> schedule = Schedule(period=100, tasks=2)
    >>> [schedule.task_at(step) for step in (0, 99, 100, 200)]
    [0, 0, 1, 0]
    >>> print(schedule)
    2 tasks in cycles, each for 100 steps

    Args:
        period: environment steps, summed over sub-environments, of a visit to a task; ``None``: for ever.
        tasks: how many tasks there are, if they recur; ``None`` for a new task at every visit.
        order: of recurring tasks: always the same, or drawn anew in every cycle, each task once.
        jitter: switches come up to this share of half a period early or late, at random; 0 to less than 1.
            The mean of the periods stays.
        seed: of what is drawn.
    """

    period: int | None = None
    tasks: int | None = None
    order: Order = "cycle"
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.period is not None and self.period < 1:
            raise ValueError(f"the period of a stream must be at least 1 step, not {self.period}")
        if self.tasks is not None and self.tasks < 1:
            raise ValueError(f"a stream needs at least 1 task, not {self.tasks}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"the jitter of a stream must be at least 0 and below 1, not {self.jitter}")
        if self.order == "random" and self.tasks is None:
            raise ValueError("tasks that never recur cannot come in random order")

    def __str__(self) -> str:
        """One line."""
        if self.period is None:
            return "one task for ever"
        order = {"cycle": "in cycles", "random": "in random order"}[self.order]
        which = "ever new tasks" if self.tasks is None else f"{self.tasks} tasks {order}"
        jitter = f", give or take {50 * self.jitter:g} % at each end" if self.jitter else ""
        return f"{which}, each for {self.period:,} steps{jitter}"

    def start_of(self, visit: int) -> int:
        """The step at which visit 0, 1, 2, ... begins."""
        if self.period is None or visit <= 0:
            return 0
        early = self.jitter * (_uniform(self.seed, visit) - 0.5) if self.jitter else 0.0
        return round(self.period * (visit + early))

    def visit_at(self, step: int) -> int:
        """How many visits to tasks have ended before ``step``."""
        if self.period is None:
            return 0
        visit = step // self.period
        # With jitter the visit may be over already, or not have begun.
        return visit + (self.start_of(visit + 1) <= step) - (self.start_of(visit) > step)

    def task_at(self, step: int) -> int:
        """Number of the task at ``step``."""
        visit = self.visit_at(step)
        if self.tasks is None:
            return visit
        cycle, place = divmod(visit, self.tasks)
        return place if self.order == "cycle" else _permutation(self.seed, cycle, self.tasks)[place]


# Asked at every step: drawing them anew would cost as much as a step of a simple environment.
@functools.lru_cache
def _uniform(seed: int, visit: int) -> float:
    return float(np.random.default_rng([seed, visit]).random())


@functools.lru_cache
def _permutation(seed: int, cycle: int, tasks: int) -> list[int]:
    return np.random.default_rng([seed, cycle]).permutation(tasks).tolist()


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
    is a pure function of (run seed, k, i, j). No two runs share an episode.

    The audit: at every switch a separate copy of the new task is rolled out under fixed seeds and actions,
    and ``info["fingerprint"]``, the hash of what it did, must differ from the old task's. Training is not
    touched.

    Args:
        task: makes task ``k`` from ``(k, seed)``; called once per sub-environment at every switch.
        schedule: which task is on at which step.
        num_envs: N, the number of sub-environments.
        seed: the run's seed.
        device: where observations, rewards and ends of episodes are returned as tensors (observations in
            their own dtype, rewards as float32); ``None`` returns NumPy arrays, as Gymnasium does.
        audit: whether switches are audited.

    Raises:
        ValueError: at a switch, if the new task's spaces differ from the first task's, if it does just what
            the old task did, or if a task that recurs is not what it was.
    """

    def __init__(
        self,
        task: TaskFunction,
        schedule: Schedule,
        num_envs: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        audit: bool = True,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"a stream needs at least 1 environment, not {num_envs}")
        self.make_task = task
        self.schedule = dataclasses.replace(schedule, seed=seed)
        self.num_envs = num_envs
        self.seed = seed
        self.device = device
        self.audit = audit and schedule.period is not None
        self.fingerprints: dict[int, str] = {}
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.steps = 0
        self.task = self.schedule.task_at(0)
        self.env = self._make_envs()
        self.single_observation_space = self.env.single_observation_space
        self.single_action_space = self.env.single_action_space
        self.observation_space = self.env.observation_space
        self.action_space = self.env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Go back to step 0 of the stream; ``seed`` replaces the run's seed.

        Returns:
            Observations, shape (N, ...), and ``{"task": k}``.
        """
        if options:
            raise ValueError(f"a stream takes no reset options, got {sorted(options)}")
        if seed is not None and seed != self.seed:
            self.seed = seed
            self.schedule = dataclasses.replace(self.schedule, seed=seed)
            self.fingerprints.clear()
            self._enter(self.schedule.task_at(0))
        self.steps = 0
        self.episodes = np.full(self.num_envs, -1)
        self.returns = np.zeros(self.num_envs)
        self.lengths = np.zeros(self.num_envs, dtype=np.int64)
        if self.task != self.schedule.task_at(0):
            self._enter(self.schedule.task_at(0))
        if self.audit:
            self._audit()
        return self._out(self._reset_envs(np.ones(self.num_envs, dtype=bool))), {"task": self.task}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every sub-environment once; switch the task if its last step was made.

        Args:
            actions: tensor or array, shape (N, ...).

        Returns:
            Observations (N, ...), rewards (N,), terminated (N,), truncated (N,) and info.
        """
        if isinstance(actions, torch.Tensor):
            actions = actions.cpu().numpy()
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        self.steps += self.num_envs
        self.returns += rewards
        self.lengths += 1
        info["task"] = self.task
        if self.audit:
            info["fingerprint"] = self.fingerprints[self.task]

        next_task = self.schedule.task_at(self.steps)
        done = terminated | truncated
        if done.any():
            info |= {"episode_return": self.returns.copy(), "_episode_return": done}
            info |= {"episode_length": self.lengths.copy(), "_episode_length": done}
        if next_task != self.task:
            truncated = truncated | ~terminated
            done = np.ones_like(done)
        if done.any():
            info |= {"final_obs": self._out(observations), "_final_obs": done}
            if next_task != self.task:
                self._switch(next_task)
            observations = self._reset_envs(done)
        if self.device is not None:
            rewards = rewards.astype(np.float32)
        return self._out(observations), self._out(rewards), self._out(terminated), self._out(truncated), info

    def close_extras(self, **kwargs: Any) -> None:
        """Close the sub-environments."""
        self.env.close()

    def _switch(self, task: int) -> None:
        old = self.task
        self._enter(task)
        if self.audit:
            self._audit()
            if self.fingerprints[task] == self.fingerprints[old]:
                raise ValueError(f"the switch changed nothing: task {task} does just what task {old} did")
            if self.schedule.tasks is None:
                del self.fingerprints[old]

    def _enter(self, task: int) -> None:
        self.env.close()
        self.task = task
        self.env = self._make_envs()
        for kind in ("single_observation_space", "single_action_space"):
            if getattr(self.env, kind) != getattr(self, kind):
                raise ValueError(
                    f"all tasks of a stream share their spaces, but {kind} of task {task} is "
                    f"{getattr(self.env, kind)} and was {getattr(self, kind)}"
                )

    def _make_envs(self) -> SyncVectorEnv:
        make = functools.partial(self.make_task, self.task, self.seed)
        return SyncVectorEnv([make] * self.num_envs, autoreset_mode=AutoresetMode.DISABLED)

    def _audit(self) -> None:
        """Take the fingerprint of the task that is on; it must be what it was if the task was on before."""
        now = fingerprint(self.make_task(self.task, self.seed))
        if self.fingerprints.setdefault(self.task, now) != now:
            raise ValueError(f"task {self.task} is not what it was: it must be a function of (k, seed) alone")

    def _reset_envs(self, mask: np.ndarray) -> np.ndarray:
        """Start the next episode where ``mask`` is set; returns all observations, (N, ...)."""
        self.episodes[mask] += 1
        self.returns[mask] = 0.0
        self.lengths[mask] = 0
        seeds = [
            episode_seed(self.seed, self.task, env, int(self.episodes[env])) if mask[env] else None
            for env in range(self.num_envs)
        ]
        return self.env.reset(seed=seeds, options={"reset_mask": mask})[0]

    def _out(self, array: np.ndarray) -> Any:
        """The one place where NumPy becomes a tensor on the agent's device."""
        return array if self.device is None else torch.as_tensor(array, device=self.device)


def fingerprint(env: gym.Env, steps: int = 256) -> str:
    """What an environment does, as a hash: its spaces and a rollout under fixed seeds and actions.

    Args:
        env: an environment of its own for this, which is closed.
        steps: length of the rollout, over as many episodes as end in it.

    Returns:
        SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256(f"{env.observation_space} {env.action_space}".encode())
    env.action_space.seed(0)
    ended, episode = True, 0
    for _ in range(steps):
        if ended:
            _digest(digest, env.reset(seed=episode)[0])
            episode += 1
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        _digest(digest, (observation, reward, terminated, truncated))
        ended = terminated or truncated
    env.close()
    return digest.hexdigest()


def _digest(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, dict):
        value = [item for pair in sorted(value.items()) for item in pair]
    if isinstance(value, list | tuple):
        for item in value:
            _digest(digest, item)
    else:
        digest.update(value.encode() if isinstance(value, str) else np.asarray(value).tobytes())


def episode_seed(run: int, task: int, env: int, episode: int) -> int:
    """The 63-bit seed of one episode: independent streams, where ``seed + env`` overlaps between runs."""
    return int(np.random.SeedSequence([run, task, env, episode]).generate_state(1, np.uint64)[0] >> 1)


def task_rng(seed: int, task: int) -> np.random.Generator:
    """The random generator from which task ``task`` of a stream draws what it changes."""
    return np.random.default_rng(np.random.SeedSequence([seed, task]))


def stream(id: str, *, period: int, tasks: int | None = None) -> Callable[[TaskFunction], TaskFunction]:
    """Register ``task(k, seed) -> env`` with Gymnasium as the stream ``id``.

    Args:
        id: a Gymnasium id; ``module:id`` on a command line imports the module first.
        period: environment steps, summed over sub-environments, that each task lasts by default.
        tasks: how many different tasks there are, if they come in cycles.
    """

    def register(task: TaskFunction) -> TaskFunction:
        def make(num_envs: int, **options: Any) -> Stream:
            return Stream(task, num_envs=num_envs, **options)

        schedule = Schedule(period, tasks)
        gym.register(id, vector_entry_point=make, kwargs={"schedule": schedule})  # type: ignore[arg-type]
        return task

    return register


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """Which stream the agent lives on."""

    id: str = "cartpole-rotations"
    """A registered stream, module:id for one in your own file, or any Gymnasium id (which never switches)."""
    period: int | None = None
    """Environment steps, summed over sub-environments, that each task lasts (default: the stream's own)."""
    order: Order = "cycle"
    """Recurring tasks come always in the same order, or in one that is drawn anew for every cycle."""
    jitter: float = 0.0
    """Switches come up to this share of half a period early or late, at random; 0 to less than 1."""
    audit: bool = True
    """Prove at every switch, on a separate copy, that the new task does what the old one did not."""

    def spec(self) -> EnvSpec:
        """What Gymnasium knows of the id, after the import of its module if it names one.

        Raises:
            ValueError: the id is unknown or its module cannot be imported.
        """
        module, _, name = self.id.rpartition(":")
        try:
            if module:
                # A script's own folder is on the path, the folder it is called from is not.
                if os.getcwd() not in sys.path:
                    sys.path.append(os.getcwd())
                importlib.import_module(module)
            return gym.spec(name)
        except (gym.error.Error, ImportError) as error:
            raise ValueError(f"there is no stream {self.id!r}: {error}") from error

    def schedule(self) -> Schedule:
        """The stream's own schedule with what the flags change.

        Raises:
            ValueError: the id is unknown, or a flag is out of range or would be ignored.
        """
        own = self.spec().kwargs.get("schedule", Schedule())
        period = own.period if self.period is None else self.period
        changed = dataclasses.replace(own, period=period, order=self.order, jitter=self.jitter)
        if own.period is None and changed != own:
            raise ValueError(f"{self.id} never switches, so flags of its schedule would be ignored")
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

    def make(self, num_envs: int, seed: int = 0, device: torch.device | str | None = None) -> Stream:
        """Make the stream; an ordinary Gymnasium id becomes a stream of one task."""
        self.check(num_envs)
        spec = self.spec()
        options: dict[str, Any] = {
            "schedule": self.schedule(),
            "seed": seed,
            "device": device,
            "audit": self.audit,
        }
        if "schedule" not in spec.kwargs:
            return Stream(lambda k, seed: gym.make(spec), num_envs=num_envs, **options)
        made = gym.make_vec(spec, num_envs=num_envs, **options)
        assert isinstance(made, Stream)
        return made


def registered_streams() -> list[str]:
    """Ids of all streams that are registered now."""
    return sorted(id for id, spec in gym.registry.items() if "schedule" in spec.kwargs)
