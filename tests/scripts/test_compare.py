"""Comparisons of runs: what is compared, refused and left out, and the numbers in tables by hand."""

import csv
import json
import math
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neoteny.agents import supervised
from neoteny.configs.cli import cli
from neoteny.runners.disk.crash import save_crash
from neoteny.runners.disk.events import EventWriter
from neoteny.runners.results import curves, over_time, read_results
from neoteny.scripts import compare, comparison_figures, comparison_tables
from neoteny.scripts.compare import Compare, arms_of
from neoteny.scripts.comparison_tables import ISOMETRY, SPECTRUM, Arm, held, isometry_table

MAX, MEAN, MIN = (ISOMETRY[row] for row in SPECTRUM)
NTK = "isometry/ntk_log10_cond"
STEPS = 1000  # of a visit


def run(folder, optimizer="adam", seed=1, returns=(), measured=(), visits=None, stream="stream", **flags):
    """A run with visits of 1,000 steps to new tasks, and measurements at steps 0, 100, ...: tag -> values.

    Args:
        folder: of all runs.
        optimizer: its name.
        seed: of the run.
        returns: mean return of each ended visit.
        measured: tag -> values.
        visits: number of visits if it has not finished.
        stream: its id.
        flags: other arguments.
    """
    path = folder / stream / "ppo" / optimizer / f"s{seed}"
    path.mkdir(parents=True)
    total = STEPS * (visits or max(1, len(returns)))
    args = {"agent": "ppo", "seed": seed, "lr": 0.1, "total_steps": total, "methods": {}, **flags}
    args |= {"stream": {"id": stream}, "optim": {"name": optimizer, "eps": 1e-8, **flags.get("optim", {})}}
    (path / "args.json").write_text(json.dumps(args))
    writer = EventWriter(path, 1)
    for tag, values in dict(measured).items():
        for i, value in enumerate(values):
            writer.metrics({tag: value}, 100 * i)
    for i, value in enumerate(returns):
        for step in (250, 750):
            writer.metrics({"charts/episodic_return": value, "charts/SPS": 5.0}, STEPS * i + step)
        writer.metrics({"task/return_auc": value, "task/return_at_end": value}, i)
    writer.close()
    rows = [
        {"task": i, "start": STEPS * i, "end": STEPS * (i + 1), "return_auc": value, "return_at_end": value}
        for i, value in enumerate(returns)
    ]
    (path / "visits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if visits is None:
        (path / "summary.json").write_text(json.dumps({"visits": rows}))
    return path


def read(*folders):
    """The arms of the runs in folders."""
    return arms_of(list(read_results(folders, lambda tag: True, pytest.fail)))


def cells(table):
    """The cells of a table: first cell -> the others."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: cells for name, *cells in lines}


def text(capsys, *folders, **flags):
    """What a comparison prints; it writes into the first folder."""
    assert compare.main(Compare(folders, **flags)) == 0
    return capsys.readouterr().out


def refused(capsys, *folders, **flags):
    """The sentence with which a comparison is refused; nothing was written."""
    with pytest.raises(SystemExit) as exit:
        compare.main(Compare(folders, **flags))
    assert exit.value.code == 2
    assert not any(path.name.startswith(("comparison", "pooled")) for path in folders[0].iterdir())
    return capsys.readouterr().err


def test_returns_by_hand(tmp_path, capsys):
    for seed, shift in enumerate((0.0, 1.0, 2.0, 30.0)):
        run(tmp_path, "adam", seed, [1 + shift, 2 + shift, 3 + shift])
        run(tmp_path, "muon", seed, [3 + shift, 4 + shift, 5 + shift])
    printed = text(capsys, tmp_path)
    table = cells(next(part for part in printed.split("\n\n") if part.startswith("| arm")))
    assert table["arm"] == [
        "seeds",
        "mean return",
        "early third",
        "middle third",
        "late third",
        "slope per visit",
    ]
    assert [cell.split(" ")[0] for cell in table["adam"]] == ["4", "3.5", "2.5", "3.5", "4.5", "1"]
    assert "* late third, muon - adam: 2.00 ± 0.00 (4 of 4 seeds above 0" in printed
    with open(tmp_path / "comparison.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], float(row["score/return_auc"])) for row in rows[:2]] == [
        ("adam", "0", 2.0),
        ("adam", "1", 3.0),
    ]
    assert (tmp_path / "comparison.md").read_text().endswith("![curves](comparison.png)\n")
    assert (tmp_path / "comparison.svg").stat().st_size > 10_000


def test_scores_of_evaluations_and_of_each_task(tmp_path, capsys):
    path = run(tmp_path, "adam", 1, [1.0, 2.0, 4.0])
    summary = json.loads((path / "summary.json").read_text())
    summary["visits"][2]["task"] = 0
    summary["visits"][1]["human_normalized"] = 0.25
    summary |= {"score/forgetting": 0.25, "score/return_auc": 99.0, "score/recovered": None}
    (path / "summary.json").write_text(json.dumps(summary))
    tables = [cells(part) for part in text(capsys, tmp_path).split("\n\n") if part.startswith("| arm")]
    returns = dict(zip(tables[0]["arm"], tables[0]["adam"]))
    assert returns["forgetting"] == "0.25"
    assert returns["human-normalized"] == "0.25"
    assert returns["mean return"] == "2.333"  # from the visits
    assert tables[1] == {"arm": ["seeds", "task 0", "task 1"], "adam": ["1", "2.5", "2"], **tables[1]}


def test_the_gap_to_fresh_agents_is_named_and_never_an_arm(tmp_path, capsys):
    for seed in (1, 2):
        path = run(tmp_path, "adamo", seed, [4.0, 5.0, 6.0])
        places = {}
        for task in range(3):
            fresh = run(tmp_path / "references" / str(task), "adam", seed, [7.0])
            places[task] = os.path.relpath(fresh, path)
        (path / "references.json").write_text(json.dumps({"base": places}))
    printed = text(capsys, tmp_path)
    assert "Plasticity gap: a fresh agent with Adam and no method, the same for all arms" in printed
    (header,) = re.findall(r"\| arm .*gap in area, base.*", printed)
    assert "gap in area, own" not in header
    assert "* gap in area, base" not in printed  # a single arm
    assert re.search(r"\| adamo \| 2 +\| 2 \(2 to 2\) +\| 2 \(2 to 2\) +\| -1 ", printed)
    assert "| adam " not in printed
    (arm,) = read(tmp_path)
    panels = comparison_figures.panels_of([arm])
    np.testing.assert_array_equal(panels[comparison_figures.GAPS["base"]]["adamo"][1], 2 * [[3.0, 2.0, 1.0]])
    assert comparison_figures.GAPS["own"] not in panels


def test_flags_that_differ_are_refused_by_name(tmp_path, capsys):
    for seed in (1, 2):
        run(tmp_path, "adam", seed, [1.0], lr=0.1, gamma=0.9)
        run(tmp_path, "muon", seed, [2.0], lr=0.2, gamma=0.9)
    message = refused(capsys, tmp_path)
    assert "runs of ppo on stream differ in lr (0.1 and 0.2)" in message
    assert "gamma" not in message
    assert "--over gamma does nothing: the runs do not differ in it" in refused(
        capsys, tmp_path, over=("gamma",)
    )
    assert "there is no arm 'adamw'; there are adam lr=0.1, muon lr=0.2" in refused(
        capsys, tmp_path, over=("lr",), baseline="adamw"
    )
    assert "muon lr=0.2 - adam lr=0.1: 1.00" in text(capsys, tmp_path, over=("lr",))
    assert "muon lr=0.2 - adam lr=0.1: 1.00" in text(capsys, tmp_path, allow_differences=True)


def test_runs_with_other_flags_are_never_averaged(tmp_path):
    """Flags of the optimizer are compared without being named, and what only watches is none."""
    run(tmp_path / "a", "adamo", 1, [1.0], optim={"iso": 0.1}, device="cpu", probes={"every": 20})
    run(tmp_path / "b", "adamo", 1, [1.0], optim={"iso": 0.2}, device="cuda", probes={"every": 10})
    run(tmp_path / "a", "adam", 1, [1.0], device="cpu", probes={"every": 20})
    assert [arm.name for arm in read(tmp_path)] == ["adam", "adamo optim.iso=0.1", "adamo optim.iso=0.2"]


def test_what_a_note_tells_and_what_most_arms_share_stands_in_no_name(tmp_path):
    for lr in (0.001, 0.003):
        run(tmp_path, f"adam-lr{lr}", 1, [1.0], lr=lr, gamma=0.9)
    run(tmp_path / "one", "adam-lr0.01-mine", 1, [1.0], lr=0.01, gamma=0.99)
    run(tmp_path / "more", "adam-lr0.01-mine", 2, [1.0], lr=0.02, gamma=0.99)
    assert [arm.name for arm in read(tmp_path)] == [
        "adam-lr0.001",
        "adam-lr0.003",
        "adam-lr0.01-mine gamma=0.99 lr=0.01",
        "adam-lr0.01-mine gamma=0.99 lr=0.02",
    ]


def test_the_baseline_is_adam_without_methods(tmp_path, capsys):
    for folder, changes in (
        ("adam-redo", {"methods": {"redo": {"tau": 0.1}}}),
        ("adam-layers-lr0.1", {"network": {"norm": "layer"}}),
        ("adam-lr0.3", {"lr": 0.3}),
        ("ada", {}),
    ):
        optim = {"name": folder.partition("-")[0]}
        run(tmp_path, folder, 1, [1.0], optim=optim, **{"network": {"norm": "none"}, "lr": 0.1, **changes})
    printed = text(capsys, tmp_path, allow_differences=True)
    assert "mean return, adam-redo - adam-lr0.3: 0.00" in printed


@pytest.mark.parametrize(
    ("name", "columns"), [("adam", 4), ("a" * 30, 2), ("adamo-parseval-" * 4, 1), (120 * "a", 1)]
)
def test_names_of_arms_fit_below_a_figure(name, columns):
    arms = {f"{name}{i}": {"color": "C0", "linestyle": "-"} for i in range(12)}
    figure = Figure((8.6, 6))
    comparison_figures._add_legend(figure, arms)
    (legend,) = figure.legends
    assert legend._ncols == columns
    assert legend.get_window_extent().width < figure.bbox.width


def test_the_same_run_twice_counts_once(tmp_path, capsys):
    run(tmp_path / "a", "adam", 1, [1.0])
    run(tmp_path / "b", "adam", 1, [5.0])
    (arm,) = read(tmp_path)
    assert [result.scores["score/return_auc"] for result in arm.results] == [1.0]
    assert f"{tmp_path / 'b'}" in capsys.readouterr().err


def test_a_running_run_is_shown_and_compared_by_what_it_has_ended(tmp_path, capsys):
    run(tmp_path, "adam", 1, [1.0, 2.0, 9.0, 9.0])
    run(tmp_path, "muon", 1, [3.0, 4.0], visits=4)
    printed = text(capsys, tmp_path)
    assert re.search(r"\| muon +\| 1 +\| 44% +\| 2 +\| 3.5 ", printed)
    assert "What follows is of the first 2 visits, which all these runs have ended." in printed
    assert "mean return, muon - adam: 2.00" in printed
    run(tmp_path, "muon", 2, [5.0, 6.0, 7.0, 8.0])
    run(tmp_path, "adam", 2, [5.0, 6.0, 7.0, 8.0])
    printed = text(capsys, tmp_path)  # now each arm has a finished run
    assert "What follows is of the finished runs." in printed
    assert re.search(r"\| muon +\| 2 +\| 100%", printed) is None
    assert "mean return, muon - adam: 0.00 (0 of 1 seeds above 0" in printed


def test_the_first_visits_of_a_run_have_its_points_up_to_their_end(tmp_path):
    folder = run(tmp_path, "adam", 1, [1.0, 2.0, 9.0], {MAX: range(40)}, visits=4)
    (result,) = read_results([folder], lambda tag: True, pytest.fail)
    points = {tag: steps.tolist() for tag, (steps, _) in result.first_visits(2).points.items()}
    assert points["charts/episodic_return"] == [250, 750, 1250, 1750]
    assert points[MAX] == list(range(0, 2001, 100))
    assert points["task/return_auc"] == [0, 1]


def test_parts_of_a_run_end_with_their_last_step():
    points = np.array([1.0, 5.0, 6.0, 10.0]), np.array([1.0, 3.0, 5.0, 7.0])
    assert over_time(points, 10, 2).tolist() == [2.0, 6.0]
    assert over_time(points, 10, 5).tolist() == [1.0, 1.0, 4.0, 4.0, 7.0]


def test_runs_in_their_first_visit_are_listed_alone(tmp_path, capsys):
    run(tmp_path, "adam", 1, [], visits=4)
    assert "No run has ended its first visit." in text(capsys, tmp_path)
    run(tmp_path, "muon", 1, [1.0], visits=4)
    printed = text(capsys, tmp_path)
    assert re.search(r"\| adam +\| 1 +\| 0% ", printed)
    assert "What follows is of the first 1 visits" in printed
    assert re.search(r"\| muon \| 1 +\| 1 ", printed)


def test_what_is_broken_is_named_and_the_rest_is_compared(tmp_path, capsys):
    good = run(tmp_path, "adam", 1, [1.0, 2.0])
    cut, damaged, torn = (run(tmp_path, "adam", seed, [1.0, 2.0]) for seed in (2, 3, 4))
    (events,) = cut.glob("events*")
    events.write_bytes(events.read_bytes()[:-7])
    (events,) = damaged.glob("events*")
    data = events.read_bytes()
    events.write_bytes(data[:-60] + struct.pack("<Q", 4) + b"\\xff" * 52)
    (torn / "args.json").write_text('{"agent": ')
    foreign = tmp_path / "someone" / "else"
    foreign.mkdir(parents=True)
    (foreign / "events.out.tfevents.123.host").write_bytes(b"")
    running = run(tmp_path, "adam", 5, [1.0], visits=2)
    (events,) = running.glob("events*")
    events.write_bytes(events.read_bytes()[:-7])  # as while a process is writing
    printed = compare.main(Compare((tmp_path,)))
    assert printed == 0
    captured = capsys.readouterr()
    warned = captured.err
    for path in (cut, damaged, torn, foreign):
        assert str(path) in warned, path
    for path in (good, running):
        assert str(path) not in warned, path
    assert re.search(r"\| adam \| 3 ", captured.out)


@pytest.mark.parametrize("rows", ["returns", "isometry"])
def test_no_run_is_refused(rows, tmp_path, capsys):
    (tmp_path / "stream" / "ppo" / "adam" / "s1").mkdir(parents=True)
    assert refused(capsys, tmp_path, rows=rows) == f"error: no run below {tmp_path}\n"


def test_each_stream_has_a_table_and_figures(tmp_path, capsys):
    for stream in ("one", "two"):
        for optimizer in ("adam", "adamo"):
            run(
                tmp_path,
                optimizer,
                1,
                [1.0, 2.0],
                {MAX: [1.0, math.inf], f"{NTK}/q": [1.0, 2.0]},
                None,
                stream,
            )
    printed = text(capsys, tmp_path, rows="isometry", out=tmp_path / "table")
    assert re.findall("PPO on (.*)", printed) == ["one", "two"]
    for name in ("one", "two"):
        assert (tmp_path / f"table-{name}-ppo.png").stat().st_size > 10_000
    assert (tmp_path / "pooled" / "two" / "ppo" / "adamo").is_dir()


def test_pooled_runs_have_the_mean_over_seeds_where_all_are_finite(tmp_path, capsys):
    tag = "plasticity/dead/max"
    for seed in range(1, 5):
        run(tmp_path, "adam", seed, [1.0], {tag: [1.0 * seed, 2.0, math.inf if seed == 1 else 3.0]})
    for _ in range(2):  # the second time in place of the first
        text(capsys, tmp_path)
        pooled = EventAccumulator(str(tmp_path / "pooled" / "stream" / "ppo" / "adam")).Reload()
        assert [(point.step, point.value) for point in pooled.Scalars(tag)] == [(0, 2.5), (100, 2.0)]
        low, high = (pooled.Scalars(f"pooled/{tag}/{end}")[0].value for end in ("low", "high"))
        assert low < 2.5 < high
    text(capsys, tmp_path / "stream", pooled=False)
    assert not (tmp_path / "stream" / "pooled").exists()


def test_the_stop_rule_counts_seeds(tmp_path, capsys):
    pytest.importorskip("adastop")
    rng = np.random.default_rng(0)
    for seed in range(10):
        run(tmp_path, "adam", seed, [rng.normal()])
        run(tmp_path, "adamo", seed, [5 + rng.normal()])
        run(tmp_path, "muon", seed, [0.5 + rng.normal()])
    printed = text(capsys, tmp_path, stop_rule=True)
    assert "AdaStop after 10 seeds of at most 30: adamo is above adam" in printed
    assert re.search(r"muon is not yet settled beside adam\n  a difference as .* more seeds", printed)


def test_the_last_quarter_and_the_first_measurement_over_seeds(tmp_path):
    run(tmp_path, "adam", 1, [10.0], {MAX: [1.0, 9.0, 9.0, 2.0, 4.0]})
    run(tmp_path, "adam", 2, [14.0], {MAX: [2.0, 9.0, 9.0, 4.0, 6.0]})
    run(tmp_path, "muon", 7, [], {MAX: [1.5, 2.5]})
    output = cells(isometry_table(read(tmp_path)))
    assert output[""] == ["adam", "muon"]
    assert output["seeds"] == ["2", "1"]
    # 3 and 5: mean 4, standard error 1, t of one degree of freedom 12.7; one seed has no interval
    assert output["sigma max"] == ["4 ± 12.7 (from 1.5)", "2.5 (from 1.5)"]
    assert output["mean return"] == ["12 (10 to 14)", "-"]
    assert output["sigma min"] == output["NTK log10 cond"] == ["-", "-"]


def test_parts_are_averaged(tmp_path):
    measured = {
        "plasticity/feature_effective_rank/actor": [3.0, 5.0],
        "plasticity/feature_effective_rank/critic": [5.0, 8.0],
        "plasticity/feature_effective_rank_squared/actor": [99.0, 99.0],
        "isometry/jacobian_distance/actor.input_output/median": [1.0, 2.0],
        "isometry/jacobian_distance/actor.input_output/p95": [99.0, 99.0],
        "isometry/jacobian_distance/actor.linear1/median": [99.0, 99.0],
        "isometry/jacobian_log10_cond/actor.input_output/median": [0.5, 1.5],
        "isometry/jacobian_rank/actor.input_output/median": [4.0, 3.0],
        "charts/validation_accuracy": [0.5, 0.75],
    }
    run(tmp_path, "adam", 1, [1.0], measured)
    output = cells(isometry_table(read(tmp_path)))
    assert output["feature effective rank"] == ["6.5 (from 4)"]
    assert output["Jacobian distance"] == ["2 (from 1)"]
    assert output["Jacobian log10 cond"] == ["1.5 (from 0.5)"]
    assert output["Jacobian rank"] == ["3 (from 4)"]
    assert output["validation accuracy"] == ["0.75 (from 0.5)"]


def test_what_is_not_finite_is_counted_and_never_averaged_away(tmp_path):
    tag = "isometry/log10_cond/max"
    for seed, last in enumerate((1.0, math.inf, math.inf, math.nan)):
        run(tmp_path, "adam", seed, [1.0], {tag: [1.0, 1.0, 1.0, 1.0, last], f"{NTK}/q": [math.inf, 2.0]})
    output = cells(isometry_table(read(tmp_path)))
    assert output["log10 cond"] == ["inf (2 of 4), nan (1 of 4) (from 1)"]
    assert output["NTK log10 cond"] == ["2 ± 0 (from inf)"]


def test_held_measures(tmp_path):
    run(tmp_path, "adamo", 1, [1.0], {MAX: [2.0, 2.8, 2.0], MEAN: [1.0, 1.5], MIN: [1.0, 0.7]})
    run(tmp_path, "adamo", 2, [1.0], {MAX: [2.0, 1.6, 2.0], MEAN: [1.0, 1.0], MIN: [1.0, 0.5, 1.0]})
    run(tmp_path, "adam", 1, [1.0], {MAX: [2.0, 20.0], MEAN: [1.0, math.nan], MIN: [1.0, 0.0]})
    run(tmp_path, "old", 1, [1.0], {MAX: [2.0, 2.0]})
    run(tmp_path, "unmeasured", 1, [1.0], {"a": [1.0]})
    assert list(held(read(tmp_path))) == [
        "* adam: none (farthest, as a factor: sigma max 10, mean squared sigma nan, sigma min inf)",
        "* adamo: sigma max, mean squared sigma "
        "(farthest, as a factor: sigma max 1.4, mean squared sigma 1.5, sigma min 2)",
        "* old: sigma max (farthest, as a factor: sigma max 1)",
    ]


def test_scores_along_a_flag(tmp_path, capsys):
    for iso, scores in {0.5: (3, 5), 1.0: (4, 4)}.items():
        for seed, score in enumerate(scores, start=1):
            measured = {"plasticity/dormant_0.025/max": (0.9, iso / 2)}
            run(tmp_path, f"adamo-iso{iso:g}", seed, [score] * 3, measured, optim={"iso": iso})
    for seed, cond in ((1, 2.0), (2, math.inf)):
        run(tmp_path, "adam", seed, [1 + seed] * 3, {"isometry/log10_cond/max": (1.0, cond)})
    panels = comparison_figures.panels_along(read(tmp_path), "optim.iso")
    dormant = "dormant units (0.025), worst layer, at the end"
    assert list(panels) == ["mean over the run", "late third", dormant]  # a condition number is infinite
    assert {
        name: {value: list(seeds) for value, seeds in line.items()}
        for name, line in panels["late third"].items()
    } == {
        "adam": {None: [2, 3]},
        "adamo": {0.5: [3, 5], 1.0: [4, 4]},
    }
    assert {value: list(seeds) for value, seeds in panels[dormant]["adamo"].items()} == {
        0.5: [0.25] * 2,
        1.0: [0.5] * 2,
    }
    assert compare.run([str(tmp_path), "--along", "optim.iso", "--out", str(tmp_path / "along")]) == 0
    assert (tmp_path / "along.png").exists()


@pytest.mark.parametrize("flag", ["lr", "optim.name", "nothing"])
def test_a_flag_without_several_numbers_has_no_figure(flag, tmp_path, capsys):
    for name in ("adam", "adamo"):
        run(tmp_path, name, returns=[1])
    with pytest.raises(SystemExit) as exit:
        compare.run([str(tmp_path), "--along", flag])
    assert exit.value.code == 2
    assert f"--along {flag} needs runs of ppo on stream with several numbers" in capsys.readouterr().err


def test_curves_have_a_gap_where_a_seed_is_not_finite(tmp_path):
    run(tmp_path, "adam", 1, [1.0], {f"{NTK}/actor": [1.0, 1.0, 1.0], f"{NTK}/critic": [3.0, 3.0, math.nan]})
    run(tmp_path, "adam", 2, [1.0], {f"{NTK}/actor": [4.0, math.inf, 4.0]})
    (arm,) = read(tmp_path)
    steps, seeds = curves(arm.results, f"{NTK}/*")
    np.testing.assert_array_equal(steps, [0.0, 100.0, 200.0])
    np.testing.assert_array_equal(seeds, [[2.0, 2.0, math.nan], [4.0, math.inf, 4.0]])
    middle, low, high = comparison_figures._interval(np.where(np.isfinite(seeds).all(0), seeds, np.nan))
    np.testing.assert_array_equal(
        [middle, low, high], [[3, math.nan, math.nan], [2, math.nan, math.nan], [4, math.nan, math.nan]]
    )


def test_an_arm_without_a_score_is_no_row_of_zeros(tmp_path):
    run(tmp_path, "adam", 1, [1.0])
    run(tmp_path, "muon", 1)
    table = comparison_tables.table(
        [*read(tmp_path)], {"mean return": comparison_tables._iqm_cell("score/return_auc")}
    )
    assert cells(table)["muon"] == ["1", "-"]
    assert isinstance(read(tmp_path)[0], Arm)


def test_supervised_runs_are_compared(tmp_path, capsys):
    words = "--stream.samples 64 --stream.epochs 2 --num-tasks 3 --batch-size 16 --network.hidden 8"
    for optim in ("adam", "adamo"):
        flags = [f"optim:{optim}", *words.split(), "--runs-dir", str(tmp_path), "--probes.no-pictures"]
        supervised.main(cli(supervised.Args, {}, flags))
    capsys.readouterr()
    assert compare.main(Compare((tmp_path,))) == 0
    output = capsys.readouterr()
    assert "SUPERVISED on digits-random-labels" in output.out
    assert "adamo" in output.out
    assert "left out" not in output.err
    assert (tmp_path / "comparison.png").exists()
    panels = comparison_figures.panels_of(read(tmp_path))
    assert {"online accuracy", "accuracy over each visit"} < panels.keys()
    assert "return over each visit" not in panels


@pytest.mark.parametrize(
    ("first", "root"),
    [
        ("runs/stream/ppo/adam/s1", "runs"),
        ("runs/stream/ppo/adam/run", "runs/stream/ppo/adam"),
        ("runs/stream", "runs/stream"),
    ],
)
def test_what_is_written_stands_beside_the_runs(first, root, tmp_path):
    (tmp_path / first).mkdir(parents=True)
    if first != "runs/stream":
        (tmp_path / first / "args.json").write_text("{}")
    assert Compare((tmp_path / first,)).root == (tmp_path / root).resolve()


def test_of_a_run_near_the_root_the_parent_is_meant(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert Compare((Path("/s1"),)).root == Path("/")


def test_a_run_that_was_not_finite_is_one_run_beside_its_crash_bundle(tmp_path, capsys):
    run(tmp_path, "adam", 1, [1.0, 2.0])
    crashed = run(tmp_path, "adam", 2, [1.0], visits=2)
    save_crash(crashed, 1_500, ["losses"], {"losses": torch.tensor([math.nan])})
    assert compare.main(Compare((tmp_path,))) == 0
    output = capsys.readouterr()
    assert output.out.count("## ") == 1
    assert "crash" not in output.err
