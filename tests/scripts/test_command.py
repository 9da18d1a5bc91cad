"""The command `neoteny`."""

import signal
import subprocess
import sys

import pytest

from neoteny.envs.registry import registered_streams
from neoteny.optim import METHODS
from neoteny.scripts import command
from neoteny.scripts.agent_files import load_agent


def ending(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["neoteny", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code


def test_help_comes_before_any_import_that_takes_time():
    script = """
import sys
sys.argv = ["neoteny", "--help"]
from neoteny.scripts.command import main
try:
    main()
except SystemExit as ended:
    assert ended.code == 0
assert not {"torch", "gymnasium", "tyro", "numpy"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in command.COMMANDS)


def test_list_shows_everything_with_its_line(monkeypatch, capsys):
    assert ending(monkeypatch, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    listed = dict(line.strip().split("  ", 1) for line in lines if line.startswith("  "))
    assert {"ppo", "dqn", "ppo cartpole-rotations", "dqn atari", "optim:adamo"} <= listed.keys()
    assert {*(f"--methods.{name}" for name in METHODS), *registered_streams()} <= listed.keys()
    assert listed["ppo grid-layouts"].strip() == "stream grid-layouts, 1,000,000 steps"
    assert "CartPole with its four observations rotated" in listed["cartpole-rotations"]
    assert "ever new tasks, each for 16,384 steps" in listed["cartpole-rotations"]
    assert all(listed.values())


def test_list_shows_only_what_is_asked_for(monkeypatch, capsys):
    assert ending(monkeypatch, "list", "agents", "methods") == 0
    output = capsys.readouterr().out
    assert "ppo" in output
    assert "streams:" not in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tran"], "there is no command 'tran'"),
        (["list", "optims"], "not 'optims'"),
        (["train", "pp0"], "there is no agent 'pp0'; similar: ppo"),
        (["train", "my_agent.py"], "there is no agent"),
        (["train", "ppo", "--total-stps", "5"], "there is no flag --total-stps"),
        (["evaluate", "nowhere"], "nowhere is not the folder of a run"),
        (["sweep", "--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_code_2(words, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ending(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_train_passes_its_words_to_the_agent(monkeypatch):
    seen = []
    module = load_agent("ppo")
    monkeypatch.setattr(module, "main", seen.append)
    monkeypatch.setattr(command, "end_at_signals", lambda: None)
    assert ending(monkeypatch, "train", "ppo", "cartpole-gravity", "optim:adam", "--seed", "4") == 0
    assert [(args.stream.id, args.optim.name, args.seed) for args in seen] == [
        ("cartpole-gravity", "adam", 4)
    ]


SLEEPING = """
import dataclasses, time
from neoteny.configs.cli import launch_script


@dataclasses.dataclass(frozen=True)
class Sleep:
    seconds: float = 1.0


def main(args):
    print("ready", flush=True)
    time.sleep(args.seconds)
    return 3


launch_script(main, Sleep)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="its signals end a process at once")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_script_with_a_sentence(name):
    command = [sys.executable, "-c", SLEEPING, "--seconds", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    assert errors == b"\nstopped by a signal; run the same command again\n"
