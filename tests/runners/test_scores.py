import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.runners.episodes import Episodes
from neoteny.runners.scores import (
    Visit,
    area_per_task,
    comparison_scores,
    early_and_late,
    forward_transfer,
    performance_recovery,
    plasticity_gap,
    reference_scores,
    run_scores,
    slope,
    theil_sen,
    thirds,
)


def visited(*visits):
    """Visits of 1000 steps, each as (task, returns); episodes last 10 steps, or ``length``."""
    made = []
    for i, (task, returns, *lengths) in enumerate(visits):
        made.append(Visit(task, 1000 * i, level_to_recover(made, task), end=1000 * (i + 1)))
        steps = 1000 * i + 10 * np.arange(1, len(returns) + 1)
        made[-1].add(np.array(returns), np.array(lengths[0] if lengths else [10] * len(returns)), steps)
    return made


def rows(visits):
    """Their rows, as in a summary."""
    return [visit.row() for visit in visits]


def level_to_recover(visits, task):
    """The last return to the task or, if there is none, to any."""
    known = [visit for visit in visits if visit.episodes]
    same = [visit for visit in known if visit.task == task]
    return (same or known)[-1].return_at_end if known else None


def table(returns, tasks=None, name="return_auc"):
    """Rows with a score each, to tasks 0, 1, ... or those given."""
    tasks = range(len(returns)) if tasks is None else tasks
    return [{"task": task, name: value} for task, value in zip(tasks, returns)]


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


def test_a_visit_ends_with_its_last_step_whether_or_not_an_episode_ends_there():
    episodes = Episodes()
    episodes.begin_visit(0, 0)
    of_one = torch.tensor([[1.0, 0.0], [5.0, 0.0], [2.0, 0.0]])  # of two environments: ended, return, length
    for step, ended in ((2, None), (4, of_one), (6, None)):
        episodes.record(step, ended)
    episodes.collect()
    assert (episodes.row()["end"], episodes.row()["episodes"]) == (6, 1)
    episodes.begin_visit(1, 6)
    assert (episodes.row()["end"], episodes.row()["episodes"]) == (6, 0)


def test_all_episodes_are_collected_however_many_there_were_before():
    """More than what is read at first, fewer again, none, and read together with other numbers."""
    episodes, rng = Episodes(), np.random.default_rng(0)
    episodes.begin_visit(0, 0)
    expected, step = [], 0
    for share in (0.9, 0.01, 0.0, 0.5):
        for _ in range(5):
            step += 50
            made = np.stack([rng.random(50) < share, rng.random(50), rng.integers(1, 9, 50)])
            expected += [(score, length) for ended, score, length in made.T if ended]
            tensor = torch.from_numpy(made)
            episodes.record(step, tensor)
            tensor.fill_(math.nan)  # the caller may use it again
        episodes.collect(episodes.recorded().numpy() if share == 0.5 else None)
    visit = episodes.visit
    assert visit.episodes == len(expected)
    assert episodes.row()["return_auc"] == pytest.approx(
        sum(score * length for score, length in expected) / sum(length for _, length in expected)
    )
    assert [visit.last_returns[-1], visit.end] == [expected[-1][0], step]


def test_recurring_tasks_are_compared_with_themselves():
    visits = [{"task": task, "start": i} for i, task in enumerate([0, 1, 2, 0, 1, 2, 0, 1, 2])]
    early, late = early_and_late(visits)
    assert [v["start"] for v in early] == [0, 1, 2]
    assert [v["start"] for v in late] == [6, 7, 8]


@pytest.mark.parametrize(("n", "early", "late"), [(1, [0], [0]), (3, [0], [2]), (9, [0, 1], [7, 8])])
def test_new_tasks_are_compared_by_quarters(n, early, late):
    first, last = early_and_late([{"task": i} for i in range(n)])
    assert ([v["task"] for v in first], [v["task"] for v in last]) == (early, late)


