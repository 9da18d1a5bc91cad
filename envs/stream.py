"""Streams: vector environments whose task changes while the agent learns.

A *task* is an ordinary Gymnasium environment, made by a pure function of the task's number ``k`` and the
run's seed. A *schedule* says which task is on at which step. A :class:`Stream` steps ``num_envs`` copies of
the current task and replaces all of them, at one and the same step, when the schedule says so.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import FrameStackObservation, OrderEnforcing, PassiveEnvChecker, TimeLimit

from neoteny.envs.audit import Fingerprint, fingerprint, set_parameters
from neoteny.envs.engine import Engine, EngineConfig, choose_engine
from neoteny.envs.observations import Channels, Kind, ObservationSpec, Preprocessing, read_observations
from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import TaskEnv, TaskFunction, try_out


class Stream(VectorEnv):
    """A Gymnasium vector environment whose sub-environments change task together.

    Autoreset is SAME_STEP. Two kinds of step end an episode:

    * the environment's own end: ``terminated`` or ``truncated``, as it says itself;
    * the last step of a task: every episode that still runs is ``truncated``.

    In each case ``info["final_obs"]`` (shape (N, ...), valid where ``info["_final_obs"]``) is the last
    observation of the ended episode, still of the old task, and the returned observation is the first of the
    next episode, after a switch of the new task. Undiscounted returns and lengths of episodes stand in
    ``info["episode_return"]`` and ``info["episode_length"]``, valid where ``info["_episode_return"]``:
    episodes that a switch cut short are left out, since the return of half an episode says nothing about the
    agent. ``info["task"]`` is the task in which the step was made; the first step of a visit to a task has
    its ``info["fingerprint"]``, if there is an audit, and ``info["game"]``, its name, if it has one. What the
    environments themselves say is in ``info["env_infos"]``, one dict each, as they gave it.

    The Stream owns every reset: episode ``j`` of sub-environment ``i`` in task ``k`` starts from a seed that
    is a pure function of (run seed, k, i, j), or, in an Atari game, where the one before it left an emulator
    with such a seed. Any stream is restored where it was by replaying the running episodes.

    The audit: at every switch a separate copy of the new task is rolled out under fixed seeds and actions,
    and what it did, its fingerprint, must differ from the old task's. If the schedule lets tasks turn
    gradually into one another, a copy of the new task with the old one's parameters must do just what the old
    one did, so that nothing jumps. ``audit_seconds`` is what it cost so far.

    Args:
        task: makes task ``k`` from ``(k, seed)``; called once per sub-environment at every switch.
        schedule: which task is on at which step.
        engines: the kinds of engine that there are; the first that covers every task steps it.
        num_envs: N, the number of sub-environments.
        seed: the run's seed.
        device: where observations, rewards and ends of episodes are returned as tensors (observations in
            their own dtype, rewards as float32); ``None`` returns NumPy arrays, as Gymnasium does.
        names: of the recurring tasks, if they have any.
        audit, normalizer, task_id, observations, channels, engine: as in
            :class:`neoteny.envs.config.StreamConfig`.

    Raises:
        ValueError: no engine can step the tasks; observations or actions are not arrays, or not what the
            environment's spaces say; at a switch, if the new task's spaces differ from the first task's, if
            it does just what the old task did, if a task that recurs is not what it was, or if a gradual
            change would jump.
    """

    def __init__(
        self,
        task: TaskFunction,
        schedule: Schedule,
        engines: Sequence[EngineConfig],
        num_envs: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        audit: bool = True,
        normalizer: Literal["none", "keep", "reset"] = "none",
        task_id: Literal["none", "onehot"] = "none",
        observations: Kind | Literal["auto"] = "auto",
        channels: Channels | Literal["auto"] = "auto",
        engine: str = "auto",
        names: Sequence[str] = (),
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"a stream needs at least 1 environment, not {num_envs}")
        self.make_task = task
        self.schedule = dataclasses.replace(schedule, seed=seed)
        self.num_envs = num_envs
        self.device = device
        self.names = names
        self.audit = audit and schedule.period is not None
        self.audit_seconds = 0.0
        self.fingerprints: dict[int, Fingerprint] = {}
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.steps = 0
        self._look_ahead()

        first = self._copy()
        self.raw_spaces = first.observation_space, first.action_space
        raw = _observation_spec(first, engines, observations, channels)
        onehot_tasks = recurring_tasks(schedule) if task_id == "onehot" else []
        self.preprocessing = Preprocessing(raw, normalizer, onehot_tasks, device)
        self.observation_spec = self.preprocessing.spec
        """What observations are, as the agent sees them."""
        self.single_observation_space = self.observation_spec.space
        self.single_action_space = first.action_space
        if self.single_action_space.shape is None:
            raise ValueError(f"actions of a stream are arrays of numbers, not {first.action_space}")
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.frame_stack = 1 if task_id == "onehot" else _frame_stack(first)
        """How many frames are stacked along the first axis of an observation, zeros before the first."""
        allowed = [config for config in engines if engine in ("auto", config.name)]
        chosen = choose_engine(allowed, task, self.schedule, first)
        self.engine_name = chosen.name
        self.remark = raw.check(try_out(first))
        """What is odd about observations."""
        first.close()

        self.engine: Engine = chosen.make(task, self.raw_spaces, num_envs, device)
        self.returns = torch.zeros(num_envs, dtype=torch.float64, device=self.engine.device)
        self.lengths = torch.zeros(num_envs, dtype=torch.int64, device=self.engine.device)
        self.began = False
        self._enter()

    def __str__(self) -> str:
        """Which tasks come when, what is observed, and what is odd about it, in a line each."""
        observed = f"observations: {self.observation_spec}, stepped by the engine {self.engine_name}"
        return "\n".join(filter(None, (str(self.schedule), observed, self.remark)))

    @property
    def seed(self) -> int:
        """The run's."""
        return self.schedule.seed

    @property
    def observation(self) -> Any:
        """What the agent sees of the latest observations, (N, ...)."""
        return self.preprocess(self.engine.observations)

    @property
    def exact(self) -> bool:
        """Whether what it returns is a function of the run's seed and the actions alone."""
        return self.engine.exact

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Go back to step 0; ``seed`` replaces the run's. Returns observations, (N, ...), and the task."""
        if options:
            raise ValueError(f"a stream takes no reset options, got {sorted(options)}")
        if self.began or seed not in (None, self.seed):
            self.fingerprints.clear()
            self.schedule = dataclasses.replace(self.schedule, seed=self.seed if seed is None else seed)
            self.steps = 0
            self.engine.clear()
            self._enter()
        self.began = True
        self.returns.zero_()
        self.lengths.zero_()
        self.preprocessing.reset()
        if self.audit:
            self._audit()
        self.engine.reset()
        return self.preprocess(self.engine.observations, learn=True), {"task": self.task}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every sub-environment once, actions (N, ...); switch the task if its last step was made.

        Returns:
            Observations (N, ...), rewards (N,), terminated (N,), truncated (N,) and info.
        """
        rewards, terminated, truncated, env_infos = self.engine.step(self._checked(actions))
        self.steps += self.num_envs
        self.returns += rewards
        self.lengths += 1
        info: dict[str, Any] = {"task": self.task}
        if env_infos:
            info["env_infos"] = env_infos
        if self._is_first:
            info |= self._about_task()

        done = terminated | truncated
        switches = self.steps >= self._visit_end and self._is_over()
        # On a GPU, to ask whether any episode ended would take longer than to reset none.
        some = self.engine.device.type != "cpu" or bool(done.any())
        if some:
            ended = self._to_agent(done)
            info |= {"episode_return": self._to_agent(self.returns.clone()), "_episode_return": ended}
            info |= {"episode_length": self._to_agent(self.lengths.clone()), "_episode_length": ended}
        if switches:
            truncated = truncated | ~terminated
            done = torch.ones_like(done)
        if some or switches:
            info |= {"final_obs": self.observation, "_final_obs": self._to_agent(done)}
            if switches:
                self._switch()
            self.returns.masked_fill_(done, 0.0)
            self.lengths.masked_fill_(done, 0)
            self.engine.reset(done)
        observations = self.preprocess(self.engine.observations, learn=True)
        if self.device is not None:
            rewards = rewards.float()
        ends = self._to_agent(terminated), self._to_agent(truncated)
        return observations, self._to_agent(rewards), *ends, info

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: numbers, texts, arrays and tensors in dicts and lists."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "returns": self.returns.clone(),
            "lengths": self.lengths.clone(),
            "engine": self.engine.state_dict(),
            "fingerprints": {str(k): dataclasses.asdict(known) for k, known in self.fingerprints.items()},
            "audit_seconds": self.audit_seconds,
            "preprocessing": self.preprocessing.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where another stream of the same id and flags was, its running episodes included.

        Raises ValueError if these come out otherwise: some environment is no function of seed and actions.
        """
        self.began = True
        self.schedule = dataclasses.replace(self.schedule, seed=state["seed"])
        self.steps = state["steps"]
        self._look_ahead()
        self.returns = state["returns"].to(self.engine.device, copy=True)
        self.lengths = state["lengths"].to(self.engine.device, copy=True)
        self.engine.load_state_dict(state["engine"], self.schedule, self.steps)
        self.fingerprints = {int(k): Fingerprint(**known) for k, known in state["fingerprints"].items()}
        self.audit_seconds = state["audit_seconds"]
        self.preprocessing.load_state_dict(state["preprocessing"])
        if not self.exact:  # other episodes began
            self.returns.zero_()
            self.lengths.zero_()
            self.preprocess(self.engine.observations, learn=True)

    def make_eval_env(self) -> TaskEnv:
        """One more sub-environment of the task that is on, as it is at this step, which stays as it is."""
        return self.engine.single_env(self.schedule, self.steps)

    def preprocess(self, observations: torch.Tensor, learn: bool = False) -> Any:
        """What the agent sees of observations (B, ...) of the task that is on; the normalizer may learn."""
        return self._to_agent(self.preprocessing(observations, self.task, learn))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the sub-environments."""
        self.engine.close()

    def _enter(self) -> None:
        """Go over to the task that is on now."""
        self._look_ahead()
        self.engine.enter(self.schedule, self.steps)

    def _look_ahead(self) -> None:
        """Which task is on now, and until when."""
        visit = self.schedule.visit_at(self.steps)
        self.task = self.schedule.task_of(visit)
        self._visit_end = np.inf if self.schedule.period is None else self.schedule.start_of(visit + 1)
        before = self.steps - self.num_envs
        self._is_first = before < 0 or self.schedule.task_at(before) != self.task

    def _is_over(self) -> bool:
        """Whether another task is on now; a visit to the same task again is no switch."""
        if self.schedule.task_at(self.steps) != self.task:
            return True
        self._look_ahead()
        return False

    def _about_task(self) -> dict[str, Any]:
        """What the first step of a visit says of the task."""
        self._is_first = False
        about: dict[str, Any] = {"game": self.names[self.task]} if self.names else {}
        return about | ({"fingerprint": self.fingerprints[self.task]} if self.audit else {})

    def _switch(self) -> None:
        old = self.task
        self._enter()
        self.preprocessing.switch()
        if self.audit:
            self._audit(old)
            if self.schedule.tasks is None:
                del self.fingerprints[old]

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

    def _checked(self, actions: Any) -> Any:
        """Actions, (N, ...), if they are of their space; arrays as a copy of its dtype."""
        if np.shape(actions) != self.action_space.shape:
            raise ValueError(f"actions of shape {tuple(np.shape(actions))} are not of {self.action_space}")
        if isinstance(actions, torch.Tensor):
            return actions
        return np.asarray(actions).astype(self.action_space.dtype, casting="same_kind")

    def _to_agent(self, tensor: torch.Tensor) -> Any:
        """A tensor on the agent's device; NumPy if there is none."""
        return tensor.numpy() if self.device is None else tensor.to(self.device)


def recurring_tasks(schedule: Schedule) -> list[int]:
    """Numbers of the recurring tasks; ValueError if there are none."""
    if not schedule.cycle:
        raise ValueError("a one-hot task id needs tasks that recur: name some, --stream.tasks 0 1 2")
    return sorted(set(schedule.cycle))


def _observation_spec(
    env: gym.Env,
    engines: Sequence[EngineConfig],
    kind: Kind | Literal["auto"],
    channels: Channels | Literal["auto"],
) -> ObservationSpec:
    """What observations of a task are: as flags say, or the package that makes them, or their space."""
    if kind == "auto" and channels == "auto":
        known = (engine.observation_spec(env) for engine in engines)
        if (spec := next(filter(None, known), None)) is not None:
            return spec
    return read_observations(env.observation_space, kind, channels)


def _frame_stack(env: gym.Env) -> int:
    """How many frames are stacked along the first axis of its observations, zeros before the first; or 1."""
    while isinstance(env, OrderEnforcing | PassiveEnvChecker | TimeLimit):
        env = env.env
    padded = isinstance(env, FrameStackObservation) and env.padding_type == "zero"
    return env.stack_size if padded else 1  # type: ignore[attr-defined]
