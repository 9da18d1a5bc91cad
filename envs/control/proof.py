"""The proof that tensors do what a classic control environment does.

What a user's class or function adds is read first (:mod:`neoteny.envs.control.task`), then the environment is
stepped by Gymnasium and on tensors side by side. The package's own classes are tried once in each process, so
that another version of the package, with other rules, is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from neoteny.envs.control.task import ControlTask
from neoteny.envs.engine import UncoveredError
from neoteny.envs.repeatable import later, shared_state
from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import TaskFunction

if TYPE_CHECKING:
    from neoteny.envs.control.engine import ControlEngine

STEPS = 75
"""Steps of each environment that are compared."""

TOLERANCE = 1e-9
"""Largest difference of observations, relative to their size where that is above 1, besides the rounding to
float32."""


def play(engine: ControlEngine, make: Callable[[], gym.Env]) -> None:
    """Step environments by Gymnasium and on tensors side by side; UncoveredError at the first difference.

    Both begin each episode and each step in the same state, since Acrobot's motion is chaotic.

    Args:
        engine: has entered the task.
        make: makes an environment of it.
    """
    envs = [make() for _ in range(engine.num_envs)]
    rng = np.random.default_rng(0)
    actions = engine.spaces[1].n  # type: ignore[attr-defined]
    engine.reset()
    seeds = iter(range(engine.num_envs * (STEPS + 1)))
    for i, env in enumerate(envs):
        _begin(engine, i, env, next(seeds))
    for _ in range(STEPS):
        chosen = rng.integers(actions, size=len(envs))
        rewards, terminated, truncated, _ = engine.step(chosen)
        seen, states = engine.observations.numpy(), engine.state.numpy().copy()
        for i, (env, action) in enumerate(zip(envs, chosen)):
            observation, *theirs, _ = env.step(action)
            ours = rewards[i].item(), terminated[i].item(), truncated[i].item()
            for name, mine, package in zip(("reward", "terminated", "truncated"), ours, theirs):
                if mine != package:
                    raise UncoveredError(f"after some steps {name} is {package}, on tensors {mine}")
            _check_close("state", states[:, i], _state(env), 0.0)
            _check_seen(seen[i], observation)
            engine.state[:, i] = torch.from_numpy(_state(env))
        done = terminated | truncated
        engine.reset(done)
        for i in done.nonzero().flatten().tolist():
            _begin(engine, i, envs[i], next(seeds))
    for env in envs:
        if name := engine.task.unlike(ControlTask(env)):
            raise UncoveredError(f"{name} changes during episodes")
        env.close()


def unrepeatable_parameters(task: TaskFunction, schedule: Schedule, visit: int) -> str:
    """Why a visit's task may be another when it is made again later; empty if it seems to be the same."""
    k = schedule.task_of(visit)
    with shared_state() as shared:
        name, one = "", task(k, schedule.seed)
        for times in (1, 2):  # so that an odd number of midnights lies ahead at one of them
            with later(times):
                other = task(k, schedule.seed)
            name = name or ControlTask(one).unlike(ControlTask(other))
            other.close()
        one.close()
        return shared.changed() or (name and f"{name} depends on the time")


def _begin(engine: ControlEngine, i: int, env: gym.Env, seed: int) -> None:
    """Begin an episode by the package and copy its state; UncoveredError if tensors would not begin so."""
    observation, _ = env.reset(seed=seed)
    state, physics = _state(env), engine.task.physics
    low, high = np.array(physics.low), np.array(physics.high)
    if state.shape != low.shape or (state < low - TOLERANCE).any() or (state > high + TOLERANCE).any():
        raise UncoveredError(f"an episode begins in the state {state}, which is never drawn on tensors")
    engine.state[:, i] = torch.from_numpy(state)
    _check_seen(engine.observations[i].numpy(), observation)


def _state(env: Any) -> np.ndarray:
    return np.array(env.unwrapped.state, np.float64)


def _check_seen(seen: np.ndarray, observation: Any) -> None:
    if np.shape(observation) != seen.shape or observation.dtype != seen.dtype:
        raise UncoveredError("its observations have another shape or type than those on tensors")
    rounding = 4 * float(np.finfo(np.float32).eps)
    _check_close("observation", seen.astype(np.float64), observation, rounding)


def _check_close(name: str, mine: np.ndarray, package: np.ndarray, rounding: float) -> None:
    size = max(1.0, float(np.abs(package).max()))
    difference = float(np.abs(mine - package).max())
    if not difference <= (TOLERANCE + rounding) * size:
        raise UncoveredError(f"after some steps the {name} differs by {difference:g} from that on tensors")
