"""Statistics over seeds, by hand, by brute force, and as rliable's formulas give them."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.runners import intervals
from neoteny.runners.intervals import (
    bootstrap,
    curve_interval,
    improvement,
    iqm,
    iqm_interval,
    mean_interval,
    seeds_for,
)

SCORES = st.lists(st.integers(-9, 9), min_size=1, max_size=9)


def test_the_interquartile_mean_by_hand():
    assert iqm(np.array([9.0, 1.0, 2.0, -50.0])) == 1.5
    # Of five values, the middle half is 2.5: the third, and three quarters of its neighbours.
    assert iqm(np.array([0.0, 1.0, 2.0, 4.0, 100.0])) == pytest.approx((0.75 * 1 + 2 + 0.75 * 4) / 2.5)
    assert iqm(np.array([7.0])) == 7.0


@settings(deadline=None)
@given(SCORES)
def test_the_interquartile_mean_is_a_trimmed_mean_of_copies(values):
    """Four copies of each value make the quarters whole, where the field's trimmed mean needs no shares."""
    assert iqm(np.array(values, float)) == pytest.approx(scipy.stats.trim_mean(np.repeat(values, 4), 0.25))


def test_the_interval_of_equal_values_is_a_point_and_holds_the_mean_of_others():
    assert iqm_interval(np.full(10, 3.0)) == pytest.approx((3.0, 3.0, 3.0))
    middle, low, high = iqm_interval(np.arange(10.0))
    assert low < middle == 4.5 < high


def rliable_interval(scores, draws):
    """IQM of (runs, tasks), and its interval, drawing runs for each task by itself (Agarwal et al., 2021)."""
    rng = np.random.RandomState(1)
    runs, tasks = scores.shape
    found = []
    for _ in range(draws):
        rows = rng.choice(runs, (runs, tasks))
        found.append(scipy.stats.trim_mean(scores[rows, np.arange(tasks)], 0.25, axis=None))
    return scipy.stats.trim_mean(scores, 0.25, axis=None), *np.percentile(found, [2.5, 97.5])


def test_intervals_equal_those_of_rliable_within_the_error_of_the_bootstrap():
    """Its example: ten runs of normalized scores on some games, with a heavy tail."""
    rng = np.random.default_rng(0)
    scores = rng.lognormal(np.linspace(-1, 1, 8), 0.8, (10, 8))
    ours, theirs = iqm_interval(*scores.T), rliable_interval(scores, 2000)
    assert ours[0] == pytest.approx(theirs[0])
    width = theirs[2] - theirs[1]
    np.testing.assert_allclose(ours[1:], theirs[1:], atol=0.06 * width)


def test_drawing_over_all_tasks_at_once_would_add_their_differences():
    """The strata are why two tasks far apart, each without noise, have no interval."""
    assert iqm_interval(np.zeros(5), np.ones(5)) == (0.5, 0.5, 0.5)
    pooled = iqm_interval(np.repeat([0.0, 1.0], 5))
    assert pooled[2] - pooled[1] > 0.5


def test_the_bootstrap_equals_all_samples():
    values = np.array([0.0, 1.0, 5.0])
    means = [np.mean(each) for each in itertools.product(values, repeat=3)]
    low, high = bootstrap([values], lambda samples: samples.mean(1), draws=20_000)
    # The quantiles are among 27 equally likely means.
    assert (low, high) == (min(means), max(means)) == (0.0, 5.0)


@pytest.mark.parametrize("samples", [1, 10**6])
def test_seeds_are_drawn_as_a_whole_in_curves(samples, monkeypatch):
    """Seeds that differ by a constant have parallel ends, however many points are drawn at a time."""
    monkeypatch.setattr(intervals, "SAMPLES", samples)
    middle, low, high = curve_interval(np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0], [4.0, 14.0]]))
    np.testing.assert_allclose(np.diff([middle, low, high]), 10.0)


def test_the_interval_of_a_mean_by_hand():
    # Standard error 1, t of one degree of freedom 12.706.
    np.testing.assert_allclose(mean_interval(np.array([3.0, 5.0])), [4, 4 - 12.7062, 4 + 12.7062], rtol=1e-5)
    assert mean_interval(np.array([3.0]))[0] == 3.0
    assert math.isnan(mean_interval(np.array([3.0]))[1])
    assert mean_interval(np.array([math.inf, 1.0]))[0] == math.inf


@settings(max_examples=30, deadline=None)
@given(SCORES, SCORES)
def test_the_probability_of_improvement_is_that_of_mann_and_whitney(ours, theirs):
    found, low, high = improvement([np.array(ours, float)], [np.array(theirs, float)])
    count = scipy.stats.mannwhitneyu(ours, theirs).statistic
    assert found == pytest.approx(count / (len(ours) * len(theirs)))
    pairs = [(x > y) + 0.5 * (x == y) for x, y in itertools.product(ours, theirs)]
    assert found == pytest.approx(np.mean(pairs))
    assert 0 <= low <= high <= 1


def test_the_probability_of_improvement_is_averaged_over_tasks():
    """Not taken over the scores of all tasks together, where an easy task beats every hard one."""
    hard, easy = np.array([1.0, 2.0]), np.array([101.0, 102.0])
    assert improvement([hard, easy], [easy, hard])[0] == 0.5
    assert improvement([hard + 1, easy + 1], [hard, easy])[0] == 0.875


def test_seeds_that_a_paired_t_test_needs():
    # Cohen's tables: an effect of 0.5 at 5 % needs 34 pairs for a power of 0.8; one of 1 needs 10.
    unit = np.array([-1.0, 1.0, -1.0, 1.0]) / np.std([-1, 1, -1, 1], ddof=1)
    assert seeds_for(unit + 0.5) == 34
    assert seeds_for(unit + 1) == 10
    assert seeds_for(unit - 1) == 10
    assert seeds_for(np.array([3.0, 3.0])) == 2
    assert seeds_for(unit + 1e-6) is None
    assert seeds_for(np.zeros(3)) is None
