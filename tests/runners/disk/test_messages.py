"""What informs never ends a run: messages may be lost, the run saves and ends with its own code."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neoteny.agents import ppo
from neoteny.configs.cli import cli
from neoteny.configs.flags import with_flags
from neoteny.runners.disk import preemption
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.run import Run

ROOT = Path(__file__).resolve().parents[3]
FLAGS = (
    "--stream.id cartpole-rotations --stream.period 100 --num-envs 2 --num-steps 8 --minibatches 2 "
    "--epochs 1 --network.hidden 16 --checkpoint-every 64 --probes.every 0 optim:adam"
)
posix = pytest.mark.skipif(os.name != "posix", reason="of pipes and files in Linux")
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


class Broken:
    """A stream that nothing can be written to."""

    encoding, errors = "utf-8", "strict"

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise type(self.error)(*self.error.args)  # a raised one would keep the run alive

    def flush(self):
        raise type(self.error)(*self.error.args)  # a raised one would keep the run alive


LOST = {
    "the reader is gone": Broken(BrokenPipeError(32, "Broken pipe")),
    "the disk is full": Broken(OSError(28, "No space left on device")),
    "the terminal is gone": Broken(OSError(5, "Input/output error")),
    "it is closed": Broken(ValueError("I/O operation on closed file.")),
    "there is none": None,
}


def failing_write(number, data):
    raise OSError(9, "Bad file descriptor")


def small(folder):
    return dataclasses.replace(cli(ppo.Args, {}, FLAGS.split()), runs_dir=folder, total_steps=256)


def ending(args):
    """The exit code of a run, of which nothing is kept, so that it is closed."""
    try:
        ppo.main(args)
    except SystemExit as exit:
        return exit.code
    return 0


@pytest.mark.parametrize("lost", LOST)
def test_a_run_goes_on_without_its_output_and_saves_at_a_signal(lost, tmp_path, monkeypatch):
    args, record = small(tmp_path), Run.record_episodes
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, LOST[lost])
    monkeypatch.setattr(os, "write", failing_write)

    def recorded(self, *made):
        record(self, *made)
        if self.stream.steps == 100:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "record_episodes", recorded)
        assert ending(args) == 75
    folder = run_folder("ppo", args)
    assert [path.name for path in folder.glob("checkpoint/step_*")][-1] == "step_000000000112"
    assert ending(args) == 0
    assert json.loads((folder / "meta.json").read_text())["resume_exact"] is True
    assert (folder / "summary.json").exists()


def light(statements, **streams):
    """A process that imports what an agent does first; its exit code and what came through."""
    script = (
        "import os, signal, sys\n"
        "from neoteny.runners.disk.messages import *\n"
        "from neoteny.runners.disk.preemption import *\n"
        "from neoteny.runners.disk.exit_codes import *\n" + statements
    )
    return subprocess.run([sys.executable, "-c", script], timeout=60, **streams)


PRINTS = """
protect_output()
for number in range(1000):
    print("from the stream of a user", number)
    tell("a message")
    warn("a warning")
sys.exit(3)
"""


@full
@pytest.mark.parametrize("which", [{"stdout"}, {"stderr"}, {"stdout", "stderr"}])
def test_a_full_disk_under_the_log_changes_no_exit_code(which):
    with open("/dev/full", "w") as file:
        streams = {name: file if name in which else subprocess.PIPE for name in ("stdout", "stderr")}
        done = light(PRINTS, **streams)
    assert done.returncode == 3
    if "stderr" not in which:
        assert done.stderr == 1000 * b"a warning\n"
    if "stdout" not in which:
        assert done.stdout.count(b"a message\n") == 1000


@posix
def test_a_pipe_that_nobody_reads_changes_no_exit_code():
    reader, writer = os.pipe()
    os.close(reader)
    done = light(PRINTS, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (3, 1000 * b"a warning\n")


@posix
def test_an_error_ends_with_its_code_even_if_nobody_reads_why():
    reader, writer = os.pipe()
    os.close(reader)
    done = light("stop(ExitCode.TAKEN, 'by another')", stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 73


@posix
def test_no_data_file_is_taken_for_a_closed_standard_error(tmp_path):
    script = (
        "end_at_signals()\nprotect_output()\n"
        f"file = open({str(tmp_path / 'checkpoint')!r}, 'w')\n"
        "assert file.fileno() > 2\nprint(1)\nprint(2, file=sys.stderr)\nwarn('3')\n"
        "asked = Preemption()\nos.kill(os.getpid(), signal.SIGTERM)\nassert asked.signal == 'SIGTERM'\n"
        "file.write('data')"
    )
    done = light(script, preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode == 0
    assert (tmp_path / "checkpoint").read_text() == "data"


@posix
@pytest.mark.parametrize("name", preemption.NAMES)
def test_a_signal_before_training_ends_with_75_even_if_standard_error_is_gone(name):
    reader, writer = os.pipe()
    os.close(reader)
    restore = f"signal.signal(signal.{name}, signal.SIG_DFL)\n"
    script = f"{restore}end_at_signals()\nos.kill(os.getpid(), signal.{name})\nsignal.pause()"
    assert light(script, stderr=writer).returncode == 75
    os.close(writer)


@posix
def test_a_run_under_nohup_survives_its_terminal():
    script = (
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nend_at_signals()\nasked = Preemption()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\nassert asked.signal is None\nasked.restore()\n"
        "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN"
    )
    assert light(script).returncode == 0


@posix
def test_characters_that_a_terminal_does_not_have_are_question_marks():
    streams = {"stdout": subprocess.PIPE, "env": {**os.environ, "PYTHONIOENCODING": "ascii"}}
    assert light("protect_output()\ntell('2 \u2192 3')", **streams).stdout == b"2 ? 3\n"


@pytest.mark.slow
@posix
def test_ctrl_c_through_a_pipe_whose_reader_it_ended_saves_the_run(tmp_path):
    """As ``ppo.py 2>&1 | tee log`` and Ctrl-C, which ends tee too; then ``ppo.py --help | head -1``."""
    agent = [sys.executable, str(ROOT / "agents" / "ppo.py")]
    own = f"--total-steps 1e6 --checkpoint-every 4096 --runs-dir {tmp_path}"
    words = with_flags(FLAGS.split(), own.split())
    reader, writer = os.pipe()
    process = subprocess.Popen([*agent, *words], stdout=writer, stderr=writer)
    os.close(writer)
    while process.poll() is None and not list(tmp_path.rglob("step_*")):
        time.sleep(0.01)
    os.close(reader)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    steps = [int(path.name.removeprefix("step_")) for path in tmp_path.rglob("step_*")]
    assert max(steps) % 4096  # more than the periodic checkpoint
    help = subprocess.Popen([*agent, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    help.stdout.close()
    assert (help.stderr.read(), help.wait(60)) == (b"", 0)
    help.stderr.close()
