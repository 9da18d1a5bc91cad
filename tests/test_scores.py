import math

import pytest

from neoteny.runners.scores import Visit, early_and_late, run_scores


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
    visits = [Visit(0, 0, [2.0], [4]), Visit(1, 10), Visit(2, 20, [4.0], [4])]
    assert run_scores(visits) == {
        "score/return_auc": 3.0,
        "score/return_at_end": 3.0,
        "score/early_return": 2.0,
        "score/late_return": 4.0,
    }
    assert all(math.isnan(value) for value in run_scores([Visit(0, 0)]).values())
    assert run_scores([]).keys() == run_scores(visits).keys()
