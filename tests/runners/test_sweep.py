"""Many commands at once: signals are passed on, usable cores are counted, two sweeps may share a folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neoteny.runners import sweep
from neoteny.runners.disk.folder import begin_attempt
from neoteny.runners.disk.preemption import NAMES
from neoteny.runners.sweep import is_running, run_all, usable_cores

posix = pytest.mark.skipif(os.name != "posix", reason="of signals in Linux")

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
import signal, sys
from neoteny.runners.sweep import run_all
signal.signal(signal.SIGHUP, signal.SIG_DFL)
commands = [[sys.executable, "child.py", name] for name in ("one", "two", "three")]
try:
    run_all(commands, 2)
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


def test_a_preempted_command_is_run_again_and_handlers_are_put_back(tmp_path):
    script = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); sys.exit(p.exists() or p.touch() or 75)"
    before = signal.getsignal(signal.SIGTERM)
    codes = run_all([[sys.executable, "-c", script, str(tmp_path / name)] for name in "ab"], 2)
    assert codes == [1, 1]
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_need_not_run_is_not_started(tmp_path):
    commands = [[sys.executable, "-c", f"open({str(tmp_path / name)!r}, 'w')"] for name in "ab"]
    assert run_all(commands, 1, {0: 73, 1: None}.get) == [73, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_only_cores_that_may_be_used_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 6}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc")
def test_a_run_is_running_while_its_owner_has_the_same_command(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)", "--seed", "1"]
    assert not is_running(command, tmp_path)
    begin_attempt(tmp_path)  # by this process, whose command is another
    assert not is_running(command, tmp_path)
    process = subprocess.Popen(command)
    try:
        owner = {"host": socket.gethostname(), "pid": process.pid}
        (tmp_path / "attempts" / "000002.json").write_text(json.dumps(owner))
        while Path(f"/proc/{process.pid}/cmdline").read_bytes().count(b"\0") != 5:  # not yet executed
            time.sleep(0.01)
        assert is_running(command, tmp_path)
        assert not is_running([*command[:-1], "2"], tmp_path)
        (tmp_path / "attempts" / "000003.json").write_text(json.dumps({**owner, "host": "elsewhere"}))
        assert not is_running(command, tmp_path)
    finally:
        process.kill()
        process.wait()
    assert not is_running(command, tmp_path)
