"""The sweep as a command: its grid, what it prints, references, tuning. Runs are pretended to be made."""

import json
import re
import shlex
from pathlib import Path

import pytest

from neoteny.agents import ppo, supervised
from neoteny.configs.cli import cli
from neoteny.configs.flags import with_flags
from neoteny.runners.disk.claims import claim
from neoteny.runners.sweep import Outcome, State
from neoteny.scripts import sweep

SHORT = ["--", "--stream.period", "2048", "--total-steps", "4096"]
REFERENCES = ["--reference", "fresh", *SHORT]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Jobs that were made, in an empty working directory; those whose command has a given word fail."""
    monkeypatch.chdir(tmp_path)
    jobs = []

    def run_all(todo, slots, retries):
        outcomes = []
        for job in todo:
            jobs.append(job)
            words = job.command[2:]
            if "lr1" in " ".join(words):
                outcomes.append(Outcome(State.FAILED, "not finite"))
                continue
            lr = float(words[words.index("--lr") + 1]) if "--lr" in words else 1e-3
            job.path.mkdir(parents=True)
            (job.path / "summary.json").write_text(json.dumps({"score/return_auc": -abs(lr - 1e-3)}))
            outcomes.append(Outcome(State.DONE))
        return outcomes

    monkeypatch.setattr(sweep, "run_all", run_all)
    return jobs


def notes(jobs):
    return [job.path.parent.name for job in jobs]


def refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep.run(words)
    assert ended.value.code == 2
    assert not Path("runs").exists()
    return capsys.readouterr().err


def test_finished_runs_are_skipped_and_failed_ones_are_listed(made, capsys):
    words = ["--optims", "adam", "--seeds", "1", "2", "--over", "lr", "1", "1e-3"]
    assert sweep.run(words) == 1
    printed = capsys.readouterr().out
    assert "2 runs done, 0 were finished before, 2 failed" in printed
    assert len(re.findall(r"failed: .* --lr 1 .*: not finite", printed)) == 2
    assert sweep.run(words) == 1
    assert "0 runs done, 2 were finished before, 2 failed" in capsys.readouterr().out
    assert len(made) == 6


def test_what_another_process_trains_is_no_failure(made, monkeypatch, capsys):
    monkeypatch.setattr(
        sweep, "run_all", lambda todo, *_: [Outcome(State.DONE_ELSEWHERE), Outcome(State.TAKEN)]
    )
    assert sweep.run(["--seeds", "1"]) == 0
    assert "1 runs done, 0 were finished before, 0 failed, 1 are trained by another process" in (
        capsys.readouterr().out
    )


def test_a_stopped_sweep_asks_to_be_run_again(made, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "run_all", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert sweep.run(["--seeds", "1"]) == 75
    assert "run the same command to resume" in capsys.readouterr().out


def test_the_grid_has_all_that_may_be_combined():
    words = ["--agents", "ppo", "dqn", "--presets", "grid-layouts-small", "--streams", "cartpole-gravity"]
    settings = sweep.script_args(
        sweep.Sweep, [*words, "--methods", "none", "--over", "optim.iso", "0.1", "0.2"]
    )
    arms = sweep.arms_of(settings, [])
    points = sweep.points_of(settings, arms)
    assert len(arms) == 2 * 2 * 2
    assert len(points) == 2 * 2 * (1 + 2)
    assert len({point.folder(1) for point in points}) == len(points)


def test_a_dry_run_prints_commands_and_what_has_been_done(made, capsys):
    assert sweep.run(["--seeds", "1", *SHORT]) == 0
    assert sweep.run(["--seeds", "2", "--optims", "adam", *SHORT]) == 0
    capsys.readouterr()
    (Path("runs/cartpole-rotations/ppo/adamo/s2/attempts")).mkdir(parents=True)
    (Path("runs/cartpole-rotations/ppo/adamo/s2/attempts/000001.json")).touch()
    held = claim(Path("runs/cartpole-rotations/ppo/adamo/s3"))
    assert sweep.run(["--seeds", "1", "2", "3", "--dry-run", *SHORT]) == 0
    lines = capsys.readouterr().out.splitlines()
    held.release()
    states = [line.rpartition("# ")[2] for line in lines]
    assert states == ["finished", "finished", "finished", "interrupted", "not started", "running"]
    words = shlex.split(lines[3].partition("  #")[0])
    assert words[1].endswith("agents/ppo.py")
    assert cli(ppo.Args, ppo.PRESETS, words[2:]).seed == 2


def test_only_one_run(made):
    assert sweep.run(["--seeds", "1", "2", "--only", "2"]) == 0
    assert [(job.path.parent.name, job.path.name) for job in made] == [("adam", "s2")]


REFUSED = {
    "--jobs 0": "--jobs must be at least 1",
    "--gpus-per-run 2": "--gpus-per-run must be at least 0 and at most 1",
    "--gpus-per-run 0.5": "for runs on a GPU",
    "--arms adams": "there is no arm 'adams'; similar: adam",
    "--arms adam --methods l2": "take neither --optims nor --methods",
    "--over lr": "--over takes a flag and its values",
    "--over lr 1 --over lr 2": "has a flag twice",
    "--over learning-rate 1 2": "there is no flag --learning-rate",
    "--over optim.momentum 1 2": "--optim.momentum is a flag of optim:muon",
    "--over lr 1e-4..1e-2": "which needs --tune-on",
    "--optims adamo --over optim.iso 0 --over optim.iso-scale 1 2": "--optim.iso is 0",
    "--only 6": "--only must be at least 0 and below 6",
    "--trials 3": "do nothing without --tune-on",
    "--tune-on 0.2": "--tune-on needs --over",
    "--tune-on 0.2 --over lr 1e-3 --tune-seeds 3": "must differ, but share [3]",
    "--tune-on 0.2 --over lr 1e-3 --tune-seeds 9 --only 1": "cannot be combined",
    "--tune-on 2 --over lr 1e-3 --tune-seeds 9": "--tune-on must be above 0 and at most 1",
    "--tune-on 0.2 --over optim.iso 0.1 0.2 --tune-seeds 9": "1 for ",
    "--streams CartPole-v1 --reference fresh": "never does",
    "--reference fresh -- --stream.period 512": "must make at least one update",
    "--presets cartpole-rotations vectors": "two runs would share the folder",
    "-- --seed 3": "the sweep sets --seed",
    "--cluster auto --jobs 3": "--jobs is for one machine",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_meant_is_refused(words, made, capsys):
    assert REFUSED[words] in refused(words.split(), capsys)


def test_references_are_shared_between_arms_and_sweeps(made, capsys):
    assert sweep.run(["--seeds", "1", "2", *REFERENCES]) == 0
    # of 2 seeds, with 2 tasks each: Adam, which is its own base, and AdamO
    assert "8 references, of which 0 are there already" in capsys.readouterr().out
    assert len(made) == 4 + 8
    assert sweep.run(["--seeds", "1", "2", "--optims", "muon", *REFERENCES]) == 0
    assert "8 references, of which 4 are there already" in capsys.readouterr().out
    assert sweep.run(["--seeds", "1", "--optims", "adam", "--methods", "isometry", *REFERENCES]) == 0
    assert "4 references, of which 2 are there already" in capsys.readouterr().out
    other = ["--network.hidden", "8", "--note", "small"]
    assert sweep.run(["--seeds", "1", "--optims", "adam", *REFERENCES, *other]) == 0
    assert "2 references, of which 0 are there already" in capsys.readouterr().out


def test_each_run_names_its_references(made):
    assert sweep.run(["--seeds", "1", "--optims", "adamo", *REFERENCES]) == 0
    run = Path("runs/cartpole-rotations/ppo/adamo/s1")
    found = json.loads((run / "references.json").read_text())
    for kind, optim in (("base", "adam"), ("own", "adamo")):
        assert sorted(found[kind]) == ["0", "1"]
        for task, path in found[kind].items():
            folder = (run / path).resolve()
            assert (folder / "summary.json").exists()
            assert folder.parents[3] == Path("runs/references").resolve()
            assert re.fullmatch(rf"{optim}-task{task}-\w{{10}}", folder.parent.name)


def test_the_learning_rate_of_the_base_is_not_that_of_the_arm(made):
    words = ["--over", "lr", "1e-3", "3e-3", "--over", "num-envs", "8", "16"]
    assert sweep.run(["--seeds", "1", "--optims", "adamo", *words, *REFERENCES]) == 0
    base = {job.path for job in made if "references" in job.path.parts and "optim:adam" in job.command}
    assert len(base) == 2 * 2  # tasks, numbers of environments


GRID = ["--over", "lr", "1", "1e-3", "1e-2"]
TUNE = [
    "--optims",
    "adam",
    "adamo",
    "--tune-on",
    "0.25",
    "--tune-seeds",
    "7",
    "8",
    "--seeds",
    "1",
    "2",
    *GRID,
]


def test_tuning_picks_on_the_first_part_and_trains_other_seeds_on_the_whole(made, capsys):
    assert sweep.run([*TUNE, *SHORT]) == 0
    trials, runs = made[:12], made[12:]
    for job in trials:
        assert job.path.parts[:2] == ("runs", "tuning")
        assert job.path.name in ("s7", "s8")
    assert cli(ppo.Args, ppo.PRESETS, trials[-1].command[2:]).total_steps == 1024
    assert notes(runs) == ["adam-lr0.001", "adamo-lr0.001"] * 2
    found = json.loads(Path("runs/tuning/tuning.json").read_text())
    assert sorted(found) == ["cartpole-rotations/ppo/adam", "cartpole-rotations/ppo/adamo"]
    arm = found["cartpole-rotations/ppo/adam"]
    assert (arm["first_part"], arm["chosen"]) == (0.25, {"lr": "1e-3"})
    assert [trial["flags"]["lr"] for trial in arm["trials"]] == ["1", "1e-3", "1e-2"]
    assert [trial["score"] for trial in arm["trials"]] == [None, 0.0, pytest.approx(-0.009)]
    assert "adamo: lr 1e-3, the best of 3 trials" in capsys.readouterr().out


def test_arms_tune_what_is_their_own_and_share_one_base(made, capsys):
    arms = ["--arms", "adam", "l2", "layer_norm", "--tune-on", "0.25", "--tune-seeds", "7", "--seeds", "1"]
    assert sweep.run([*arms, "--reference", "base", *SHORT]) == 0
    assert notes(made[:9]) == [
        *("adam-lr0.0003", "adam-lr0.001", "adam-lr0.003"),
        *("adam-l2-coef0.0001", "adam-l2-coef0.001", "adam-l2-coef0.01"),
        *("adam-layer_norm-lr0.0003", "adam-layer_norm-lr0.001", "adam-layer_norm-lr0.003"),
    ]
    assert "2 references, of which 0 are there already" in capsys.readouterr().out
    assert notes(made[9:12]) == ["adam-lr0.001", "adam-l2-coef0.0001", "adam-layer_norm-lr0.001"]
    references = made[12:]
    assert len(references) == 2
    for job in references:
        args = cli(ppo.Args, ppo.PRESETS, job.command[2:])
        assert (args.lr, args.network.norm, args.methods) == (1e-3, "none", ())
    before = len(made)
    assert sweep.run([*arms[:2], "redo", *arms[4:], "--reference", "base", *SHORT]) == 0
    assert len(made) == before + 4  # three trials and a run of ReDo


def test_tuning_goes_on_where_it_was_stopped(made):
    assert sweep.run([*TUNE, *SHORT]) == 0
    before = len(made)
    assert sweep.run([*TUNE, *SHORT]) == 0
    assert notes(made[before:]) == ["adam-lr1", "adamo-lr1"] * 2  # which failed


def test_a_dry_run_of_tuning_lists_the_first_trials(made, capsys):
    assert sweep.run([*TUNE, "--dry-run", *SHORT]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.endswith("# not started")]) == 12
    assert "depend on the results of these" in lines[-1]
    assert not made


def test_an_arm_whose_trials_all_failed_is_not_trained_and_fails_the_sweep(made, capsys):
    words = ["--over", "lr", "1", "10", "--tune-on", "0.25", "--tune-seeds", "7"]
    assert sweep.run(["--optims", "adam", *words, *SHORT]) == 1
    assert "all 2 trials failed" in capsys.readouterr().out


def test_seeds_are_trained_in_one_process_where_that_is_possible(made, capsys):
    words = ["--agents", "supervised", "--preset", "digits-random-labels", "--optims", "adam"]
    words += ["--methods", "none", "snr", "--seeds", "1", "2", "3", "4", "--batch-seeds", "3", "--dry-run"]
    assert sweep.run([*words, "--", "--num-tasks", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line.partition("  #")[0]) for line in lines if "  #" in line]
    trained = [cli(supervised.Args, supervised.PRESETS, words[2:]) for words in commands]
    alone = [each.seed for each in trained if not each.seeds]
    assert [each.seeds for each in trained if each.seeds] == [(1, 2, 3)]
    assert sorted(alone) == [1, 2, 3, 4, 4]
    assert "adam-snr: with snr seeds are trained one by one" in "\n".join(lines)


def test_a_job_of_several_seeds_is_done_when_all_have_finished(tmp_path):
    folders = [tmp_path / f"s{seed}" for seed in (1, 2)]
    job = sweep.Job((), folders[1], others=(folders[0],))
    for folder, is_done in zip(reversed(folders), (False, True)):
        folder.mkdir()
        (folder / "summary.json").touch()
        assert job.is_done() is is_done


FEW = "--agents supervised --preset digits-random-labels --optims adam --seeds 1"
TINY = "--stream.samples 32 --stream.epochs 1 --num-tasks 2 --network.hidden 8 --probes.every 0"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], ""),
        (["--probes.every", "1"], ""),
        (["--overwrite"], ""),
        (["--network.norm", "layer"], "with network.norm none, not layer"),
        (["--batch-size", "8"], "with batch_size 32, not 8"),
        (["--num-tasks", "3"], "with num_tasks 2, not 3"),
    ],
)
def test_a_finished_run_of_other_arguments_is_never_taken_for_the_one_that_was_meant(
    words, sentence, tmp_path, capsys
):
    flags = [*TINY.split(), "--runs-dir", str(tmp_path)]
    supervised.main(cli(supervised.Args, supervised.PRESETS, ["optim:adam", *flags, "--seed", "1"]))
    capsys.readouterr()
    meant = with_flags(flags, words)
    if sentence:
        with pytest.raises(SystemExit) as exit:
            sweep.run([*FEW.split(), "--", *meant])
        assert exit.value.code == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    else:
        assert sweep.run([*FEW.split(), "--dry-run", "--", *meant]) == 0
