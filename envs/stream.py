"""Streams: vector environments whose task changes while the agent learns.

A *task* is an ordinary Gymnasium environment, made by a pure function of the task's number ``k`` and the
run's seed. A *schedule* determines the task of each step. A :class:`Stream` steps ``num_envs`` copies of the
current task and, at a *switch*, replaces all of them at the same step.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import FrameStackObservation, OrderEnforcing, PassiveEnvChecker, TimeLimit

from neoteny.envs.audit import Fingerprint
from neoteny.envs.auditor import AuditMode, Auditor
from neoteny.envs.checks import try_out
from neoteny.envs.engine import Engine, EngineConfig, UncoveredError, choose_engine, first_tasks
from neoteny.envs.observations import Channels, Kind, ObservationSpec, Preprocessing, read_observations
from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import TaskEnv, TaskFunction, agent_actions, is_shipped, make_task_env
from neoteny.envs.transfer import to_device


class Step(NamedTuple):
    """A step of all sub-environments of a stream, on the agent's device, (N, ...)."""

    observations: Any  # after the step; the first of the next episode where one has ended
    rewards: Any
    terminated: Any
    truncated: Any
    final_observations: Any  # before a new episode, where one has ended
    episodes: Any  # (3, N), float64: whether an episode ended in the environment, its return and its length


