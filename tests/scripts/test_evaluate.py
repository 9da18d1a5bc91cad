"""A run's policy is played from its folder."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.envs import StreamConfig
from neoteny.optim import AdamConfig
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from neoteny.scripts import evaluate
from neoteny.scripts.evaluate import load
from tests.killed import die

ROOT = Path(__file__).resolve().parents[2]


def tiny(agent, folder, **changes):
    """Arguments of a run of 512 steps on two recurring tasks."""
    sizes = {
        ppo: {"num_steps": 32, "epochs": 1, "minibatches": 2},
        dqn: {"log_every": 128, "learning_starts": 128, "eps_end": 0.5},
    }[agent]
    stream = StreamConfig("cartpole-rotations", 200, (0, 1), normalizer="keep", task_id="onehot")
    common = {
        "total_steps": 512, "num_envs": 4, "network": NetworkConfig(hidden=(8,)), "optim": AdamConfig(),
        "probes": ProbeConfig(every=0, pictures=False), "checkpoint_every": 256, "stream": stream,
    }  # fmt: skip
    return agent.Args(runs_dir=folder, **{**common, **sizes, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of each agent."""
    folders = {}
    for agent in (ppo, dqn):
        args = tiny(agent, tmp_path_factory.mktemp("runs"))
        agent.main(args)
        folders[agent] = run_folder(agent.__name__.rpartition(".")[2], args)
    return folders


@pytest.mark.parametrize("agent", [ppo, dqn])
def test_a_finished_run_is_played_as_it_ended(agent, finished, monkeypatch):
    policy = load(finished[agent])
    assert policy.step == 512
    assert policy.stream.preprocessing.normalizer.count == 512 + 4
    state = policy.agent.state_dict()
    played = policy.play(task=1, episodes=5)
    assert len(played.returns) == 5
    assert played.complete.all()
    assert all(map(torch.equal, state.values(), policy.agent.state_dict().values()))
    assert policy.stream.preprocessing.normalizer.count == 512 + 4
    if agent is dqn:  # with random actions as at the end of training
        seen = policy.stream.preprocess(torch.zeros(500, 16))
        best = policy.agent(seen).argmax(1)
        assert 0.6 < (policy.act(seen) == best).float().mean() < 0.9


def test_an_unfinished_run_is_played_from_its_latest_checkpoint(tmp_path, monkeypatch):
    args = tiny(ppo, tmp_path)
    die(ppo, args, 400, monkeypatch)
    folder = run_folder("ppo", args)
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    policy = load(folder)
    assert policy.step == 256
    assert policy.stream.preprocessing.normalizer.count == 256 + 4
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*")) == before
    shutil.rmtree(folder / "checkpoint")
    with pytest.raises(ValueError, match="holds no weights yet"):
        load(folder)


def test_table_json_and_gif(finished, tmp_path, capsys):
    words = ["--episodes", "4", "--json", f"{tmp_path}/a.json", "--gif", f"{tmp_path}/a.gif"]
    assert evaluate.run([str(finished[ppo]), *words]) == 0
    output = capsys.readouterr().out
    rows = [line.strip("| ").split("|") for line in output.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows] == ["task", "----", "0", "1"]
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["step"] == 512
    for task, row in zip("01", rows[2:]):
        returns = read["tasks"][task]["returns"]
        assert len(returns) == 4
        half = 1.96 * np.std(returns, ddof=1) / 2
        assert [float(cell) for cell in row[1:]] == pytest.approx(
            [np.mean(returns), half, np.mean(read["tasks"][task]["lengths"]), 4], abs=0.06
        )
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames > 1
    assert evaluate.run([str(finished[ppo]), "--task", "1", "--episodes", "4"]) == 0
    assert rows[3] == capsys.readouterr().out.splitlines()[-1].strip("| ").split("|")  # the same again


def test_a_policy_is_played_on_another_stream(finished):
    policy = load(finished[ppo], stream="cartpole-rotations")
    assert policy.stream.schedule.cycle == (0, 1)
    with pytest.raises(ValueError, match="one-hot task id needs recurring tasks"):
        load(finished[ppo], stream="cartpole-gravity")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "2"], "--task must be one of 0, 1, not 2"),
        (["--episodes", "0"], "--episodes must be at least 1"),
        (["--agent", "other.py"], "there is no agent"),
        (["--stream", "nowhere:A-v0"], "there is no 'nowhere:A-v0'"),
        (["--modules", "nowhere"], "there is no 'nowhere:'"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used"),
    ],
)
def test_what_cannot_be_is_refused(words, message, finished, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.run([str(finished[ppo]), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_imports_nothing(finished, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "s1"
    shutil.copytree(finished[ppo], folder)
    args = json.loads((folder / "args.json").read_text())
    (tmp_path / "evil.py").write_text("raise AssertionError")
    monkeypatch.chdir(tmp_path)
    for change in ({"agent": "evil"}, {"agent": "evil.py"}, {"agent": str(tmp_path / "evil.py")}):
        (folder / "args.json").write_text(json.dumps({**args, **change}))
        with pytest.raises(ValueError, match="there is no agent"):
            load(folder)
    (folder / "args.json").write_text(json.dumps({**args, "stream": {**args["stream"], "id": "evil:A-v0"}}))
    with pytest.raises(SystemExit):
        load(folder)
    assert "import evil first" in capsys.readouterr().err
    assert "evil" not in sys.modules


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a stream and an agent of the user's own, and no trace of them afterwards."""
    (tmp_path / "own_streams.py").write_text(
        "import gymnasium as gym\nfrom neoteny.envs import stream\n\n"
        "@stream('Own-v0', period=128)\ndef own(k, seed):\n    return gym.make('CartPole-v1')\n"
    )
    source = (ROOT / "agents" / "ppo.py").read_text()
    edited = source.replace('self.actor.add_module("head"', 'self.actor.add_module("my_head"')
    assert edited != source
    (tmp_path / "own_agent.py").write_text(edited)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = sys.modules.keys() - {"own_streams", "own_agent"}
    yield tmp_path
    for name in sys.modules.keys() - before:
        if name.startswith("own_"):
            del sys.modules[name]


def test_a_stream_and_an_edited_agent_of_the_users_own(own, capsys):
    from neoteny.envs.registry import import_typed
    from neoteny.scripts.agent_files import load_agent

    import_typed("own_streams:Own-v0")
    module = load_agent("own_agent.py")
    args = tiny(ppo, own / "runs", stream=StreamConfig("own_streams:Own-v0", audit="off"))
    module.main(module.Args(**{field.name: getattr(args, field.name) for field in dataclasses.fields(args)}))
    folder = own / "runs/Own-v0/own_agent/adam/s1"
    capsys.readouterr()
    words = [str(folder), "--episodes", "2", "--stream", "own_streams:Own-v0"]
    with pytest.raises(SystemExit):
        evaluate.run(words)
    assert "there is no agent 'own_agent'; name its file by --agent" in capsys.readouterr().err
    assert evaluate.run([*words, "--agent", "own_agent.py"]) == 0
    output = capsys.readouterr()
    # Its tasks never recur: those of the run are played.
    assert [line.split("|")[1].strip() for line in output.out.splitlines()[4:]] == ["0", "1", "2", "3"]
    assert "warning" not in output.err
    with pytest.raises(ValueError, match="do not fit the agent"):
        load(folder, agent=str(ROOT / "agents" / "ppo.py"))
    assert "warning: ppo.py was changed since the run, or is another agent" in capsys.readouterr().err