def test_run_scores_leave_out_visits_without_episodes():
    visits = rows(visited((0, [2.0]), (1, []), (2, [4.0])))
    scores = run_scores(visits)
    assert math.isnan(scores.pop("score/performance_recovery"))
    assert scores == {
        "score/return_auc": 3.0,
        "score/return_at_end": 3.0,
        "score/early_return": 2.0,
        "score/late_return": 4.0,
        "score/recovery_steps": 1000.0,
        "score/recovered": 0.0,
    }
    assert all(math.isnan(value) for value in run_scores(rows([Visit(0, 0)])).values())
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
    scores = run_scores(rows([first, second, third]))
    assert (scores["score/recovery_steps"], scores["score/recovered"]) == (700, 0.5)


def test_a_visit_without_episodes_sets_no_level():
    for recurring, of_task in ((True, 3.0), (False, 5.0)):
        episodes = Episodes(recurring=recurring)
        assert episodes.level(0) is None
        for task, returns in ((0, []), (0, [3.0]), (0, []), (1, [5.0]), (1, [])):
            episodes.begin_visit(task, episodes.step)
            episodes.score(returns, 10, episodes.step + 10)
        assert (episodes.level(0), episodes.level(2)) == (of_task, 5.0)


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.floats(-5, 5, width=16), max_size=30)), max_size=9))
def test_levels_are_those_of_all_visits_also_after_a_resume(tasks):
    episodes, rows = Episodes(), []
    for i, (task, returns) in enumerate(tasks):
        if episodes.visit:
            rows.append(json.loads(json.dumps(episodes.row())))
        episodes.begin_visit(task, 1000 * i)
        assert episodes.visit.level == level_to_recover(visited(*tasks[:i]), task)
        episodes.score(returns, 10, 1000 * i + 10 * len(returns))
        state, again = episodes.state(), Episodes()
        again.restore(rows, state and {**state, "fingerprint": None})
        assert (again.visit, again.tasks, again.starts) == (episodes.visit, episodes.tasks, episodes.starts)
        episodes = again


def test_thirds_by_hand():
    assert thirds(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])) == (1.5, 3.5, 7.0)
    assert thirds(np.array([1.0, 2.0, 3.0, 9.0])) == (1.0, 2.5, 9.0)  # the outer thirds are equally long
    assert thirds(np.array([1.0, 2.0, 3.0, 4.0, 9.0])) == (1.5, 3.0, 6.5)
    assert thirds(np.array([1.0, math.nan, 3.0, 4.0, 5.0, 9.0])) == (1.0, 3.5, 7.0)
    assert all(map(math.isnan, thirds(np.array([1.0, 2.0]))))


def test_the_slope_of_recurring_tasks_compares_each_with_itself():
    """Tasks of different difficulty in turn look like a trend where none is."""
    hard_last = table([10.0, 0.0, 10.0, 0.0], tasks=[0, 1, 0, 1])
    assert slope(hard_last, np.array([10.0, 0.0, 10.0, 0.0])) == 0
    assert comparison_scores(hard_last)["score/slope"] == 0
    assert comparison_scores(table([10.0, 0.0, 10.0, 0.0]))["score/slope"] < 0  # four tasks, each a new one
    assert math.isnan(comparison_scores(table([1.0]))["score/slope"])


TIMED = st.lists(st.tuples(st.integers(0, 9), st.integers(-9, 9) | st.none(), st.integers(0, 2)), max_size=9)


@settings(deadline=None)
@given(TIMED)
def test_the_slope_is_the_median_over_pairs_of_a_group(points):
    known = [(x, y, group) for x, y, group in points if y is not None]
    slopes = [
        (y2 - y1) / (x2 - x1)
        for (x1, y1, one), (x2, y2, two) in itertools.combinations(known, 2)
        if one == two and x1 != x2
    ]
    columns = [np.array([math.nan if v is None else v for v in each], float) for each in zip(*points)]
    found = theil_sen(*columns) if points else math.nan
    np.testing.assert_allclose(found, np.median(slopes) if slopes else math.nan)


def test_performance_recovery_counts_returns_to_a_task_alone():
    steps, tasks = [None, 90.0, 50.0, 40.0, 10.0, 20.0], [0, 1, 0, 1, 0, 1]
    # Task 1's 90 steps were for the level of another task. From then on each return is 40 and 20 faster.
    assert performance_recovery(table(steps, tasks, "recovery_steps")) == 30.0
    assert math.isnan(performance_recovery(table([None, 90.0, 50.0], [0, 1, 0], "recovery_steps")))
    assert math.isnan(performance_recovery(table([None, 9.0, 5.0], name="recovery_steps")))


