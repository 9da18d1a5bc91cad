"""Statistics over seeds: interquartile means, bootstrap intervals, paired differences, and how many seeds.

Definitions follow Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice"
(NeurIPS 2021). Seeds are what is drawn: the visits of one run are no independent samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float, float]
"""A value, and the ends of its 95 % interval."""

DRAWS, CURVE_DRAWS = 2000, 500  # bootstrap samples, of scores and of curves
SAMPLES = 2_000_000  # most numbers in the samples of curves, which are drawn for some points at a time


def iqm(values: Array, axis: int = -1) -> Array:
    """Mean of the middle half of values along an axis, those at its edges counted by their share.

    Where their number is a multiple of four this is the mean without the lowest and the highest quarter.
    """
    ordered = np.sort(values, axis)
    edges = np.arange(values.shape[axis] + 1) / values.shape[axis]
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return np.tensordot(ordered, weights, (axis, 0)) / weights.sum()


def bootstrap(strata: Sequence[Array], statistic: Callable[[Array], Array], draws: int = DRAWS) -> Array:
    """Stratified bootstrap: the 95 % interval of a statistic over seeds, by the percentile method.

    Seeds are drawn with replacement within each stratum, such as a stream, so that each counts in every
    sample as often as it does in the data.

    Args:
        strata: scores of the seeds of each, (S_m, ...).
        statistic: of samples (draws, S, ...), where S is the sum of all S_m; it returns (draws, ...).
        draws: number of samples.

    Returns:
        Low and high ends, (2, ...).
    """
    rng = np.random.default_rng(0)
    samples = [each[rng.integers(len(each), size=(draws, len(each)))] for each in strata]
    return np.percentile(statistic(np.concatenate(samples, 1)), [2.5, 97.5], axis=0)


def iqm_interval(*strata: Array) -> Interval:
    """Interquartile mean over seeds of one or more strata, (S_m,) each, with its bootstrap interval."""
    low, high = bootstrap(strata, lambda samples: iqm(samples, 1))
    return float(iqm(np.concatenate(strata))), float(low), float(high)


def curve_interval(curves: Array) -> tuple[Array, Array, Array]:
    """Interquartile mean of the curves of S seeds, (S, X), and the ends of its interval, (X,) each."""
    width = max(1, SAMPLES // (CURVE_DRAWS * len(curves)))
    blocks = [curves[:, start : start + width] for start in range(0, curves.shape[1], width)]
    ends = [bootstrap([block], lambda samples: iqm(samples, 1), CURVE_DRAWS) for block in blocks]
    low, high = np.concatenate(ends, axis=1)
    return iqm(curves, 0), low, high


def mean_interval(values: Array) -> Interval:
    """Mean over seeds (S,) and its interval by Student's t; NaN ends for one seed."""
    from scipy.special import stdtrit  # in the extra "analysis"

    mean = float(np.mean(values))
    if len(values) < 2 or not math.isfinite(mean):
        return mean, math.nan, math.nan
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def improvement(ours: Sequence[Array], theirs: Sequence[Array]) -> Interval:
    """Probability that a run of ours scores above one of theirs, a tie counted half, with its interval.

    In each stratum this is the Mann-Whitney statistic U / (n m) of its seeds, (n,) and (m,); the mean over
    strata is returned. It says nothing about the size of the difference.
    """
    rng = np.random.default_rng(0)
    exact = np.mean([_above(x[None], y[None]) for x, y in zip(ours, theirs)])
    drawn = [
        _above(*(each[rng.integers(len(each), size=(DRAWS, len(each)))] for each in pair))
        for pair in zip(ours, theirs)
    ]
    low, high = np.percentile(np.mean(drawn, 0), [2.5, 97.5])
    return float(exact), float(low), float(high)


def _above(ours: Array, theirs: Array) -> Array:
    """Share of pairs of samples (D, n) and (D, m) in which the first is larger, a tie counted half, (D,)."""
    one, two = ours[:, :, None], theirs[:, None, :]
    return ((one > two) + 0.5 * (one == two)).mean((1, 2))


def seeds_for(differences: Array, power: float = 0.8, most: int = 10_000) -> int | None:
    """Number of seeds with which a paired t test would find a mean difference as large as this one.

    The test is two-sided at 5 %, and finds it with probability ``power`` if the differences of further seeds
    have the mean and the standard deviation of those given: a guess from few seeds is itself uncertain.

    Args:
        differences: between two arms, one for each seed, (S,).
        power: probability of finding it.
        most: ``None`` is returned if more seeds are needed.
    """
    from scipy.special import nctdtr, stdtrit

    size, deviation = abs(float(np.mean(differences))), float(np.std(differences, ddof=1))
    if size == 0 or deviation == 0:
        return 2 if size else None
    effect = size / deviation
    for seeds in range(2, most + 1):
        noncentrality = effect * math.sqrt(seeds)
        found = 1 - nctdtr(seeds - 1, noncentrality, stdtrit(seeds - 1, 0.975))
        if noncentrality > 30 or found >= power:
            return seeds
    return None
