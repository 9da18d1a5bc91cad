import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoteny.runners.scores import Visit, early_and_late, level_to_recover, run_scores


def visited(*visits):
    """Visits of 1000 steps, each as (task, returns); episodes last 10 steps, or ``length``."""
    made = []
    for i, (task, returns, *lengths) in enumerate(visits):
        made.append(Visit(task, 1000 * i, level_to_recover(made, task), end=1000 * (i + 1)))
        steps = 1000 * i + 10 * np.arange(1, len(returns) + 1)
        made[-1].add(np.array(returns), np.array(lengths[0] if lengths else [10] * len(returns)), steps)
    return made


@given(
    st.lists(st.floats(-5, 5, width=16), max_size=70),
    st.lists(st.integers(0, 70)),
    st.sampled_from([0.0, 0.5, 1.1]),
)
def test_episodes_may_be_added_one_by_one_or_together(returns, cuts, level):
    rng, count = np.random.default_rng(0), len(returns)
    lengths, steps = rng.integers(1, 9, count), np.arange(count) * 10
    pieces = Visit(0, 0, level), Visit(0, 0, level), Visit(0, 0, level)
    for visit, ends in zip(pieces, (range(count + 1), sorted({*cuts, 0, count}), (0, count))):
        for start, end in itertools.pairwise(ends):
            if returns[start:end]:
                visit.add(np.array(returns[start:end]), lengths[start:end], steps[start:end])
    assert pieces[0] == pieces[1] == pieces[2]
    means = [np.cumsum(returns[end - 20 : end])[-1] / 20 for end in range(20, count + 1)]
    reached = [steps[19 + i] for i, mean in enumerate(means) if mean >= level]
    assert pieces[0].recovered_at == (reached[0] if reached else None)


def test_visit_scores_by_hand():
    (visit,) = visited((0, [1.0] * 30 + [3.0] * 10, [1] * 30 + [3] * 10))
    assert visit.return_at_end == 2.0  # ten ones, ten threes
    assert visit.return_auc == (30 * 1 * 1 + 10 * 3 * 3) / 60
    assert len(visit.last_returns) == 20
    assert math.isnan(Visit(0, 0).return_at_end)
    assert math.isnan(Visit(0, 0).return_auc)


def test_recurring_tasks_are_compared_with_themselves():
    visits = [Visit(task, start=i) for i, task in enumerate([0, 1, 2, 0, 1, 2, 0, 1, 2])]
    early, late = early_and_late(visits)
    assert [v.start for v in early] == [0, 1, 2]
    assert [v.start for v in late] == [6, 7, 8]


@pytest.mark.parametrize(("n", "early", "late"), [(1, [0], [0]), (3, [0], [2]), (9, [0, 1], [7, 8])])
def test_new_tasks_are_compared_by_quarters(n, early, late):
    first, last = early_and_late([Visit(i, i) for i in range(n)])
    assert ([v.start for v in first], [v.start for v in last]) == (early, late)


def test_run_scores_leave_out_visits_without_episodes():
    visits = visited((0, [2.0]), (1, []), (2, [4.0]))
    assert run_scores(visits) == {
        "score/return_auc": 3.0,
        "score/return_at_end": 3.0,
        "score/early_return": 2.0,
        "score/late_return": 4.0,
        "score/recovery_steps": 1000.0,
        "score/recovered": 0.0,
    }
    assert all(math.isnan(value) for value in run_scores([Visit(0, 0)]).values())
    assert run_scores([]).keys() == run_scores(visits).keys()


def test_recovery_by_hand():
    good, bad = (0, [5.0] * 20), (1, [1.0] * 20)
    # After 20 zeros, the mean of the last 20 is 5 once all 20 are fives: with the 40th episode.
    back = [0.0] * 20 + [5.0] * 30
    first, second, third = visited(good, bad, (0, back))
    assert math.isnan(first.recovery_steps)
    assert (second.recovery_steps, second.recovered_at) == (1000, None)
    assert (third.recovery_steps, third.recovered_at) == (400, 2400)
    # A new task is held against the visit before it: here 1, four fives among twenty.
    assert visited(good, bad, (2, back))[-1].recovery_steps == 240
    too_few = visited(good, bad, (0, [9.0] * 19))[-1]
    assert (too_few.recovery_steps, too_few.recovered_at) == (1000, None)
    scores = run_scores([first, second, third])
    assert (scores["score/recovery_steps"], scores["score/recovered"]) == (700, 0.5)


def test_a_visit_without_episodes_sets_no_level():
    assert level_to_recover([], 0) is None
    assert level_to_recover(visited((0, [])), 0) is None
    assert level_to_recover(visited((0, [3.0]), (0, [])), 0) == 3.0
