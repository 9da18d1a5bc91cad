"""Wrappers that make one task differ from another, for any Gymnasium environment.

Each function takes an environment and returns it wrapped. It raises TypeError if the environment's spaces do
not suit the change, and ValueError for an argument out of range.

What a wrapper draws once (a permutation, an offset) depends on its ``seed`` alone. In a task function use
``(seed, k)``, so that the change differs between tasks and between runs; spaces do not depend on it. What a
wrapper draws at every step (noise, failures) depends on its ``seed`` and the seed of the last ``reset``:
after ``reset(seed)`` the same actions give the same results, and the environment's own random numbers are
not affected. Use the same ``seed`` in every task here, since other noise of the same size does not make
another task.

Any environment or wrapper, yours included, that carries state from one episode to the next must expose it as
``lifelong_state``, a readable and settable attribute of plain numbers, lists and dicts, which a stream saves
and restores. Of the wrappers here only :func:`drift` has one.
"""

from neoteny.envs.wrappers.actions import fail_actions, permute_actions
from neoteny.envs.wrappers.drawing import Seed
from neoteny.envs.wrappers.drift import (
    DERIVED_OF_CARTPOLE,
    Bounded,
    Derived,
    Drift,
    Increment,
    OrnsteinUhlenbeck,
    Oscillation,
    RandomWalk,
    Rule,
    Sigmoid,
    drift,
)
from neoteny.envs.wrappers.observations import noisy_observations, offset_observations, permute_observations
from neoteny.envs.wrappers.rewards import scale_rewards

__all__ = [
    "DERIVED_OF_CARTPOLE",
    "Bounded",
    "Derived",
    "Drift",
    "Increment",
    "OrnsteinUhlenbeck",
    "Oscillation",
    "RandomWalk",
    "Rule",
    "Seed",
    "Sigmoid",
    "drift",
    "fail_actions",
    "noisy_observations",
    "offset_observations",
    "permute_actions",
    "permute_observations",
    "scale_rewards",
]
