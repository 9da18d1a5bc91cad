"""What engines and streams share: tasks, their spaces and the seeds of episodes."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np

TaskFunction = Callable[[int, int], gym.Env]
"""Makes task ``k`` from ``(k, seed)``."""

Spaces = tuple[gym.Space, gym.Space]
"""Of one observation and one action, the same in all tasks of a stream."""


class UncoveredError(ValueError):
    """An engine cannot step a task; the message says why."""


def check_spaces(env: gym.Env, spaces: Spaces, task: int) -> None:
    """Raise ValueError for an environment whose spaces are not the stream's."""
    for kind, space in zip(("observation_space", "action_space"), spaces):
        if getattr(env, kind) != space:
            raise ValueError(
                f"all tasks of a stream share their spaces, but {kind} of task {task} is "
                f"{getattr(env, kind)} and was {space}"
            )


def episode_seed(run: int, task: int, env: int, episode: int) -> int:
    """The 63-bit seed of one episode: independent streams, where ``seed + env`` overlaps between runs."""
    return int(np.random.SeedSequence([run, task, env, episode]).generate_state(1, np.uint64)[0] >> 1)
