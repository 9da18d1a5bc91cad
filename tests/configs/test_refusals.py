"""What is wrong and can be known before training is one sentence, exit code 2, and nothing written."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from neoteny.agents import dqn, ppo
from neoteny.configs.cli import launch
from neoteny.runners.disk.exit_codes import reason

ROOT = Path(__file__).resolve().parents[2]

USER_FILE = """import functools
import gymnasium as gym
import numpy as np
from neoteny.envs import stream


class Faulty(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, fault):
        self.fault = fault
        if fault == "make":
            {}["nothing"]

    def reset(self, *, seed=None, options=None):
        if self.fault == "reset":
            raise RuntimeError("no\\nreset")
        if self.fault == "wordless":
            raise ValueError
        return np.zeros(2, np.float32), {}

    def step(self, action):
        if self.fault == "step":
            raise NotImplementedError
        return np.zeros(2, np.float32), 1.0, False, False, {}


def task(k, seed, fault):
    if fault == "import":
        import no_such_package
    return Faulty(fault)


for fault in ("make", "reset", "wordless", "step", "import"):
    if f"Faulty-{fault}-v0" not in gym.registry:
        stream(f"Faulty-{fault}-v0", period=64)(functools.partial(task, fault=fault))
"""
FILES = {
    "faulty_stream.py": USER_FILE,
    "wrong_syntax.py": "def task(k, seed)\n    return None\n",
    "wrong_name.py": "x = 1\ny = nobody\n",
    "wrong_import.py": "import no_such_package.part\n",
    "wrong_value.py": "raise ValueError('ten tasks\\n\\nat most')\n",
}
KEY_ERROR = r"KeyError: 'nothing' \(.*faulty_stream\.py, line 14\)"
REFUSED = {
    "--stream.id FrozenLake-v1": "must be arrays of numbers, a Box, not Discrete(16)",
    "--stream.id Blackjack-v1": "must be arrays of numbers, a Box, not Tuple(",
    "--stream.id Pendulum-v1": "discrete action space, not Box(",
    "--stream.id Humanoid-v3": "gymnasium-robotics",
    "--stream.id grid-layouts --stream.normalizer keep": "a normalizer needs observations of floating-point",
    "--stream.id wrong_syntax:X-v0": "SyntaxError: expected ':' (wrong_syntax.py, line 1)",
    "--methods.wrong_syntax:Config": "SyntaxError: expected ':' (wrong_syntax.py, line 1)",
    "--stream.id wrong_name:X-v0": re.compile(
        r"NameError: name 'nobody' is not defined \(.*wrong_name\.py, line 2\)"
    ),
    "--methods.wrong_name:Config": "NameError: name 'nobody' is not defined",
    "--stream.id wrong_import:X-v0": "the package no_such_package is not installed",
    "--methods.wrong_import:Config": "the package no_such_package is not installed",
    "--stream.id wrong_value:X-v0": "ten tasks at most",
    "--stream.id faulty_stream:Faulty-make-v0": re.compile(KEY_ERROR),
    "--stream.id faulty_stream:Faulty-make-v0 --stream.audit off": re.compile(KEY_ERROR),
    "--stream.id faulty_stream:Faulty-reset-v0": re.compile(
        r"RuntimeError: no reset \(.*faulty_stream\.py, line 18\)"
    ),
    "--stream.id faulty_stream:Faulty-reset-v0 --stream.audit off": "RuntimeError: no reset",
    "--stream.id faulty_stream:Faulty-wordless-v0": re.compile(
        r"ValueError \(.*faulty_stream\.py, line 20\)"
    ),
    "--stream.id faulty_stream:Faulty-step-v0": "NotImplementedError (",  # met by the audit
    "--stream.id faulty_stream:Faulty-import-v0": "the package no_such_package is not installed",
    "--num-envs 1e15 --num-steps 1 --minibatches 1 --total-steps 1e16": "--num-envs must be at most",
}


@pytest.mark.parametrize("agent", [ppo, dqn])
@pytest.mark.parametrize("line", REFUSED)
def test_setting_up_is_refused_in_one_sentence(line, agent, tmp_path, monkeypatch, capsys):
    if agent is dqn and "--num-steps" in line:
        return
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["agent.py", *line.split(), "--threads", "1"])
    with pytest.raises(SystemExit) as exit:
        launch(agent.main, agent.Args, {})
    assert exit.value.code == 2
    output = capsys.readouterr().err
    wanted = REFUSED[line]
    assert wanted.search(output) if isinstance(wanted, re.Pattern) else wanted in output
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def refused(command: str, monkeypatch, capsys) -> str:
    """What a command of this project says on stderr, which must be one sentence, before it exits with 2."""
    script, *words = command.split()
    monkeypatch.setattr("sys.argv", [script, *words])
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.delitem(sys.modules, "compare", raising=False)
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert not Path("runs").exists()
    return printed.err


LACKING = {
    "agents/ppo.py --stream.id HalfCheetah-v5": ("mujoco", "mujoco"),
    "agents/ppo.py --stream.id LunarLander-v3": ("Box2D", "box2d"),
    "agents/ppo.py lunarlander-jumps": ("Box2D", "box2d"),
    "agents/ppo.py lunarlander-drift-small --num-envs 2": ("Box2D", "box2d"),
    "agents/dqn.py atari": ("ale_py", "atari"),
    "scripts/compare.py runs": ("matplotlib", "analysis"),
    "scripts/compare.py --help": ("scipy", "analysis"),
    "scripts/compare.py runs --stop-rule": ("adastop", "analysis"),
}


@pytest.mark.parametrize("command", LACKING)
def test_of_a_package_that_is_missing_the_extra_is_named(command, tmp_path, monkeypatch, capsys):
    package, extra = LACKING[command]
    monkeypatch.chdir(tmp_path)
    for name in list(sys.modules):
        if name.startswith((f"gymnasium.envs.{package.lower()}", f"{package}.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    output = refused(command, monkeypatch, capsys)
    assert re.search(rf"pip install \"?neoteny\[{extra}\]", output)


SCRIPTS = {
    "scripts/sweep.py --agent sac": "there is no agent 'sac'; neoteny list",
    "scripts/sweep.py --agent networks": "there is no agent 'networks'; neoteny list",
    "scripts/sweep.py --preset grid-layout": "there is no preset 'grid-layout'; similar: grid-layouts",
    "scripts/sweep.py --optims adam sgd": "there is no optimizer optim:sgd",
    "scripts/sweep.py --seed 1": "there is no flag --seed; similar: --seeds",
    "scripts/sweep.py -- --learning-rate 1": "there is no flag --learning-rate",
    "scripts/compare.py": "no run below no folder",
    "scripts/compare.py nowhere --rows isometry": "no run below nowhere",
    "scripts/compare.py runs --baselines x": "there is no flag --baselines; similar: --baseline",
    "scripts/replay_crash.py nowhere": "nowhere is no crash bundle",
}


@pytest.mark.parametrize("command", SCRIPTS)
def test_scripts_refuse_in_one_sentence(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert SCRIPTS[command] in refused(command, monkeypatch, capsys)


def in_ascii(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of this project, for a terminal that knows no other signs."""
    signs = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, ROOT / words[0], *words[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **signs})


@pytest.mark.slow
def test_help_is_printed_whatever_the_encoding(tmp_path):
    done = in_ascii(tmp_path, "agents/ppo.py", "--network", "--help")
    assert done.returncode == 0
    assert "Bj?rck" in done.stdout
    assert not done.stderr


@pytest.mark.slow
def test_refusals_are_printed_whatever_the_encoding(tmp_path):
    done = in_ascii(tmp_path, "agents/ppo.py", "--runs-dir", "ü", "--note", "1/2 ü")
    assert done.returncode == 2
    assert done.stderr == "error: '\\udcc3\\udcbc' has characters that cannot be printed\n"
    assert "Traceback" not in done.stderr
    assert not os.listdir(tmp_path)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_reasons_are_one_line():
    assert reason(ValueError("two\n  lines")) == "two lines"
    assert reason(KeyError("name")) == "KeyError: 'name'"
    assert re.fullmatch(r"KeyError: 'x' \(.*test_refusals\.py, line \d+\)", reason(raised(KeyError("x"))))
    assert reason(ModuleNotFoundError("m", name="Box2D.b2")) == (
        'the package Box2D is not installed: pip install "neoteny[box2d]"'
    )
