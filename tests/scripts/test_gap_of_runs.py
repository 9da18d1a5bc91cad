"""The plasticity gap of a real sweep: what compare shows is what the summaries of its runs say."""

import csv
import json
import statistics
from pathlib import Path

import pytest

from neoteny.agents import ppo
from neoteny.configs.cli import cli
from neoteny.configs.flags import with_flags
from neoteny.runners.sweep import Outcome, State
from neoteny.scripts import compare, sweep
from neoteny.scripts.compare import Compare
from tests.tiny_runs import FLAGS

SEEDS, TASKS = (1, 2), (0, 1, 2)
TINY = ["--", "--lr", "0.03", *FLAGS.removesuffix(" optim:adam").split()]
MEASURES = {"plasticity_gap_at_end": "return_at_end", "plasticity_gap_auc": "return_auc"}


def train(jobs, slots, retries):
    """Make the runs of a sweep, in this process."""
    for job in jobs:
        ppo.main(cli(ppo.Args, ppo.PRESETS, job.command[2:]))
    return [Outcome(State.DONE) for _ in jobs]


def swept(capsys, *words):
    """Number of references of a sweep, and of those that were there before."""
    grid = ["--reference", "fresh", "--seeds", *map(str, SEEDS)]
    assert sweep.run([*grid, *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " references, of which " in line]
    return int(line.split()[0]), int(line.split()[4])


def visits(folder):
    """Scores of the visits of a finished run."""
    return json.loads((folder / "summary.json").read_text())["visits"]


def gap_by_hand(optim, fresh, seed, measure):
    """The mean gap of a run, from the names of folders and what is in them."""
    stream = "cartpole-rotations/ppo"
    gaps = []
    for visit in visits(Path(f"runs/{stream}/{optim}/s{seed}")):
        (path,) = Path(f"runs/references/{stream}").glob(f"{fresh}-task{visit['task']}-*/s{seed}")
        (alone,) = visits(path)
        assert (alone["task"], alone["end"]) == (visit["task"], 96)  # six updates of 16 steps
        gaps.append(alone[measure] - visit[measure])
    assert len(gaps) == len(TASKS)
    return statistics.fmean(gaps)


@pytest.mark.slow
def test_the_gaps_of_a_sweep_are_those_of_its_summaries(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "run_all", train)
    pairs = len(SEEDS) * len(TASKS)
    assert swept(capsys, "--optims", "muon", *TINY) == (2 * pairs, 0)  # of both kinds
    again = swept(capsys, "--optims", "adam", "--methods", "none", "isometry", *TINY)
    assert again == (2 * pairs, pairs)  # those of the method are new, those of Adam are there
    assert compare.main(Compare((Path("runs"),), pooled=False)) == 0
    with open("runs/comparison.csv") as file:
        rows = {(row["arm"], int(row["seed"])): row for row in csv.DictReader(file)}
    assert rows.keys() == {(arm, seed) for arm in ("adam", "adam-isometry", "muon") for seed in SEEDS}
    for (arm, seed), row in rows.items():
        for kind, fresh in (("base", "adam"), ("own", arm)):
            for score, measure in MEASURES.items():
                shown = float(row[f"score/{score}/{kind}"])
                assert shown == pytest.approx(gap_by_hand(arm, fresh, seed, measure))
    base, own = (rows["muon", 1][f"score/plasticity_gap_auc/{kind}"] for kind in ("base", "own"))
    assert base != own
    others = with_flags(TINY, ["--note", "other", "--network.hidden", "8"])
    assert swept(capsys, "--optims", "muon", *others) == (2 * pairs, 0)
