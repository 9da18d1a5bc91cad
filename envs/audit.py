"""Fingerprints and comparisons of tasks, so that a switch that changes nothing is noticed.

Both compare what an agent sees and is paid, as values: a reward of 1 equals one of 1.0, and -0.0 equals 0.0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

STICKINESS = (0.0, 0.5, 0.95)
"""How likely a rollout repeats the last action, by episode: long repetitions reach goals that single random
actions rarely do, such as MountainCar's."""
DIGITS = 40  # of the hash of a rollout; version 0.2.0 hashed bytes instead of values, with 64 digits
AT_ONCE = 64  # moments that are hashed together, which takes a fifth of the time
RUNNING = (False, False)
LARGEST = float(np.finfo(np.float32).max)


class Moment(NamedTuple):
    """What a reset or a step gives the agent."""

    observation: np.ndarray
    reward: np.float32  # the precision in which agents read rewards
    ends: tuple[bool, bool]  # terminated, truncated
    steps: int  # of the rollout, so far

    def differs_from(self, other: Moment) -> str:
        """The first thing in which it differs from another moment; an empty string if there is none."""
        is_float = self.observation.dtype.kind == "f"
        if not np.array_equal(self.observation, other.observation, equal_nan=is_float):
            return "observation"
        if not np.array_equal(self.reward, other.reward, equal_nan=True):
            return "reward"
        return "" if self.ends == other.ends else "end of an episode"


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Spaces, parameters and the hash of a rollout of a task.

    Two tasks are the same if ``spaces`` and ``rollout`` are. Parameters are not compared, since a parameter
    that the simulator never reads changes nothing.
    """

    spaces: str
    """Observation and action space."""
    parameters: dict[str, float]
    """Named parameters of the simulator, see :func:`parameters`."""
    rollout: str
    """Hash, in hexadecimal, of the values in a rollout under fixed seeds and actions."""

    def same_as(self, other: Fingerprint) -> bool:
        """Whether the two tasks behave the same."""
        return (self.spaces, self.rollout) == (other.spaces, other.rollout)

    def comparable(self) -> bool:
        """Whether its rollout was hashed as those of this version are."""
        return len(self.rollout) == DIGITS

    def changes(self, old: Fingerprint) -> str:
        """Describe in one line what a switch from ``old`` to this task changed."""
        words = [
            f"{name} {old.parameters.get(name, 'absent')} -> {value}"
            for name, value in self.parameters.items()
            if old.parameters.get(name) != value
        ]
        if self.spaces != old.spaces:
            words.append(f"spaces {old.spaces} -> {self.spaces}")
        if self.rollout == old.rollout:
            words.append("nothing that 256 steps show")
        return ", ".join(words) or "observations, rewards or ends, by no parameter of the simulator"


def fingerprint(env: gym.Env, steps: int = 256) -> Fingerprint:
    """Roll out an environment with fixed seeds and actions.

    Args:
        env: an environment used for nothing else; it is closed.
        steps: length of the rollout, across episodes.
    """
    named, digest = parameters(env), hashlib.blake2b(digest_size=DIGITS // 2)
    with contextlib.closing(env):
        for _, alike in itertools.groupby(rollout(env, steps), lambda moment: moment.observation.shape):
            while moments := list(itertools.islice(alike, AT_ONCE)):
                digest.update(_bytes(moments))
    return Fingerprint(f"{env.observation_space} {env.action_space}", named, digest.hexdigest())


def _bytes(moments: Sequence[Moment]) -> bytes:
    """Observations, rewards and ends of moments, one moment after the other; -0.0 as 0.0."""
    columns = [np.array(column) + 0 for column in list(zip(*moments))[:3]]  # -0.0 + 0 is 0.0
    rows = [column.reshape(len(moments), math.prod(column.shape[1:])).view(np.uint8) for column in columns]
    return np.concatenate(rows, axis=1).tobytes()


class Comparison(NamedTuple):
    """The rollouts of two environments beside each other."""

    difference: str  # what differed first, such as "reward"; empty if nothing did
    steps: int  # made by each


def compare(one: gym.Env, two: gym.Env, steps: int, seconds: float = math.inf) -> Comparison:
    """Roll out two environments with the same seeds and actions until they differ.

    Args:
        one: an environment used for nothing else, with the same spaces as ``two``; both are closed.
        two: the other.
        steps: to make at most.
        seconds: after which to stop.
    """
    until = time.perf_counter() + seconds
    with contextlib.closing(one), contextlib.closing(two):
        for left, right in zip(rollout(one, steps), rollout(two, steps)):
            if difference := left.differs_from(right):
                return Comparison(difference, left.steps)
            if time.perf_counter() > until:
                break
    return Comparison("", left.steps)


def rollout(env: gym.Env, steps: int) -> Iterator[Moment]:
    """The resets and ``steps`` steps of an environment under fixed seeds and actions.

    Observations are copies, in the dtype of their space, as in training.
    """
    dtype, repeats = env.observation_space.dtype, np.random.default_rng(0)
    env.action_space.seed(0)
    made = 0
    for episode in itertools.count():
        stickiness, action, ends = STICKINESS[episode % len(STICKINESS)], None, RUNNING
        observation = env.reset(seed=episode)[0]
        yield Moment(np.array(observation, dtype), np.float32(0), ends, made)
        while ends == RUNNING:
            if made == steps:
                return
            made += 1
            if action is None or repeats.random() >= stickiness:
                action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            ends = bool(terminated), bool(truncated)
            yield Moment(np.array(observation, dtype), _paid(reward), ends, made)


def _paid(reward: Any) -> np.float32:
    """A reward as agents read it; one that is too large is an infinity."""
    if isinstance(reward, int | float) and -LARGEST <= reward <= LARGEST:
        return np.float32(reward)
    with np.errstate(over="ignore"):
        return np.float32(reward)


def parameters(env: gym.Env) -> dict[str, float]:
    """The parameters of a simulator: public numeric attributes of ``env.unwrapped`` and of its class."""
    owners = [*reversed(type(env.unwrapped).__mro__), env.unwrapped]
    public = {name: value for owner in owners for name, value in vars(owner).items() if name[0] != "_"}
    values = {name: value.item() if isinstance(value, np.number) else value for name, value in public.items()}
    return {
        name: value
        for name, value in sorted(values.items())
        if isinstance(value, int | float) and type(value) is not bool
    }


def set_parameters(env: gym.Env, values: Mapping[str, float]) -> None:
    """Set parameters of a simulator."""
    for name, value in values.items():
        setattr(env.unwrapped, name, value)
