"""The isometry table says what was measured: means by hand, what is not finite, what is missing."""

import math
import re

import numpy as np
import pytest

from neoteny.runners.disk.events import EventWriter
from neoteny.scripts import compare, isometry_table

MAX, MEAN, MIN = (isometry_table.ROWS[row] for row in isometry_table.SPECTRUM)
NTK = "isometry/ntk_log10_cond"


def finished(folder, optimizer, seed, measured, scores=()):
    """A run with measurements at steps 0, 100, ...: tag -> values."""
    path = folder / "stream" / "ppo" / optimizer / f"s{seed}"
    path.mkdir(parents=True)
    writer = EventWriter(path, 1)
    for tag, values in measured.items():
        for i, value in enumerate(values):
            writer.metrics({tag: value}, 100 * i)
    writer.metrics({"spectra/actor.linear1": [1.0, 2.0], **dict(scores)}, 400)
    writer.close()
    (path / "summary.json").write_text("{}")


def rows(table):
    """The cells of a table: row -> one for each optimizer."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: cells for name, *cells in lines}


def test_the_last_quarter_and_the_first_measurement_over_seeds(tmp_path):
    scores = {"score/return_auc": 10.0}
    finished(tmp_path, "adam", 1, {MAX: [1.0, 9.0, 9.0, 2.0, 4.0]}, scores)
    finished(tmp_path, "adam", 2, {MAX: [2.0, 9.0, 9.0, 4.0, 6.0]}, {"score/return_auc": 14.0})
    finished(tmp_path, "muon", 7, {MAX: [1.5, 2.5]})
    output = rows(isometry_table.table(isometry_table.read_runs((tmp_path,))))
    assert output[""] == ["adam", "muon"]
    assert output["seeds"] == ["2", "1"]
    # 3 and 5: mean 4, standard error 1, t of one degree of freedom 12.7; one seed has no interval
    assert output["sigma max"] == ["4 ± 12.7 (from 1.5)", "2.5 (from 1.5)"]
    assert output["mean return"] == ["12.00 ± 25.41", "-"]
    assert output["sigma min"] == output["NTK log10 cond"] == ["-", "-"]


def test_parts_are_averaged(tmp_path):
    measured = {
        "plasticity/feature_effective_rank/actor": [3.0, 5.0],
        "plasticity/feature_effective_rank/critic": [5.0, 8.0],
        "plasticity/feature_effective_rank_squared/actor": [99.0, 99.0],
        "isometry/jacobian_distance/actor.input_output/median": [1.0, 2.0],
        "isometry/jacobian_distance/actor.input_output/p95": [99.0, 99.0],
        "isometry/jacobian_distance/actor.linear1/median": [99.0, 99.0],
    }
    finished(tmp_path, "adam", 1, measured)
    output = rows(isometry_table.table(isometry_table.read_runs((tmp_path,))))
    assert output["feature effective rank"] == ["6.5 (from 4)"]
    assert output["Jacobian distance"] == ["2 (from 1)"]


def test_what_is_not_finite_is_counted_and_never_averaged_away(tmp_path):
    tag = "isometry/log10_cond/max"
    for seed, last in enumerate((1.0, math.inf, math.inf, math.nan)):
        finished(
            tmp_path,
            "adam",
            seed,
            {tag: [1.0, 1.0, 1.0, 1.0, last], f"{NTK}/q": [math.inf, 2.0]},
        )
    output = rows(isometry_table.table(isometry_table.read_runs((tmp_path,))))
    assert output["log10 cond"] == ["inf (2 of 4), nan (1 of 4) (from 1)"]
    assert output["NTK log10 cond"] == ["2 ± 0 (from inf)"]


def test_held_measures(tmp_path):
    finished(tmp_path, "adamo", 1, {MAX: [2.0, 2.8, 2.0], MEAN: [1.0, 1.5], MIN: [1.0, 0.7]})
    finished(tmp_path, "adamo", 2, {MAX: [2.0, 1.6, 2.0], MEAN: [1.0, 1.0], MIN: [1.0, 0.5, 1.0]})
    finished(tmp_path, "adam", 1, {MAX: [2.0, 20.0], MEAN: [1.0, math.nan], MIN: [1.0, 0.0]})
    finished(tmp_path, "old", 1, {MAX: [2.0, 2.0]})
    finished(tmp_path, "unmeasured", 1, {"a": [1.0]})
    _, _, *lines = isometry_table.held(isometry_table.read_runs((tmp_path,)))
    assert lines == [
        "* adam: none (farthest, as a factor: sigma max 10, mean squared sigma nan, sigma min inf)",
        "* adamo: sigma max, mean squared sigma "
        "(farthest, as a factor: sigma max 1.4, mean squared sigma 1.5, sigma min 2)",
        "* old: sigma max (farthest, as a factor: sigma max 1)",
    ]


def test_curves_have_the_mean_the_interval_and_gaps(tmp_path):
    finished(
        tmp_path,
        "adam",
        1,
        {
            f"{NTK}/actor": [1.0, 1.0, 1.0],
            f"{NTK}/critic": [3.0, 3.0, math.nan],
        },
    )
    finished(tmp_path, "adam", 2, {f"{NTK}/actor": [4.0, math.inf, 4.0]})
    points = compare.with_tag(compare.read_runs((tmp_path,)), f"{NTK}/*")
    mean, half = compare._mean_and_half(points)
    np.testing.assert_allclose(mean, [3.0, math.nan, math.nan])
    np.testing.assert_allclose(half, [12.706, math.nan, math.nan], rtol=1e-4)


def test_the_command_prints_a_table_and_draws_what_there_is(tmp_path, capsys):
    for stream in ("one", "two"):
        for optimizer in ("adam", "adamo"):
            measured = {
                "charts/episodic_return": [1.0, 2.0],
                MAX: [1.0, math.inf],
                f"{NTK}/q": [1.0, 2.0],
            }
            finished(tmp_path / stream, optimizer, 1, measured)
    (tmp_path / "two" / "stream").rename(tmp_path / "two" / "other")
    assert isometry_table.main(isometry_table.IsometryTable((tmp_path,), figure=tmp_path / "table.png")) == 0
    output = capsys.readouterr().out
    assert re.findall("PPO on (.*)", output) == ["other", "stream"]
    for name in ("other", "stream"):
        assert (tmp_path / f"table-{name}-ppo.png").stat().st_size > 10_000


@pytest.mark.parametrize("script", [compare, isometry_table])
def test_no_finished_run_is_refused(script, tmp_path, capsys):
    (tmp_path / "stream" / "ppo" / "adam" / "s1").mkdir(parents=True)
    args = (isometry_table.IsometryTable if script is isometry_table else compare.Compare)((tmp_path,))
    with pytest.raises(SystemExit) as exit:
        script.main(args)
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"error: no finished run below {tmp_path}\n"
