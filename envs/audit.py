"""The audit: measures what a task does, so that a switch that changes nothing is noticed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np


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
    """SHA-256, in hexadecimal, of a rollout under fixed seeds and actions."""

    def same_as(self, other: Fingerprint) -> bool:
        """Whether the two tasks behave the same."""
        return (self.spaces, self.rollout) == (other.spaces, other.rollout)

    def changes(self, old: Fingerprint) -> str:
        """Describe in one line what a switch from ``old`` to this task changed."""
        named = {name: (old.parameters.get(name), value) for name, value in self.parameters.items()}
        words = [f"{name} {was} -> {now}" for name, (was, now) in named.items() if was != now]
        return ", ".join([*words, f"rollout {old.rollout[:8]} -> {self.rollout[:8]}"])


def fingerprint(env: gym.Env, steps: int = 256) -> Fingerprint:
    """Roll out an environment with fixed seeds and actions.

    Args:
        env: an environment used for nothing else; it is closed.
        steps: length of the rollout, across episodes.
    """
    named, digest = parameters(env), hashlib.sha256()
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
    return Fingerprint(f"{env.observation_space} {env.action_space}", named, digest.hexdigest())


def parameters(env: gym.Env) -> dict[str, float]:
    """The parameters of a simulator: public numeric attributes of ``env.unwrapped`` and of its class."""
    owners = [*reversed(type(env.unwrapped).__mro__), env.unwrapped]
    attributes = {name: value for owner in owners for name, value in vars(owner).items()}
    return {
        name: value.item() if isinstance(value, np.number) else value
        for name, value in sorted(attributes.items())
        if isinstance(value, (int, float, np.number)) and type(value) is not bool and name[0] != "_"
    }


def set_parameters(env: gym.Env, values: Mapping[str, float]) -> None:
    """Set parameters of a simulator."""
    for name, value in values.items():
        setattr(env.unwrapped, name, value)


def _digest(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, dict):
        value = [item for pair in sorted(value.items()) for item in pair]
    if isinstance(value, list | tuple):
        for item in value:
            _digest(digest, item)
    else:
        digest.update(value.encode() if isinstance(value, str) else np.asarray(value).tobytes())
