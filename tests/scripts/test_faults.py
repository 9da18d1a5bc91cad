"""Runs that are killed come out as if they had been left in peace: a small part of scripts/faults.py."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neoteny.runners.disk import opening
from neoteny.runners.disk.attempts import Attempt
from neoteny.scripts.fault_cases import STOPPED
from neoteny.scripts.faults import Faults, main
from tests.forked import python

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_killed_runs_are_the_same_as_undisturbed_ones(tmp_path):
    words = ("--kills", 8, "--steps", 1024, "--jobs", 1, "--streams", "FaultyWrappers-v0", "grid-layouts")
    done = python(ROOT / "scripts" / "faults.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs lost 0, runs different 0, points duplicated 0, points missing 0" in done.stdout
    assert "2 streams" in done.stdout


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_a_signal_ends_all_its_processes(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "faults.py", "--jobs", "1", "--keep", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.rglob("log.txt")):  # of a run
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (75, b"")
    assert errors.endswith(b"\nstopped by a signal; run the same command again\n")
    assert b"Traceback" not in errors
    words = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(os.fsencode(tmp_path) in each for each in words)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_runs_of_what_users_bring_are_the_same_or_say_that_they_are_not(tmp_path):
    """Memory across episodes, a global generator, code that changes, a MiniGrid class, torch's optimizers."""
    streams = ("FaultyMemory-v0", "FaultyNoise-v0", "FaultyCode-v0", "FaultyRooms-v0")
    words = ("--kills", 22, "--steps", 1024, "--jobs", 1, "--agents", "ppo", "--streams", *streams)
    done = python(ROOT / "scripts" / "faults.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs lost 0, runs different 0, points duplicated 0, points missing 0" in done.stdout
    assert "4 streams" in done.stdout
    runs, inexact = map(int, re.search(r"in (\d+) runs.* are (\d+) runs that said", done.stdout).groups())
    assert 3 <= inexact < runs  # all but those of FaultyRooms
    assert "| code changed before a resume | 1 |" in done.stdout


MENDS = {
    "an older process ends": (Attempt, "is_superseded", property(lambda attempt: False), STOPPED),
    "events are cut on resume": (opening, "cut_event_files", lambda *arguments: None, "SIGKILL"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("mend", MENDS)
def test_what_is_taken_out_is_reported(mend, monkeypatch):
    owner, name, without, fault = MENDS[mend]
    monkeypatch.setattr(owner, name, without)
    faults = Faults(kills=1, agents=("ppo",), streams=("cartpole-rotations",), only=(fault,) * 2)
    assert main(faults) == 1


def test_faults_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="there is no fault 'SIGKIL'; there are: SIGKILL; SIGTERM; "):
        Faults(only=("SIGKILL", "SIGKIL"))


def test_a_crash_is_reproduced(tmp_path):
    words = "--stream.id CartPole-v1 --num-envs 2 --num-steps 8 --minibatches 2 --epochs 1 --total-steps 4096"
    words += " --checkpoint-every 64 --lr 1e9 --max-grad-norm 1e9 optim:adam"  # which soon overflows
    died = python(ROOT / "agents" / "ppo.py", *words.split(), cwd=tmp_path)
    assert died.returncode == 70, died.stderr
    assert "not finite at step" in died.stderr
    (crash,) = tmp_path.glob("runs/**/crash")
    again = python(ROOT / "scripts" / "replay_crash.py", crash, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "as before" in again.stdout
    output = json.loads((crash / "crash.json").read_text())
    (crash / "crash.json").write_text(json.dumps(output | {"step": output["step"] + 16}))
    assert python(ROOT / "scripts" / "replay_crash.py", crash, cwd=tmp_path).returncode == 1


@pytest.mark.parametrize("bundle", [{}, {"crash.json": "{}", "args.json": "[]"}, {"crash.json": "{}"}])
def test_what_is_no_crash_bundle_is_refused(bundle, tmp_path):
    for name, text in bundle.items():
        (tmp_path / name).write_text(text)
    done = python(ROOT / "scripts" / "replay_crash.py", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "is no crash bundle" in done.stderr
    assert "Traceback" not in done.stderr
