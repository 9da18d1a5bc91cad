"""Random draws of wrappers, and checks of their arguments."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence

import numpy as np

Seed = int | tuple[int, ...]

ARRANGED = 6  # first entries of a permutation whose arrangement differs from task to task


def random_generator(seed: Seed, *purpose: str | int) -> np.random.Generator:
    """A random generator that is independent for each purpose, even with the same seed."""
    key = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in purpose]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_order(entries: int, purpose: str, seed: Seed | None, order: Sequence[int] | None) -> np.ndarray:
    """The permutation given, or one drawn uniformly from all but the identity.

    The last number of a seed stands for the task. The tasks of one run have different permutations, until all
    arrangements of the first entries, at most 719, have come; they come in a random order. Two entries have
    only one permutation other than the identity: tasks then alternate between both.
    """
    if (seed is None) == (order is None):
        raise ValueError("a permutation needs either a seed or an order")
    if order is not None:
        if sorted(order) != list(range(entries)):
            raise ValueError(f"{list(order)} is not a permutation of 0 to {entries - 1}")
        return np.asarray(order)
    assert seed is not None
    if entries < 2:
        raise ValueError(f"a permutation of {entries} entries changes nothing")
    *run, task = (seed,) if isinstance(seed, int | np.integer) else seed
    first = min(entries, ARRANGED)
    arrangements = list(itertools.permutations(range(first)))
    if entries > 2 or not run:
        del arrangements[0]  # the identity
    places = random_generator(tuple(run), purpose).permutation(len(arrangements))
    drawn = random_generator(seed, purpose).permutation(entries)
    # Only the arrangement of the first entries, not which they are, is a function of the task's number.
    drawn[:first] = np.sort(drawn[:first])[list(arrangements[places[task % len(places)]])]
    return drawn


def check_size(std: float) -> float:
    """The standard deviation; ValueError if it is negative or not finite."""
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"a standard deviation must be finite and not negative, not {std}")
    return std


def check_positive(name: str, value: float) -> None:
    """ValueError for a number that is not positive."""
    if not value > 0:
        raise ValueError(f"the {name} must be positive, not {value}")
