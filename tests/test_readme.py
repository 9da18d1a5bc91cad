"""What the README says is true: its commands run, its stream works, its tables name what there is."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from neoteny.configs.ppo import PRESETS
from neoteny.envs.registry import registered_streams

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
AGENT_COMMANDS = [line for line in COMMANDS if line.startswith("python agents/")]
(USER_STREAM,) = (text for kind, text in BLOCKS if kind == "python" and "@stream" in text)


def run(command, folder):
    words = shlex.split(command)
    script = ROOT / words[1]
    done = subprocess.run(
        [sys.executable, script, *words[2:]], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [line for line in AGENT_COMMANDS if "my_streams" not in line])
def test_agent_commands(command, tmp_path):
    short = "" if "--help" in command else " --total-steps 2048"
    run(command + short, tmp_path)
    assert bool(list(tmp_path.glob("runs/**/summary.json"))) == bool(short)


@pytest.mark.parametrize("where", ["", " --stream.single.workers 2 --num-envs 4"])
def test_the_ten_line_stream(where, tmp_path):
    assert len(USER_STREAM.strip().splitlines()) <= 10
    (tmp_path / "my_streams.py").write_text(USER_STREAM)
    (command,) = (line for line in AGENT_COMMANDS if "my_streams" in line)
    run(command + " --stream.period 1024 --total-steps 3072" + where, tmp_path)
    (summary,) = tmp_path.glob("runs/HeavyCartPole-v0/ppo/adamo/s1/summary.json")
    assert '"task": 2' in summary.read_text()


def test_sweep_and_compare(tmp_path):
    sweep, compare, lens = (
        next(line for line in COMMANDS if line.startswith(f"python scripts/{name}.py"))
        for name in ("sweep", "compare", "lens")
    )
    short = " -- --total-steps 4096"
    assert "6 runs done, 0 were finished before, 0 failed" in run(sweep + short, tmp_path)
    assert "0 runs done, 6 were finished before, 0 failed" in run(sweep + short, tmp_path)
    told = run(compare, tmp_path)
    assert re.search(r"\| adamo +\| 3 +\|", told)
    assert "mean return, adamo - adam" in told
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert re.search(r"\* adamo: .*sigma max", run(lens, tmp_path))
    assert (tmp_path / "lens.png").stat().st_size > 10_000


def test_other_commands_exist():
    others = {line.split("#")[0].strip() for line in COMMANDS} - set(AGENT_COMMANDS)
    for command in others:
        words = shlex.split(command)
        script = ROOT / (words[1] if words[0] == "python" else words[0])
        assert script.exists() or words[0] == "tensorboard", command
    assert all(os.access(ROOT / "scripts" / name, os.X_OK) for name in ("demo", "test"))


def test_the_optimizer_snippet_runs():
    (snippet,) = (text for kind, text in BLOCKS if kind == "python" and "AdamO" in text)
    setup = """
import torch
model = torch.nn.Sequential()
model.add_module("hidden", torch.nn.Linear(3, 4))
model.add_module("head", torch.nn.Linear(4, 1))
loss = model(torch.ones(2, 3)).sum()
"""
    exec(setup + snippet + "loss.backward()\noptimizer.step()", {})


def test_the_table_names_every_stream_with_its_periods_and_every_stream_has_a_preset():
    rows = {name: row.split("|") for row, name in re.findall(r"^(\| `([\w-]+)` \|.*)$", README, flags=re.M)}
    for name in registered_streams():
        if "-v" not in name:  # those are made by tests
            whole, small = name.removesuffix("-small"), f"{name.removesuffix('-small')}-small"
            for id, cell in zip((whole, small), rows[whole][3:]):
                period = f"{gym.spec(id).kwargs['schedule'].period:,}" if id in registered_streams() else ""
                assert cell.strip() == period
            assert PRESETS[name].get("stream", {}).get("id", name) == name


def test_the_tree_names_every_folder_and_no_other():
    (tree,) = (
        text for _, text in re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S) if "runners/    " in text
    )
    folders, parent = [], ""
    for indent, name in re.findall(r"^( *)(\w+)/", tree, flags=re.M):
        parent = parent if indent else name
        folders.append(f"{parent}/{name}" if indent else name)
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/__init__.py")}
    packages |= {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("[!t.]*/*/__init__.py")}
    assert sorted(folders) == sorted(packages | {"scripts", "docs", "tests", "results"})
