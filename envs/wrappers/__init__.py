"""Changes that make one task differ from another, for any Gymnasium environment.

Each function takes an environment and returns it wrapped. It raises TypeError if the environment's spaces do
not suit the change, and ValueError for an argument out of range.

What a wrapper draws once (a permutation, an offset) is drawn from its ``seed`` alone. In a task function,
``(seed, k)`` is a good one: another change in each task, another life in each run. What it draws at every
step (noise, failures) is drawn from its ``seed`` and the seed of the last ``reset``: after ``reset(seed)``
the same actions give the same bits, and the environment's own random numbers are left as they are. Keep this
``seed`` the same in every task: other noise of the same size is no other task.

Any environment or wrapper, yours included, that carries something from one episode to the next offers it as
``lifelong_state``, readable and settable, made of plain numbers, lists and dicts: a stream saves and restores
it. Here only :func:`drift` does.
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