class Stream(VectorEnv):
    """A Gymnasium vector environment whose sub-environments change task together.

    Autoreset mode is SAME_STEP. An episode ends

    * when its environment terminates or truncates it;
    * at the last step of a visit to a task: the stream truncates every running episode.

    In both cases ``info["final_obs"]`` (shape (N, ...), valid where ``info["_final_obs"]``) is the final
    observation of the ended episode, still of the old task. The returned observation is the first of the next
    episode, after a switch one of the new task. Undiscounted returns and lengths of episodes are in
    ``info["episode_return"]`` and ``info["episode_length"]``, valid where ``info["_episode_return"]``;
    episodes that a switch cut short are left out, since a partial return says nothing about the agent.
    ``info["task"]`` is the number of the task in which the step was made. The first step of a visit has
    ``info["fingerprint"]`` of the task, if there is an audit, ``info["audit"]``, what was wrong with the
    switch, if anything was, and ``info["game"]``, the name of the task, if it has one.
    The environments' own infos are in ``info["env_infos"]``, one dict per environment, to be read before the
    next step; those of worker processes are fetched when they are read.

    Discrete actions are numbered from 0, whatever number the first action has in the environments.

    The stream owns every reset: the seed of episode ``j`` of sub-environment ``i`` in task ``k`` is a pure
    function of (run seed, k, i, j); in Atari games most episodes instead continue an emulator that was seeded
    this way. A stream is restored by replaying its running episodes.

    The audit: the first reset compares tasks that follow one another, and at every switch the fingerprint of
    the new task is compared with that of the old one (see :class:`neoteny.envs.auditor.Auditor`). If tasks
    turn gradually into one another, a copy of the new task with the old one's parameters must behave exactly
    as the old one, so that the change starts without a jump. ``audit_seconds`` is the time spent on audits,
    on trying the engine and on trying whether episodes are repeatable.

    Args:
        task: makes task ``k`` from ``(k, seed)``; called once per sub-environment at every switch.
        schedule: determines the task of each step.
        engines: available kinds of engine; the first that covers every task is used, and of those with
            ``on_cpu`` only, if the agent is not on a CUDA device.
        num_envs: N, the number of sub-environments.
        seed: the run's seed.
        device: of the returned tensors (observations in their own dtype, rewards as float32); ``None``
            returns NumPy arrays, as Gymnasium does.
        names: of the recurring tasks, or a function of a task's number and the seed, if they have any.
        audit, normalizer, task_id, observations, channels, engine: as in
            :class:`neoteny.envs.config.StreamConfig`.

    Raises:
        ValueError: no engine can step the tasks; observations or actions are not arrays or do not fit their
            spaces; at the first reset, if tasks have different spaces, or behave the same, or if a gradual
            change would start with a jump.
        SpacesError: at a switch, if the new task has other spaces than the first one.
    """

    def __init__(
        self,
        task: TaskFunction,
        schedule: Schedule,
        engines: Sequence[EngineConfig],
        num_envs: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        audit: AuditMode = "on",
        normalizer: Literal["none", "keep", "reset"] = "none",
        task_id: Literal["none", "onehot"] = "none",
        observations: Kind | Literal["auto"] = "auto",
        channels: Channels | Literal["auto"] = "auto",
        engine: str = "auto",
        names: Sequence[str] | Callable[[int, int], str] = (),
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"a stream needs at least 1 environment, not {num_envs}")
        self.make_task = task
        self.schedule = dataclasses.replace(schedule, seed=seed)
        self.num_envs = num_envs
        self.device = None if device is None else torch.device(device)
        self.names = names
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.steps = self._entered = 0
        self.about_step: dict[str, Any] = {}
        """The info of the latest step, without what depends on ended episodes."""
        self._look_ahead()

        first = self.make_task(self.task, self.seed)
        self.raw_spaces = first.observation_space, first.action_space
        self.auditor = Auditor(task, self.raw_spaces, "off" if schedule.period is None else audit)
        raw = observation_spec(first, engines, observations, channels)
        onehot_tasks = recurring_tasks(schedule) if task_id == "onehot" else []
        self.preprocessing = Preprocessing(raw, normalizer, onehot_tasks, device)
        self.observation_spec = self.preprocessing.spec
        """The kind of the preprocessed observations."""
        self.single_observation_space = self.observation_spec.space
        self.single_action_space = agent_actions(first.action_space)
        if self.single_action_space.shape is None:
            raise ValueError(f"actions of a stream must be arrays of numbers, not {first.action_space}")
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        # A normalizer or a task id makes a frame depend on its place in the stack.
        is_raw = task_id == "none" and normalizer == "none"
        self.frame_stack = _frame_stack(first) if is_raw else 1
        """Number of frames stacked along the first axis of an observation, zeros before the first."""
        is_cuda = torch.device(device or "cpu").type == "cuda"
        by_default = [config for config in engines if config.on_cpu or is_cuda]
        allowed = by_default if engine == "auto" else [each for each in engines if each.name == engine]
        started = time.perf_counter()
        chosen = choose_engine(allowed, task, self.schedule, first)
        self.unrepeatable = ""
        if not is_shipped(task):
            self.unrepeatable = chosen.unrepeatable(task, self.raw_spaces, self.schedule)
        """Why the stream cannot be restored exactly, or an empty string."""
        self.auditor.seconds += time.perf_counter() - started
        self.engine_config, self.engine_name = chosen, chosen.name
        self.covered = {(k, seed) for k in first_tasks(self.schedule)}
        self.remarks = [raw.check(try_out(first))]
        """Warnings about the observations and, after the first reset, the tasks; some may be empty."""
        first.close()

        self.engine: Engine = chosen.make(task, self.raw_spaces, num_envs, device)
        self.episodes = torch.zeros(3, num_envs, dtype=torch.float64, device=self.engine.device)
        """Of the running episodes, (3, N), as in :class:`Step`; in one tensor to save operations."""
        self.ended, self.returns, self.lengths = self.episodes
        self.began = False
        self._enter()

    def __str__(self) -> str:
        """Describe schedule and observations in one line; warnings, if there are any, in a line each."""
        about = f"{self.schedule}; {self.observation_spec}, stepped by the engine {self.engine_name}"
        inexact = self.unrepeatable and f"warning: a resumed run will not be exact: {self.unrepeatable}"
        return "\n".join(filter(None, (about, *self.remarks, inexact)))

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.schedule.seed

    @property
    def name(self) -> str:
        """The name of the current task; empty if it has none."""
        if callable(self.names):
            return self.names(self.task, self.seed)
        return self.names[self.task] if self.names else ""

    @property
    def observation(self) -> Any:
        """The latest observations, preprocessed, (N, ...)."""
        return self.preprocess(self.engine.observations)

    @property
    def fingerprints(self) -> dict[int, Fingerprint]:
        """Fingerprints of the tasks so far; of tasks that never recur that of the current one."""
        return self.auditor.fingerprints

    @property
    def audit_seconds(self) -> float:
        """Time spent on audits."""
        return self.auditor.seconds

    @property
    def exact(self) -> bool:
        """Whether the running episodes were continued as they were when the stream was last restored."""
        return not self.engine.inexact

    @property
    def inexact(self) -> list[str]:
        """Reasons why results are not a function of the run's seed and the actions alone."""
        return list(filter(None, (self.unrepeatable, self.engine.inexact)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Return to step 0; ``seed`` replaces the run's. Returns observations, (N, ...), and the task.

        A normalizer starts anew, unless its statistics were loaded.
        """
        if options:
            raise ValueError(f"a stream takes no reset options, got {sorted(options)}")
        if self.began or seed not in (None, self.seed):
            self.schedule = dataclasses.replace(self.schedule, seed=self.seed if seed is None else seed)
            self.steps = 0
            self.engine.clear()
            self._enter()
        self.began = True
        self.episodes.zero_()
        self.preprocessing.reset()
        self.remarks[1:] = self.auditor.begin(self.schedule)
        self.engine.reset()
        return self.preprocess(self.engine.observations, learn=True), {"task": self.task}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every sub-environment once, actions (N, ...); switch the task after its last step.

        Returns:
            Observations (N, ...), rewards (N,), terminated (N,), truncated (N,) and info.
        """
        actions = self._checked(actions)
        self.begin_step()
        step = self.step_tensors(actions)
        info = dict(self.about_step)
        if step.episodes is not None:
            ended, returns, lengths = step.episodes
            ended = ended > 0
            lengths = lengths.astype(np.int64) if self.device is None else lengths.long()
            info |= {"episode_return": returns, "_episode_return": ended}
            info |= {"episode_length": lengths, "_episode_length": ended}
        if step.final_observations is not None:
            info |= {"final_obs": step.final_observations}
            info |= {"_final_obs": step.terminated | step.truncated}
        return *step[:4], info

    def step_tensors(self, actions: Any) -> Step:
        """Step every sub-environment as :meth:`step` does, without an info, after :meth:`begin_step`.

        Where the stream is :attr:`capturable`, this computes on static tensors, see
        :mod:`neoteny.runners.capture`. On a CPU, fields on ended episodes are ``None`` if none has ended.
        """
        rewards, terminated, truncated, env_infos = self.engine.step(actions)
        if env_infos:
            self.about_step["env_infos"] = env_infos
        self.returns += rewards
        self.lengths += 1
        done = terminated | truncated
        final = episodes = None
        some = self.may_have(done)
        if some:
            self.ended.copy_(done)
            episodes = self._to_agent(self.episodes.clone())
        if self._switching:
            truncated = truncated | ~terminated
            done = torch.ones_like(done)
        if some or self._switching:
            final = self.observation
            if self._switching:
                self._switch()
            self.episodes.masked_fill_(done, 0.0)
            self.engine.reset(done)
        observations = self.preprocess(self.engine.observations, learn=True)
        if self.device is not None:
            rewards = rewards.float()
        rewards, terminated, truncated = map(self._to_agent, (rewards, terminated, truncated))
        return Step(observations, rewards, terminated, truncated, final, episodes)

    def begin_step(self) -> None:
        """Begin a step, the part of it on the host: count it, and find whether it is the last of its task."""
        self.steps += self.num_envs
        self.engine.begin_step()
        self.about_step = {"task": self.task}
        if self._is_first:
            self.about_step |= self._about_task()
        self._switching = self.steps >= self._visit_end and self._is_over()

    @property
    def capturable(self) -> bool:
        """Whether :meth:`step_tensors` computes on static tensors, but for steps that switch the task."""
        return self.engine.capturable

    @staticmethod
    def may_have(flags: torch.Tensor) -> bool:
        """Whether any flag is set; true on a GPU, where to read it takes longer than what it saves."""
        is_read = flags.is_cpu and not torch.compiler.is_compiling()
        return not is_read or bool(flags.any())

    def variant(self) -> int | None:
        """What distinguishes the kernels of this step: the number of tasks so far.

        ``None`` if it switches the task, or calls environments on the host.
        """
        return self._entered if self.capturable and not self._switching else None

    def state_dict(self) -> dict[str, Any]:
        """The state of the stream: numbers, strings, arrays and tensors in dicts and lists."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "returns": self.returns.clone(),
            "lengths": self.lengths.long(),
            "engine": self.engine.state_dict(),
            **self.auditor.state_dict(),
            "preprocessing": self.preprocessing.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a stream with the same id and flags, running episodes included.

        If these cannot be continued exactly, new ones begin, and ``inexact`` says why.
        """
        self.began = True
        self.schedule = dataclasses.replace(self.schedule, seed=state["seed"])
        self.steps = state["steps"]
        self._look_ahead()
        self.returns.copy_(state["returns"])
        self.lengths.copy_(state["lengths"])
        self.engine.load_state_dict(state["engine"], self.schedule, self.steps, self.returns)
        self.auditor.load_state_dict(state)
        self.preprocessing.load_state_dict(state["preprocessing"])
        if not self.exact:  # the running episodes were replaced by new ones
            self.episodes.zero_()
            self.preprocess(self.engine.observations, learn=True)

    def statistics(self) -> dict[str, torch.Tensor]:
        """The statistics of the normalizer, a part of the policy, by name; empty if there is none."""
        state = self.preprocessing.state_dict()
        return {name: torch.as_tensor(value) for name, value in state.items()}

    def load_statistics(self, statistics: dict[str, torch.Tensor]) -> None:
        """Load the statistics of a normalizer, to be kept by :meth:`reset`."""
        self.preprocessing.load_state_dict(statistics)

    def make_eval_env(self, task: int | None = None) -> TaskEnv:
        """An evaluation environment of a task, as at the start of a visit or after a gradual change.

        ``None`` stands for the current task, which stays as it is at this step.
        """
        if task is None:
            return self.engine.single_env(self.schedule, self.steps)
        alone = Schedule(tasks=(task,), seed=self.seed)
        return make_task_env(self.make_task, self.raw_spaces, alone, 0)

    def preprocess(self, observations: torch.Tensor, learn: bool = False, task: int | None = None) -> Any:
        """Preprocess observations (B, ...) of a task, by default the current one.

        With ``learn`` the normalizer is updated.
        """
        return self._to_agent(self.preprocessing(observations, self.task if task is None else task, learn))

    def misfit_before(self, step: int) -> str:
        """Why the stream ends before ``step``, if it does.

        A task to come has other spaces than the first, or the engine cannot step it.
        """
        visits = range(self.schedule.visit_at(self.steps) + 1, self.schedule.visit_at(step) + 1)
        tasks = map(self.schedule.task_of, visits)
        misfits = (self.auditor.misfit(task, self.seed) or self._uncovered(task) for task in tasks)
        return next(filter(None, misfits), "")

    def close_extras(self, **kwargs: Any) -> None:
        """Close the sub-environments."""
        self.engine.close()

    def _enter(self) -> None:
        """Switch the engine to the task of the current step."""
        self._entered += 1
        self._look_ahead()
        if reason := self._uncovered(self.task):
            raise ValueError(reason)
        self.engine.enter(self.schedule, self.steps)

    def _uncovered(self, task: int) -> str:
        """Why the engine cannot step a task, which is tried once; an empty string if it can."""
        if (task, self.seed) in self.covered:
            return ""
        started = time.perf_counter()
        try:
            self.engine_config.covers(self.make_task, task, self.seed)
        except UncoveredError as reason:
            return (
                f"--stream.engine {self.engine_name} cannot step task {task}, and a run keeps its engine: "
                f"{reason}; start the run with --stream.engine single"
            )
        finally:
            self.auditor.seconds += time.perf_counter() - started
        self.covered.add((task, self.seed))
        return ""

    def _look_ahead(self) -> None:
        """Set the current task and the end of its visit."""
        visit = self.schedule.visit_at(self.steps)
        self.task = self.schedule.task_of(visit)
        self._visit_end = np.inf if self.schedule.period is None else self.schedule.start_of(visit + 1)
        before = self.steps - self.num_envs
        self._is_first = before < 0 or self.schedule.task_at(before) != self.task

    def _is_over(self) -> bool:
        """Whether the task has changed; a second consecutive visit to the same task is not a switch."""
        if self.schedule.task_at(self.steps) != self.task:
            return True
        self._look_ahead()
        return False

    def _about_task(self) -> dict[str, Any]:
        """Entries about the task for the info of a visit's first step."""
        self._is_first = False
        about = {
            "game": self.name,
            "fingerprint": self.fingerprints.get(self.task),
            "audit": self.auditor.warning,
        }
        return {name: value for name, value in about.items() if value}

    def _switch(self) -> None:
        old = self.task
        self._enter()
        self.preprocessing.switch()
        self.auditor.switch(self.schedule, old, self.task)
        if self.schedule.tasks is None:  # the old task never recurs
            self.covered.discard((old, self.seed))

    def _checked(self, actions: Any) -> Any:
        """Actions, (N, ...), as an array or a tensor; ValueError for another shape."""
        if np.shape(actions) != self.action_space.shape:
            raise ValueError(f"actions of shape {tuple(np.shape(actions))} do not fit {self.action_space}")
        return actions if isinstance(actions, torch.Tensor) else np.asarray(actions)

    def _to_agent(self, tensor: torch.Tensor) -> Any:
        """A tensor on the agent's device, or a NumPy array if ``device`` is ``None``."""
        return tensor.numpy() if self.device is None else to_device(tensor, self.device)


def recurring_tasks(schedule: Schedule) -> list[int]:
    """Numbers of the recurring tasks; ValueError if there are none."""
    if not schedule.cycle:
        raise ValueError("a one-hot task id needs recurring tasks: set --stream.tasks, such as 0 1 2")
    return sorted(set(schedule.cycle))


def observation_spec(
    env: gym.Env,
    engines: Sequence[EngineConfig],
    kind: Kind | Literal["auto"],
    channels: Channels | Literal["auto"],
) -> ObservationSpec:
    """The kind of a task's observations: from the flags, else from its package, else from its space."""
    if kind == "auto" and channels == "auto":
        known = (engine.observation_spec(env) for engine in engines)
        if (spec := next(filter(None, known), None)) is not None:
            return spec
    return read_observations(env.observation_space, kind, channels)


def _frame_stack(env: gym.Env) -> int:
    """Number of frames stacked along the first axis of observations, zeros before the first; else 1."""
    while isinstance(env, OrderEnforcing | PassiveEnvChecker | TimeLimit):
        env = env.env
    padded = isinstance(env, FrameStackObservation) and env.padding_type == "zero"
    return env.stack_size if padded else 1  # type: ignore[attr-defined]
