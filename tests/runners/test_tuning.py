"""Tuning: the same number of trials for each arm, proposals that can be made again, and the best."""

import json

import pytest

from neoteny.runners.tuning import ROUND, Range, Trial, best, budget, propose, score_of

GRID = {"lr": ["1e-3", "3e-4", "1e-4"]}
TWO = {**GRID, "optim.iso": ["0.1", "0.2"]}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("1e-4..1e-2", Range(1e-4, 1e-2, False)),
        ("2..8", Range(2, 8, True)),
        ("0.5..1", Range(0.5, 1, False)),
        ("0.5", None),
    ],
)
def test_ranges(word, expected):
    assert Range.read(word) == expected


@pytest.mark.parametrize("word", ["1..", "a..b", "2..1", "1..1", "0..inf", "1..2..3"])
def test_what_is_no_range_is_refused(word):
    with pytest.raises(ValueError, match="is not a range"):
        Range.read(word)


def test_scales():
    assert Range(1e-4, 1e-2, False).log
    assert not Range(0.5, 1, False).log
    assert not Range(0, 100, False).log
    assert Range(2, 8, True).number("9") == 8


def test_each_arm_has_the_same_budget():
    assert budget({"adam": GRID, "muon": GRID}, None) == 3
    assert budget({"adam": GRID, "adamo": TWO}, 3) == 3
    with pytest.raises(ValueError, match=r"3 for adam, 6 for adamo: --trials 3"):
        budget({"adam": GRID, "adamo": TWO}, None)
    with pytest.raises(ValueError, match="--trials 4 is more than adam has combinations of --over, 3"):
        budget({"adam": GRID, "adamo": TWO}, 4)
    with pytest.raises(ValueError, match="needs --trials"):
        budget({"adam": {"lr": ["1e-4..1e-2"]}}, None)
    with pytest.raises(ValueError, match="or one range"):
        budget({"adam": {"lr": ["1e-4..1e-2", "1"]}}, 3)
    assert budget({"adam": {"lr": ["1e-4..1e-2"]}, "adamo": {**TWO, "lr": ["1e-4..1e-2"]}}, 20) == 20
    with pytest.raises(ValueError, match="more than adam has combinations of --over, 1"):
        budget({"adam": {}, "adamo": {"optim.iso": ["0.1..1"]}}, 20)


def test_a_grid_is_proposed_whole_and_in_order():
    assert propose(GRID, [], 3) == [{"lr": "1e-3"}, {"lr": "3e-4"}, {"lr": "1e-4"}]
    assert propose({}, [], 1) == [{}]


def test_draws_of_a_grid_do_not_repeat_and_are_the_same_again():
    wide = {"a": list("abcde"), "b": list("vwxyz")}
    known = []
    while len(known) < 20:
        proposed = propose(wide, known, 20)
        assert len(proposed) == min(ROUND, 20 - len(known))
        assert proposed == propose(wide, known, 20)
        known += map(Trial, proposed)
    assert len({tuple(trial.flags.items()) for trial in known}) == 20


def test_the_best_has_the_highest_mean_and_a_failed_run_counts_as_failed():
    trials = [
        Trial({"lr": "a"}, {1: 10.0, 2: 20.0}),
        Trial({"lr": "b"}, {1: 100.0, 2: None}),
        Trial({"lr": "c"}, {1: 12.0, 2: 19.0}),
        Trial({"lr": "d"}, {1: 15.5, 2: 15.5}),
    ]
    assert [trial.score for trial in trials] == [15.0, None, 15.5, 15.5]
    assert best(trials) is trials[2]
    assert best([trials[1]]) is None
    assert best([Trial({}, {1: -5.0})]).score == -5.0


def test_the_score_of_a_run(tmp_path):
    assert score_of(tmp_path) is None
    for value, score in (("12.5", 12.5), ("null", None)):
        (tmp_path / "summary.json").write_text(json.dumps({"score/return_auc": json.loads(value)}))
        assert score_of(tmp_path) == score


def test_optuna_searches_ranges_and_can_be_resumed():
    pytest.importorskip("optuna")
    space, known = {"lr": ["1e-4..1e-1"], "epochs": ["1..8"], "network.activation": ["relu", "tanh"]}, []
    while len(known) < 3 * ROUND:
        proposed = propose(space, known, 3 * ROUND)
        assert proposed == propose(space, known, 3 * ROUND)
        for flags in proposed:
            assert 1e-4 <= float(flags["lr"]) <= 1e-1
            assert flags["epochs"] in list("12345678")
            assert flags["network.activation"] in space["network.activation"]
            score = -abs(float(flags["lr"]) - 0.01) if flags["epochs"] != "1" else None
            known.append(Trial(flags, {1: score}))
    assert best(known[ROUND:]).score >= best(known[:ROUND]).score - 0.01
    assert known[ROUND].flags != known[0].flags  # both are drawn, since so few trials are known
