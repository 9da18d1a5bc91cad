"""Seeds of episodes: 31 bits, since ``np.random.seed`` and older environments take no more."""

from __future__ import annotations

import functools

import numpy as np

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
    first, rounds = _start(run, task, env, episode >> BITS)
    number = first ^ (episode & _MASK)
    for factor, summand in rounds:  # each line is invertible, so this is a permutation
        number = (number * factor + summand) & _MASK
        number ^= number >> 15
    return number


@functools.lru_cache(maxsize=4096)
def _start(run: int, task: int, env: int, more: int) -> tuple[int, list[tuple[int, int]]]:
    """The counter of episode 0, and the factors and summands of the run's permutation.

    What the counter has no bits for chooses the permutation too.
    """
    counter = 0
    for bit in range(16):
        counter |= (env >> bit & 1) << (BITS - 1 - 2 * bit)
    for bit in range(15):
        counter |= (task >> bit & 1) << (BITS - 2 - 2 * bit)
    words = np.random.SeedSequence([run, task >> 15, env >> 16, more]).generate_state(8).tolist()
    return counter, [(factor | 1, summand) for factor, summand in zip(words[::2], words[1::2])]
