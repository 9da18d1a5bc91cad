"""The proof that ale-py's vector environment does what a user's Atari game does.

The wrappers of a game say nothing of what a user's function has set on its emulator, so the two are played
side by side. The shipped games are compared by the project's own tests.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from neoteny.envs.atari.game import ale, emulator_seed
from neoteny.envs.engine import UncoveredError

STEPS = 200
"""Steps for which a game is played by both."""


def play(single: gym.Env, options: dict[str, Any]) -> None:
    """Step a single game and ale-py's vector environment side by side; UncoveredError if they differ.

    Args:
        single: a game in its wrappers.
        options: the arguments of the vector environment that shall do the same.
    """
    vector = ale().vector_env.AtariVectorEnv(num_envs=1, num_threads=1, **options)
    try:
        ended, rng = True, np.random.default_rng(0)
        seeds = (seed for seed in range(1000) if emulator_seed(seed) < 2**31)  # which the vector takes
        for _ in range(STEPS):
            if ended:
                seed = next(seeds)
                emulator, mask = np.array([emulator_seed(seed)]), np.array([True])
                seen, _ = vector.reset(seed=emulator, options={"reset_mask": mask})
                _check(single.reset(seed=seed)[0], seen[0], "observations differ")
            action = rng.integers(single.action_space.n)  # type: ignore[attr-defined]
            observation, *ours, _ = single.step(int(action))
            seen, *theirs, _ = vector.step(np.array([action]))
            _check(ours, [each.item() for each in theirs], f"a step gave {ours}, there {theirs}")
            _check(observation, seen[0], "observations differ")
            ended = bool(ours[1] or ours[2])
    finally:
        vector.close()


def _check(one: Any, other: Any, difference: str) -> None:
    if not np.array_equal(one, other):
        raise UncoveredError(f"ale-py's vector environment does something else: {difference}")
