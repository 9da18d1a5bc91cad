import dataclasses
import math

import pytest

from neoteny.runners.scores import Visit, early_and_late, recovery, run_scores


def test_visit_scores_by_hand():
    visit = Visit(0, 0, returns=[1.0] * 30 + [3.0] * 10, lengths=[1] * 30 + [3] * 10)
    assert visit.return_at_end == 2.0  # ten ones, ten threes
    assert visit.return_auc == (30 * 1 * 1 + 10 * 3 * 3) / 60
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
    visits = [Visit(0, 0, [2.0], [4]), Visit(1, 10, end=20), Visit(2, 20, [4.0], [4], end=30)]
    assert run_scores(visits) == {
        "score/return_auc": 3.0,
        "score/return_at_end": 3.0,
        "score/early_return": 2.0,
        "score/late_return": 4.0,
        "score/recovery_steps": 10.0,
        "score/recovered": 0.0,
    }
    assert all(math.isnan(value) for value in run_scores([Visit(0, 0)]).values())
    assert run_scores([]).keys() == run_scores(visits).keys()


def visit(task, start, returns):
    """Episodes of 10 steps."""
    steps = range(start + 10, start + 10 * len(returns) + 1, 10)
    return Visit(task, start, returns, [10] * len(returns), list(steps), end=start + 1000)


def test_recovery_by_hand():
    good, bad = visit(0, 0, [5.0] * 20), visit(1, 1000, [1.0] * 20)
    # After 20 zeros, the mean of the last 20 is 5 once all 20 are fives: with the 40th episode.
    back = visit(0, 2000, [0.0] * 20 + [5.0] * 30)
    assert recovery([good, bad, back]) == (400, True)
    # A new task is held against the visit before it: here 1, four fives among twenty.
    assert recovery([good, bad, dataclasses.replace(back, task=2)]) == (240, True)
    assert recovery([good, bad]) == (1000, False)
    assert recovery([good, bad, visit(0, 2000, [9.0] * 19)]) == (1000, False)  # too few episodes to say
    assert math.isnan(recovery([good])[0])
    scores = run_scores([good, bad, back])
    assert (scores["score/recovery_steps"], scores["score/recovered"]) == (700, 0.5)
