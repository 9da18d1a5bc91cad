"""Many runs at once: signals, retries, cores and GPUs, and sweeps that share a folder or are killed."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from neoteny.agents import ppo
from neoteny.runners import sweep
from neoteny.runners.disk.claims import claim
from neoteny.runners.disk.exit_codes import ExitCode
from neoteny.runners.disk.preemption import NAMES
from neoteny.runners.sweep import Job, Outcome, State, make_slots, run_all, usable_cores
from tests.killed_sweep import disturb, left, real_jobs, started, stub_jobs, summary, wrong

posix = pytest.mark.skipif(os.name != "posix", reason="of signals in Linux")
pytestmark = pytest.mark.filterwarnings("ignore:resource_tracker")

CHILD = """
import os, pathlib, signal, sys, time
from neoteny.runners.disk.preemption import Preemption, end_at_signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)
end_at_signals()
asked = Preemption()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
while not asked.signal:
    time.sleep(0.01)
time.sleep(0.3)  # to save
pathlib.Path(sys.argv[1]).write_text("saved after " + asked.signal)
sys.exit(75)
"""
PARENT = """
import pathlib, signal, sys
from neoteny.runners.disk.preemption import end_at_signals
end_at_signals()  # as scripts/sweep.py does
from neoteny.runners.sweep import Job, make_slots, run_all
signal.signal(signal.SIGHUP, signal.SIG_DFL)
runs = pathlib.Path("runs")
jobs = [Job((sys.executable, "child.py", name), runs / name) for name in ("one", "two", "three")]
try:
    run_all(jobs, make_slots(2))
except KeyboardInterrupt:
    sys.exit(75)