def test_the_rate_of_censoring_is_what_did_not_recover():
    visits = rows(visited((0, [5.0] * 20), (1, [1.0] * 20), (0, [5.0] * 20), (1, [0.5] * 20)))
    assert run_scores(visits)["score/recovered"] == pytest.approx(1 / 3)


def test_the_plasticity_gap_is_signed_and_not_clipped():
    fresh = {0: {"return_auc": 2.0, "return_at_end": 9.0}, 1: {"return_auc": 1.0, "return_at_end": None}}
    visits = table([2.0, 3.0, 0.5, 1.0, math.nan], tasks=[0, 1, 0, 2, 1])
    gap = plasticity_gap(visits, fresh, "return_auc")
    np.testing.assert_equal(gap, [0.0, -2.0, 1.5, math.nan, math.nan])
    scores = reference_scores(visits, fresh)
    assert scores["score/plasticity_gap_auc"] == pytest.approx(-0.5 / 3)
    assert math.isnan(scores["score/plasticity_gap_at_end"])
    assert all(map(math.isnan, reference_scores(visits, {}).values()))


def test_forward_transfer_is_divided_by_what_the_fresh_agent_lacks():
    """Not by what the continual agent lacks, nor by the fresh agent's area, as peers do."""
    found = forward_transfer(np.array([0.75, 0.25, 0.9]), np.array([0.5, 0.5, 1.0]))
    np.testing.assert_allclose(found, [0.5, -0.5, math.nan])  # undefined where the fresh agent is perfect
    assert forward_transfer(np.array([60.0]), np.array([40.0]), np.array([80.0])) == [0.5]


@settings(deadline=None)
@given(
    st.lists(st.tuples(*3 * [st.integers(0, 20)]), min_size=1, max_size=6),
    st.integers(-9, 9),
    st.integers(1, 4),
)
def test_forward_transfer_does_not_depend_on_the_scale_of_returns(tasks, shift, factor):
    """So the return of a random policy, which a normalized return would subtract, is not needed."""
    area, fresh, perfect = np.array(tasks, float).T
    moved = forward_transfer(*(shift + factor * each for each in (area, fresh, perfect)))
    np.testing.assert_allclose(moved, forward_transfer(area, fresh, perfect))


def test_forward_transfer_is_of_first_visits():
    fresh = {0: {"return_auc": 4.0, "return_at_end": 8.0}, 1: {"return_auc": 2.0, "return_at_end": 2.0}}
    visits = table([6.0, 1.0, 8.0], tasks=[0, 1, 0])
    assert reference_scores(visits, fresh)["score/forward_transfer"] == 0.5  # task 1 leaves no room


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-9, 9) | st.none()), min_size=1, max_size=8),
    st.dictionaries(st.integers(0, 3), st.tuples(st.integers(-9, 9), st.integers(-9, 9))),
)
def test_scores_against_fresh_agents_equal_their_definitions(visits, reference):
    fresh = {task: {"return_auc": auc, "return_at_end": end} for task, (auc, end) in reference.items()}
    scores = reference_scores(table([auc for _, auc in visits], [task for task, _ in visits]), fresh)
    gaps = [reference[task][0] - auc for task, auc in visits if task in reference and auc is not None]
    first = dict(reversed(visits))
    transfers = [
        (auc - reference[task][0]) / (reference[task][1] - reference[task][0])
        for task, auc in first.items()
        if auc is not None and task in reference and reference[task][1] > reference[task][0]
    ]
    expected = [np.mean(each) if each else math.nan for each in (gaps, transfers)]
    found = [scores["score/plasticity_gap_auc"], scores["score/forward_transfer"]]
    np.testing.assert_allclose(found, expected)


def test_the_human_normalized_score_is_a_mean_over_the_visits_to_known_games():
    visits = [{"task": i, "human_normalized": value} for i, value in enumerate((0.5, None, -2.0, math.nan))]
    assert comparison_scores(visits)["score/human_normalized"] == -0.75
    assert math.isnan(comparison_scores(table([1.0]))["score/human_normalized"])


def test_areas_are_averaged_by_task():
    assert area_per_task(table([1.0, 5.0, 3.0, None], [0, 1, 0, 1])) == {0: 2.0, 1: 5.0}
