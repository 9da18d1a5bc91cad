"""What the page on extending says is true: its examples run, from Python and from the command line."""

import functools
import importlib
import shlex
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.configs.cli import cli
from neoteny.configs.ppo import PRESETS
from neoteny.envs import StreamConfig
from neoteny.optim import AdamConfig
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from tests.events import scalars
from tests.killed import die
from tests.pages import ROOT, blocks, commands, patched, run

PAGE = ROOT / "docs" / "extending.md"
BLOCKS = blocks(PAGE)
NOISE, FROM_PYTHON, UPDATE, PRUNING = (
    block.text for block in BLOCKS if block.kind == "python" and "optim" in block.text
)
COMMANDS = [line for line in commands(PAGE) if line.startswith("python agents/")]
OWN_ENVIRONMENTS = [line for line in COMMANDS if "--stream." in line]
OWN_METHODS = [line for line in COMMANDS if "--methods." in line]
SHORT = "--total-steps 256 --num-envs 4 --network.hidden 8 8 --probes.every 0"
SHORTER = {"ppo": "--num-steps 16 --minibatches 2", "dqn": "--learning-starts 64 --log-every 64"}


def section(heading, kind):
    """The blocks of a kind under a heading."""
    return [block.text for block in BLOCKS if (block.heading, block.kind) == (heading, kind)]


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


def test_examples_are_short():
    for block in BLOCKS:
        lines = [line for line in block.text.splitlines() if line.strip()]
        assert len(lines) <= (40 if block.text == PRUNING else 30), block.heading


def test_from_python(modules, tmp_path, monkeypatch):
    made = []
    args = functools.partial(ppo.Args, total_steps=256, num_envs=4, num_steps=16, runs_dir=tmp_path / "runs")
    monkeypatch.setattr(ppo, "Args", lambda **fields: made.append(args(**fields)) or made[-1])
    exec(FROM_PYTHON, {})
    folder = run_folder("ppo", made[0])
    assert folder.parts[-2] == "adam-noise"
    assert (folder / "summary.json").exists()


@pytest.mark.parametrize("command", OWN_METHODS)
def test_methods_from_the_command_line(command, modules, tmp_path):
    agent = Path(shlex.split(command)[1]).stem
    run(f"{command} {SHORT} {SHORTER[agent]}", tmp_path)
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


@pytest.fixture
def environments(tmp_path, monkeypatch):
    """The page's streams and wrappers, each in a module of the user's."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(gym.registry)
    headings = {"my_streams": "A stream", "my_wrappers": "A wrapper", "my_board": "An observation"}
    for name, heading in headings.items():
        (text,) = section(heading, "python")
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.import_module(name)
    yield
    for name in headings:
        del sys.modules[name]
    for id in set(gym.registry) - before:
        del gym.registry[id]


def test_own_streams_wrappers_and_observations_run(environments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(OWN_ENVIRONMENTS) == 4
    for command in OWN_ENVIRONMENTS:
        words = [*shlex.split(command)[2:], *f"{SHORT} {SHORTER['ppo']} --note {len(command)}".split()]
        if "--stream.period" in words:
            words[words.index("--stream.period") + 1] = "128"
        ppo.main(cli(ppo.Args, PRESETS, words))
    runs = {path.parts[1] for path in Path().glob("runs/*/ppo/*/s1/summary.json")}
    assert runs == {"LongPoles-v0", "CartPole-v1+mirror", "Chase-v0"}


def test_tasks_of_own_streams_differ(environments):
    chase = StreamConfig("my_board:Chase-v0", period=64).make(4)
    assert str(chase.observation_spec) == "planes, 6 x 6 x 2, channels last"
    first, _ = chase.reset()
    while chase.steps < 64:
        second, *_ = chase.step(torch.zeros(4, dtype=torch.long).numpy())
    assert first[0, 0, 5, 1] == second[0, 1, 4, 1] == 1  # goals of tasks 0 and 1
    chase.close()
    poles = StreamConfig("my_streams:LongPoles-v0", period=64, audit="off").make(4, seed=3)
    assert len(set(poles.schedule.cycle)) == 3
    poles.close()
    mirror = sys.modules["my_wrappers"].mirror
    env = gym.make("CartPole-v1")
    seen = [mirror(env, k, seed=1).reset(seed=7)[0] for k in (0, 1, 2)]
    assert (seen[0] == -seen[1]).all()
    assert (seen[0] == seen[2]).all()


@pytest.mark.parametrize(
    "heading", ["A copied agent: a change of the algorithm", "A network", "An optimizer", "A probe"]
)
def test_a_copied_and_edited_agent(heading, tmp_path):
    assert "cp agents/ppo.py my_ppo.py" in commands(PAGE)
    source = (ROOT / "agents" / "ppo.py").read_text()
    for diff in section(heading, "diff"):
        source = patched(source, diff)
    (tmp_path / "my_ppo.py").write_text(source)
    extra = {"A probe": "--probes.every 2 --probes.no-pictures"}
    command = f"python my_ppo.py {SHORT} {SHORTER['ppo']} {extra.get(heading, '')}"
    if heading.startswith("A copied"):
        assert "python my_ppo.py cartpole-gravity --kl-coef 0.5" in commands(PAGE)
        command = command.replace("my_ppo.py", "my_ppo.py cartpole-gravity --kl-coef 0.5")
    if heading == "A probe":
        command = command.replace(" --probes.every 0", "")
    run(command, tmp_path)
    (summary,) = tmp_path.glob("runs/*/*/*/s1/summary.json")
    tags = scalars(summary.parent)
    assert summary.parts[-4] == "my_ppo"
    assert summary.parts[-3] == ("rmsprop" if heading == "An optimizer" else "adamo")
    assert ("policy/confidence_min" in tags) == (heading == "A probe")
    weights = load_file(summary.parent / "checkpoint" / "weights.safetensors")
    assert ("actor.linear1_norm.weight" in weights) == (heading == "A network")
