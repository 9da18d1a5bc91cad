"""Checks of what environments return, those of Gymnasium's SyncVectorEnv among them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class BrokenEnvironmentError(ValueError):
    """An environment did what no environment may do; the message names it."""


NUMBERS = frozenset({float, int, bool, np.float64, np.float32, np.int64, np.int32, np.bool_})
"""Types of rewards for which :func:`check_reward` can be skipped."""


def write_observation(out: np.ndarray, observation: Any, env: gym.Env) -> None:
    """Copy an observation into ``out``.

    Raises:
        BrokenEnvironmentError: its shape or dtype does not fit the environment's space, or integers would
            wrap around.
    """
    try:
        array: np.ndarray = np.asarray(observation)
    except Exception as error:
        raise BrokenEnvironmentError(
            f"{env.unwrapped} returned an observation that is not an array: {error}"
        ) from error
    is_shape, is_kind = array.shape == out.shape, np.can_cast(array.dtype, out.dtype, "same_kind")
    if not (is_shape and is_kind):
        found = str(array.dtype) if is_shape else f"shape {array.shape}"
        raise _outside(f"of {found}", env)
    out[...] = array
    if array.dtype != out.dtype and out.dtype.kind in "iu" and not np.array_equal(out, array):
        raise _outside(f"with values from {array.min()} to {array.max()}", env)


def check_step(result: Any, env: gym.Env) -> None:
    """Check the result of a step, except for its observation.

    Raises:
        BrokenEnvironmentError: it is not five values, its reward is not a number, or its third and fourth
            value are not single ones.
    """
    if not isinstance(result, tuple | list) or len(result) != 5:
        values = f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
        raise BrokenEnvironmentError(f"a step of {env.unwrapped} returned {values}, not Gymnasium's five")
    _, reward, *ends, _ = result
    check_reward(reward, env)
    for name, end in zip(("terminated", "truncated"), ends):
        if np.ndim(end) or isinstance(end, str):  # "False" is true
            raise BrokenEnvironmentError(f"{env.unwrapped} returned {name} {end!r}, which is not one value")


def check_reward(reward: Any, env: gym.Env) -> None:
    """Raise BrokenEnvironmentError unless a reward is a single number."""
    try:
        number: np.ndarray = np.asarray(reward)
    except Exception:  # a list of lists of several lengths
        number = np.empty(0)
    if number.ndim or number.dtype.kind not in "biuf":
        raise BrokenEnvironmentError(f"{env.unwrapped} returned the reward {reward!r}, which is not a number")


def try_out(env: gym.Env, steps: int = 16) -> np.ndarray:
    """Reset and step an environment, used for nothing else, with random actions, and check its results.

    Returns:
        The observations of all steps, (steps, ...).

    Raises:
        BrokenEnvironmentError: an observation does not fit the space, a reward is not a number, one of them
            is not finite, a step does not return five values, or the environment called ``sys.exit``.
        Exception: any exception of the environment.
    """
    space = env.observation_space
    assert space.shape is not None
    seen = np.empty((steps, *space.shape), space.dtype)
    env.action_space.seed(0)
    ended = True
    for step in range(steps):
        try:
            if ended:
                write_observation(seen[step, ...], env.reset(seed=step)[0], env)
                _check_finite(seen[step], "an observation", env)
            result = env.step(env.action_space.sample())
        except SystemExit as error:
            raise exited(env, error) from error
        except BrokenEnvironmentError:
            raise
        except ValueError as error:
            if not str(error):  # where it was raised says more
                raise
            raise BrokenEnvironmentError(f"{env.unwrapped} raised {error!r}") from error
        check_step(result, env)
        observation, reward, terminated, truncated, _ = result
        write_observation(seen[step, ...], observation, env)
        _check_finite(seen[step], "an observation", env)
        _check_finite(reward, f"the reward {reward}", env)
        ended = bool(terminated or truncated)
    return seen


def exited(env: gym.Env, error: SystemExit) -> BrokenEnvironmentError:
    """The error of an environment that tried to end the program."""
    return BrokenEnvironmentError(f"{env.unwrapped} called sys.exit({error.code!r})")


def _check_finite(values: Any, what: str, env: gym.Env) -> None:
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(values).astype(np.float32)).all()  # networks compute in float32
    if not finite:
        raise BrokenEnvironmentError(f"{env.unwrapped} returned {what}, which is not finite in float32")


def _outside(what: str, env: gym.Env) -> BrokenEnvironmentError:
    return BrokenEnvironmentError(
        f"{env.unwrapped} returned an observation {what}, which is not in its {env.observation_space}"
    )
