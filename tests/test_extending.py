"""What the page on extending says is true: its methods run, from Python and from the command line."""

import functools
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.optim import AdamConfig
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from tests.events import scalars
from tests.killed import die

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.S)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
NOISE, FROM_PYTHON, UPDATE, PRUNING = PYTHON
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
SHORT = "--total-steps 256 --num-envs 4 --network.hidden 8 8 --probes.every 0"
SHORTER = {"ppo": "--num-steps 16 --minibatches 2", "dqn": "--learning-starts 64 --log-every 64"}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """The page's methods, each in a module of the user's."""
    (tmp_path / "my_methods.py").write_text(NOISE)
    (tmp_path / "my_pruning.py").write_text(PRUNING)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_methods"), importlib.import_module("my_pruning")
    for name in ("my_methods", "my_pruning"):
        del sys.modules[name]


def small(folder, agent, methods, **changes):
    flags = {
        ppo: {"num_steps": 16, "minibatches": 2, "epochs": 2},
        dqn: {"learning_starts": 64, "log_every": 64, "batch_size": 16},
    }
    common = {"total_steps": 384, "num_envs": 4, "checkpoint_every": 128, "optim": AdamConfig()}
    common |= {"network": NetworkConfig(hidden=(8, 8)), "probes": ProbeConfig(every=0, pictures=False)}
    return agent.Args(**common, **flags[agent], runs_dir=folder, methods=methods, **changes)


def test_the_method_is_short():
    assert len([line for line in NOISE.splitlines() if line.strip()]) < 20


def test_from_python(modules, tmp_path, monkeypatch):
    made = []
    args = functools.partial(ppo.Args, total_steps=256, num_envs=4, num_steps=16, runs_dir=tmp_path / "runs")
    monkeypatch.setattr(ppo, "Args", lambda **fields: made.append(args(**fields)) or made[-1])
    exec(FROM_PYTHON, {})
    folder = run_folder("ppo", made[0])
    assert folder.parts[-2] == "adam-noise"
    assert (folder / "summary.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_from_the_command_line(command, modules, tmp_path):
    words = shlex.split(command)
    agent = Path(words[1]).stem
    flags = [*words[2:], *SHORT.split(), *SHORTER[agent].split()]
    done = subprocess.run(
        [sys.executable, ROOT / words[1], *flags], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.glob(f"runs/*/{agent}/adam-*/s1/summary.json")
    assert summary.parts[-3] == ("adam-noise" if agent == "ppo" else "adam-isometry-noise")


def test_noise_is_noise(modules):
    weights = torch.zeros(64, 64)
    layer = type("Layer", (), {"weight": weights})
    learner = type("Learner", (), {"layers": lambda self, on: [layer]})()
    torch.manual_seed(0)
    modules[0].NoiseConfig(std=0.5).build(learner).after_step(None)
    assert weights.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("agent", [ppo, dqn])
def test_both_methods_in_a_run_that_is_killed(agent, modules, tmp_path, monkeypatch):
    methods = (modules[0].NoiseConfig(), modules[1].PruningConfig(every=10))
    weights = []
    for name, steps in (("calm", ()), ("killed", (188,))):
        args = small(tmp_path / name, agent, methods)
        for at in steps:
            die(agent, args, at, monkeypatch)
        agent.main(args)
        folder = run_folder(agent.__name__.rpartition(".")[2], args)
        weights.append(load_file(folder / "checkpoint" / "weights.safetensors"))
    assert folder.parts[-2] == "adam-noise-pruning"
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert any(tag.startswith("methods/pruning/activity/") for tag in scalars(folder))


def test_the_update_is_that_of_the_agents():
    lines = [line.split("#")[0].strip() for line in UPDATE.splitlines()]
    for agent in (ppo, dqn):
        text = [line.strip() for line in Path(agent.__file__).read_text().splitlines()]
        first = text.index(lines[0])
        assert text[first : first + len(lines)] == lines
