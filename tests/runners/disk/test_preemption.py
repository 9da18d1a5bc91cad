"""Signals: from the first statement of an agent's file on, a run that is asked to stop ends with code 75."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neoteny.runners.disk import preemption
from neoteny.runners.disk.preemption import NAMES, Preemption, end_at_signals
from tests.forked import python

ROOT = Path(__file__).resolve().parents[3]
FLAGS = {
    "ppo": "--num-envs 2 --num-steps 8 --minibatches 2 --epochs 1",
    "dqn": "--num-envs 2 --log-every 16 --train-every 4 --learning-starts 64",
}
EARLY = "nothing was written yet; the same command starts the run"


def command(agent, folder):
    """A run of some seconds."""
    common = f"--total-steps 2048 --network.hidden 16 --probes.every 0 --runs-dir {folder}"
    return [sys.executable, str(ROOT / "agents" / f"{agent}.py"), *f"{common} {FLAGS[agent]}".split()]


def catches(pid, number):
    """Whether a process has a handler for a signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def stopped(words, number, delay):
    """Start a process and send it a signal so many seconds after its first statement; its code and output."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not catches(process.pid, signal.SIGUSR2):  # the last to be handled
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    return process.returncode, output


proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


@pytest.mark.slow
@proc
@pytest.mark.parametrize(
    ("agent", "delays"), [("ppo", (0.0, 0.05, 0.5, 1.0, 2.0, 3.0)), ("dqn", (0.0, 0.2, 1.5, 2.5))]
)
def test_sigterm_at_any_moment_ends_with_code_75(agent, delays, tmp_path):
    words, early = command(agent, tmp_path), []
    for delay in delays:
        before = sorted(tmp_path.rglob("*"))
        code, output = stopped(words, signal.SIGTERM, delay)
        if code == 0:
            break  # a fast machine
        assert code == 75, (delay, output)
        assert "Traceback" not in output
        early.append(EARLY in output)
        if early[-1]:
            assert sorted(tmp_path.rglob("*")) == before
        else:
            assert "the same command resumes" in output
    assert early[:2] == [True, True]
    done = python(*words[1:], cwd=tmp_path)
    finished = list(tmp_path.glob("**/summary.json"))
    assert (done.returncode, len(finished)) == (0, 1) or "holds a finished run" in done.stderr, done.stderr


@proc
@pytest.mark.parametrize("name", NAMES)
def test_each_signal_is_caught_during_imports(name, tmp_path):
    code, output = stopped(command("ppo", tmp_path), getattr(signal, name), 0.05)
    assert (code, output) == (75, f"{name}: {EARLY}\n")


@pytest.mark.slow
def test_importing_agents_leaves_signals_alone_and_imports_no_games():
    script = (
        f"import signal\nnumbers = [getattr(signal, name) for name in {NAMES}]\n"
        "before = [signal.getsignal(number) for number in numbers]\n"
        "import neoteny.agents.ppo, neoteny.agents.dqn\n"
        "assert [signal.getsignal(number) for number in numbers] == before\n"
        "import sys\nassert 'ale_py' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_a_script_imports_first_is_light():
    script = (
        "import sys, neoteny.runners.disk.preemption\n"
        "assert not {'torch', 'numpy', 'gymnasium', 'tensorboard', 'tyro'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def handlers():
    return [signal.getsignal(number) for number in preemption.SIGNALS]


def test_after_a_run_signals_do_what_they_did_before_it():
    before = handlers()
    asked = Preemption()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert asked.signal == "SIGUSR1"
    asked.restore()
    assert handlers() == before


def test_after_the_run_of_a_script_signals_do_nothing():
    before = dict(zip(preemption.SIGNALS, handlers()))
    try:
        end_at_signals()
        assert handlers() == len(before) * [preemption._end]
        asked = Preemption()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked.signal == "SIGUSR1"
        asked.restore()
        os.kill(os.getpid(), signal.SIGTERM)
        assert handlers() == len(before) * [signal.SIG_IGN]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