"""


@pytest.fixture
def parent(tmp_path):
    """A process that runs two of three commands, once they are there."""
    (tmp_path / "child.py").write_text(CHILD)
    process = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path)
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("one", "two")):
        assert process.poll() is None
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def ends(process, folder, name):
    assert process.wait(20) == 75
    assert [(folder / each).read_text() for each in ("one", "two")] == 2 * [f"saved after {name}"]
    assert not (folder / "three").exists()


@pytest.mark.slow
@posix
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"SIGINT"}))
def test_a_signal_to_a_sweep_is_passed_on_and_waits_for_the_runs_to_save(name, parent, tmp_path):
    parent.send_signal(getattr(signal, name))
    ends(parent, tmp_path, name)


@pytest.mark.slow
@posix
def test_a_signal_to_all_processes_of_a_sweep_counts_once(parent, tmp_path):
    for child in [int((tmp_path / name).read_text()) for name in ("one", "two")]:
        os.kill(child, signal.SIGTERM)
    time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    ends(parent, tmp_path, "SIGTERM")


def job(folder, script, *words):
    """A job that runs a line of Python, in which `me` is its folder."""
    begin = "import os, pathlib, sys; me = pathlib.Path(sys.argv[1]); "
    return Job((sys.executable, "-c", begin + script, str(folder), *words), folder)


FINISH = "me.mkdir(exist_ok=True); (me / 'summary.json').touch(); "
ONCE = "first = not me.with_name('began').exists(); me.with_name('began').touch(); "


def test_a_preempted_run_goes_on_and_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    made = run_all([job(tmp_path / "a", f"{ONCE}first and sys.exit(75); {FINISH}")], make_slots(2), retries=0)
    assert [each.state for each in made] == [State.DONE]
    assert signal.getsignal(signal.SIGTERM) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "began"]  # no failure, no claim left


def test_a_crashed_run_is_tried_again_and_the_reason_is_kept(tmp_path):
    crash = f"{ONCE}first and sys.exit('out of luck'); {FINISH}"
    (made,) = run_all([job(tmp_path / "a", crash)], make_slots(1), retries=1)
    assert made.state == State.DONE
    (failure,) = json.loads((tmp_path / "a.failures.json").read_text())["failures"]
    assert failure["reason"] == "exit code 1: out of luck"


ENDINGS = {
    "sys.exit(1)": ("exit code 1", 3),
    "os._exit(0)": ("ended without a summary", 3),
    "os.kill(os.getpid(), 9)": ("killed by SIGKILL", 3),
    "print('bad flag', file=sys.stderr); sys.exit(2)": ("exit code 2: bad flag", 1),
    "sys.exit(70)": ("exit code 70", 1),
}


@pytest.mark.parametrize("script", ENDINGS)
def test_tries_are_bounded_and_what_would_fail_again_is_tried_once(script, tmp_path, capfd):
    reason, tries = ENDINGS[script]
    jobs = [job(tmp_path / "bad", script), job(tmp_path / "good", FINISH)]
    made = run_all(jobs, make_slots(1), retries=2)
    assert (made[0].state, made[0].reason, made[1].state) == (State.FAILED, reason, State.DONE)
    assert len(json.loads((tmp_path / "bad.failures.json").read_text())["failures"]) == tries
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "[2/2]" in line and "good: done after" in line]
    assert [line for line in lines if "[1/2]" in line and line.endswith(f"s: {reason}")]


def test_what_another_process_has_taken_over_is_no_failure(tmp_path):
    (made,) = run_all([job(tmp_path / "a", f"sys.exit({int(ExitCode.TAKEN)})")], make_slots(1))
    assert made.state == State.TAKEN
    assert not list(tmp_path.glob("*.json"))


def test_a_run_that_is_to_be_replaced_is_not_done_before_it_was(tmp_path):
    old = stub_jobs(tmp_path, 1)[0]
    old.path.mkdir()
    (old.path / "summary.json").touch()
    assert old.is_done()
    new = Job(old.command, old.path, replaces=old.finished_at())
    assert not new.is_done()
    os.utime(old.path / "summary.json", (1, 1))
    assert new.is_done()


def test_a_run_that_another_sweep_makes_is_waited_for(tmp_path):
    (one,) = stub_jobs(tmp_path, 1)
    held, made = claim(one.path), []
    thread = threading.Thread(target=lambda: made.extend(run_all([one], make_slots(1))))
    thread.start()
    time.sleep(0.1)
    assert not one.path.exists()
    one.path.mkdir()
    (one.path / "summary.json").touch()
    held.release()
    thread.join()
    assert made == [Outcome(State.DONE_ELSEWHERE)]


def test_two_sweeps_in_the_same_moment_share_the_work(tmp_path):
    jobs = stub_jobs(tmp_path, 6, steps=5)
    processes = [started(jobs) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [len(list((each.path / "attempts").iterdir())) for each in jobs] == [1] * 6
    assert not wrong(jobs)


@posix
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_runs_and_sweeps_leave_what_undisturbed_ones_do(seed, tmp_path):
    """tests/killed_sweep.py does it with more of them."""
    calm, wild = (stub_jobs(tmp_path / name, 4, steps=30, pause=0.005) for name in ("calm", "wild"))
    run_all(calm, make_slots(4))
    killed = disturb(wild, kills=8, sweeps=2, rng=random.Random(seed), pause=0.05)
    assert list(map(summary, wild)) == list(map(summary, calm))
    assert not wrong(wild)
    attempts = sum(len(list((each.path / "attempts").iterdir())) for each in wild)
    assert attempts <= len(wild) + killed.count("run")  # those of killed sweeps went on


@pytest.mark.slow
@posix
def test_killed_real_runs_leave_what_undisturbed_ones_do(tmp_path):
    (_, calm), (jobs, wild) = (real_jobs(tmp_path / name, 2, steps=2048) for name in ("calm", "wild"))
    for args in calm:
        ppo.main(args)
    killed = disturb(jobs, kills=3, sweeps=1, rng=random.Random(3), pause=0.5, limit=600)
    assert killed
    for one, other in zip(calm, wild):
        assert left(other, is_real=True) == left(one, is_real=True)


def test_bars_of_runs_become_lines_and_one_bar_for_all(monkeypatch, tmp_path):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    with contextlib.redirect_stderr(terminal):
        run_all(stub_jobs(tmp_path, 2, steps=3), make_slots(2))
    shown = terminal.getvalue()
    assert "66%|  | 2/3" in shown
    assert "2.0/2" in shown
    assert shown.count("done after") == 2


def test_only_cores_that_may_be_used_are_counted(monkeypatch):
    monkeypatch.setattr(sweep, "_quotas", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 6}, raising=False)
    assert usable_cores() == 3
    monkeypatch.setattr(sweep, "_quotas", lambda: [2.5, 7.0])
    assert usable_cores() == 2
    monkeypatch.setattr(sweep, "_quotas", lambda: [0.5])
    assert usable_cores() == 1
    monkeypatch.setattr(sweep, "_quotas", list)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("own", "files", "quotas"),
    [
        ("0::/jobs/mine\n", {"jobs/cpu.max": "150000 100000", "jobs/mine/cpu.max": "max 100000"}, [1.5]),
        ("0::/gone\n", {"cpu.max": "400000 100000"}, [4.0]),
        ("3:cpu,cpuacct:/a\n2:memory:/b\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000"}, [0.5]),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1"}, []),
        ("", {}, []),
    ],
)
def test_quotas_of_control_groups(own, files, quotas, tmp_path):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        if "quota" in name:
            path.with_name("cpu.cfs_period_us").write_text("100000\n")
    assert list(sweep._quotas(tmp_path / "root", tmp_path / "own")) == quotas


def test_runs_share_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    names = [slot["CUDA_VISIBLE_DEVICES"] for slot in make_slots(100, gpus_per_run=0.4)]
    assert names == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    names = [slot["CUDA_VISIBLE_DEVICES"] for slot in make_slots(4, gpus_per_run=0.5)]
    assert names == ["GPU-a", "GPU-b", "GPU-c", "GPU-a"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a GPU"):
        make_slots(4, gpus_per_run=0.5)
