"""Seeds of episodes: 31 bits, since ``np.random.seed`` and older environments take no more."""

from __future__ import annotations

import functools
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

BITS = 31
_MASK = 2**BITS - 1


def episode_seed(run: int, task: int, env: int, episode: int) -> int:
    """The seed of one episode, from 0 to 2**31 - 1.

    The number of the episode fills the bits of a counter from the lowest on; those of the environment and of
    the task fill them from the highest on, in turn. The seed is the counter's place in a permutation that the
    run's seed chooses. So all seeds of a run differ by construction, as long as no environment begins more
    than 2**(31 - 2b) episodes of a task, where the numbers of environments and tasks have at most b bits:
    8 million episodes of each of 16 environments in each of 16 tasks, 500,000 with 64 and 64. Those of one
    environment in one task always do.

    Two seeds of different runs are equal with probability 2**-31: of 10,000 episodes each, two runs share
    one with probability 0.05.
    """
    number = _first(task, env) ^ (episode & _MASK)
    for factor, summand in _rounds(run, task >> 15, env >> 16, episode >> BITS):
        number = (number * factor + summand) & _MASK  # each line is invertible: this is a permutation
        number ^= number >> 15
    return number


class EpisodeSeeds:
    """The same for the first 2**31 episodes of N environments in a task, as a function of tensors.

    Args:
        run: the run's seed.
        task: the task's number.
        num_envs: N.
        device: of the seeds.
    """

    def __init__(self, run: int, task: int, num_envs: int, device: torch.device) -> None:
        env = torch.arange(num_envs, device=device)
        self.first = _first(task, env)
        groups = range(1 + (num_envs - 1 >> 16))
        rounds = torch.tensor([_rounds(run, task >> 15, group, 0) for group in groups], device=device)
        self.rounds = rounds.permute(1, 2, 0).index_select(2, env >> 16)
        """Factors and summands, (rounds, 2, N)."""

    def __call__(self, episodes: Tensor) -> Tensor:
        """Seeds, (N,), of episodes by their numbers, (N,)."""
        number = self.first ^ episodes
        for factor, summand in self.rounds:
            number = (number * factor + summand) & _MASK
            number = number ^ number >> 15
        return number


IntOrTensor = TypeVar("IntOrTensor", int, Tensor)


def _first(task: int, env: IntOrTensor) -> IntOrTensor:
    """The counter of episode 0."""
    counter = env & 0
    for bit in range(16):
        counter = counter | (env >> bit & 1) << (BITS - 1 - 2 * bit)
    for bit in range(15):
        counter = counter | (task >> bit & 1) << (BITS - 2 - 2 * bit)
    return counter


@functools.lru_cache(maxsize=4096)
def _rounds(run: int, *more: int) -> list[tuple[int, int]]:
    """Factors and summands of the run's permutation, which what the counter has no bits for chooses too."""
    words = np.random.SeedSequence([run, *more]).generate_state(8).tolist()
    return [(factor | 1, summand) for factor, summand in zip(words[::2], words[1::2])]
