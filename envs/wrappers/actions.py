"""Wrappers that change the effect of actions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.wrappers import TransformAction

from neoteny.envs.wrappers.drawing import Seed, draw_order, random_generator


def permute_actions(env: gym.Env, seed: Seed | None = None, *, order: Sequence[int] | None = None) -> gym.Env:
    """Give the actions of a Discrete space new meanings: action ``i`` does what ``order[i]`` did.

    ``seed`` and ``order`` are as in :func:`permute_observations`; ``order`` counts from 0 even if the space
    starts elsewhere. Two actions have only one permutation other than the identity: with seeds ``(seed, k)``
    tasks alternate between both.
    """
    space = env.action_space
    if not isinstance(space, Discrete):
        raise TypeError(f"permuted actions need a Discrete action space, not {space}")
    start, dtype = space.start, space.dtype
    meaning = (start + draw_order(int(space.n), "permute_actions", seed, order)).astype(dtype)
    return TransformAction(env, lambda action: meaning[np.asarray(action) - start], None)


def fail_actions(env: gym.Env, probability: float = 0.25, noop: Any = None, seed: Seed = 0) -> gym.Env:
    """Let each action fail with a probability: replace it by the last one, or by ``noop``.

    Without ``noop``, actions are sticky as in the Arcade Learning Environment (Machado et al., 2018, 0.25):
    the action executed at the last step, itself perhaps a repetition, is executed again. The first action of
    an episode never fails. With ``noop``, which is ours, a failed action, also the first, is replaced by this
    action that does nothing. Actions are numbers or arrays of them.
    """
    space = env.action_space
    if not isinstance(space, (Box, Discrete, MultiBinary, MultiDiscrete)):
        raise TypeError(f"failing actions need an action space of numbers or arrays, not {space}")
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of a failure must be within [0, 1], not {probability}")
    if noop is not None and not space.contains(noop):
        raise ValueError(f"{noop!r} is not an action of {space}")
    return _Failure(env, probability, noop, seed)


class _Failure(gym.ActionWrapper):
    def __init__(self, env: gym.Env, probability: float, noop: Any, seed: Seed) -> None:
        super().__init__(env)
        self.probability, self.noop, self.seed = probability, noop, seed
        self.rng = random_generator(seed, "fail_actions")
        self.last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.last = None
        if seed is not None:  # else the generator continues
            self.rng = random_generator(self.seed, "fail_actions", seed)
        return self.env.reset(seed=seed, options=options)

    def action(self, action: Any) -> Any:
        instead = self.last if self.noop is None else self.noop
        if self.rng.random() < self.probability and instead is not None:
            action = instead
        self.last = copy.copy(action)
        return action
