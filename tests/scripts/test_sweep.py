"""The sweep's summary: what another process trains is no failure."""

from pathlib import Path

import pytest

from neoteny.runners.disk.exit_codes import ExitCode
from neoteny.scripts import sweep


def finish(optim):
    folder = Path("runs/cartpole-rotations/ppo") / optim / "s1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").touch()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Run folders in an empty working directory; commands are not run, but end with given codes."""
    monkeypatch.chdir(tmp_path)
    codes = {}

    def run_all(commands, jobs, instead):
        ended = [instead(number) for number in range(len(commands))]
        if "finished" in codes:
            finish(codes["finished"])
        return [codes["each"][number] if code is None else code for number, code in enumerate(ended)]

    monkeypatch.setattr(sweep, "run_all", run_all)
    return codes


def test_what_another_process_trains_is_no_failure(runs, capsys):
    runs |= {"each": [0, int(ExitCode.TAKEN)], "finished": "adam"}
    assert sweep.main(sweep.Sweep(seeds=(1,))) == 0
    assert (
        "1 runs done, 0 were finished before, 0 failed, 1 are trained by another" in capsys.readouterr().out
    )


def test_a_run_without_a_summary_has_failed_whatever_its_code(runs, capsys):
    runs |= {"each": [0, 0], "finished": "adam"}
    assert sweep.main(sweep.Sweep(seeds=(1,))) == 1
    assert "1 runs done, 0 were finished before, 1 failed\nfailed: " in capsys.readouterr().out


def test_a_run_that_another_sweep_finished_meanwhile_is_done(runs, monkeypatch, capsys):
    def finished_by_another(commands, jobs, instead):
        for optim in ("adam", "adamo"):
            finish(optim)
        return [instead(number) for number in range(len(commands))]

    monkeypatch.setattr(sweep, "run_all", finished_by_another)
    assert sweep.main(sweep.Sweep(seeds=(1,))) == 0
    assert "2 runs done, 0 were finished before, 0 failed" in capsys.readouterr().out
    assert sweep.main(sweep.Sweep(seeds=(1,))) == 0  # nothing is left to do
    assert "0 runs done, 2 were finished before" in capsys.readouterr().out


def test_at_least_one_job():
    with pytest.raises(ValueError, match="--jobs must be at least 1"):
        sweep.Sweep(jobs=0)


def test_a_run_that_another_sweep_is_training_is_not_started(runs, monkeypatch, capsys):
    """Two sweeps on one folder."""
    runs |= {"each": [0, 0], "finished": "adam"}
    monkeypatch.setattr(sweep, "is_running", lambda command, folder: "adamo" in folder.parts)
    assert sweep.main(sweep.Sweep(seeds=(1,))) == 0
    assert "1 runs done, 0 were finished before, 0 failed, 1 are trained" in capsys.readouterr().out
