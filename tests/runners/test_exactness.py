"""A resumed run says "exactly" only if it is: other replays, changed code, annealing."""

import importlib.util
import json
import sys

import gymnasium as gym
import pytest
from safetensors.torch import load_file

from neoteny.agents import ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.envs import StreamConfig
from neoteny.envs.single.engine import SingleConfig
from neoteny.optim import AdamConfig
from neoteny.runners.probes import ProbeConfig
from tests.events import scalars
from tests.killed import die
from tests.pages import ROOT

WALK = """
import gymnasium as gym
import numpy as np

PAY = 1.0

class Walk(gym.Env):
    observation_space = gym.spaces.Box(-99, 99, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([self.t / 10, action], np.float32), PAY - float(action), self.t >= 50, False, {}

gym.register("ExactWalk-v0", entry_point=Walk)
"""


@pytest.fixture(autouse=True)
def registry():
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def load(path):
    """Import a file, or import it again, as a new process would."""
    gym.registry.pop("ExactWalk-v0", None)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def modules(monkeypatch):
    """Forget the modules that a test loads."""
    for name in ("exact_walk", "exact_pay", "my_ppo", "ppo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, name, None)


def small(folder, id, agent=ppo, **changes):
    common = {
        "total_steps": 256, "num_envs": 2, "num_steps": 16, "minibatches": 2, "epochs": 1,
        "checkpoint_every": 32, "network": NetworkConfig(hidden=(8,)), "optim": AdamConfig(),
        "probes": ProbeConfig(every=0, pictures=False), "runs_dir": folder / "runs",
    }  # fmt: skip
    return agent.Args(**common | {"stream": StreamConfig(id)} | changes)


def meta(folder):
    (path,) = folder.glob("runs/*/*/*/s1/meta.json")
    return json.loads(path.read_text())


def weights(folder):
    (path,) = folder.glob("runs/*/*/*/s1/checkpoint/weights.safetensors")
    return {name: tensor.tolist() for name, tensor in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("workers", [0, 1])
def test_replay_of_running_episodes_compares_rewards_and_ends(
    workers, tmp_path, monkeypatch, capsys, modules
):
    """The observations stay the same, and the rewards are others: today's replay saw nothing."""
    path = tmp_path / "exact_walk.py"
    path.write_text(WALK)
    monkeypatch.syspath_prepend(tmp_path)
    walk = load(path)
    config = StreamConfig("exact_walk:ExactWalk-v0", single=SingleConfig(workers=workers))
    one, two = (config.make(2, 1, "cpu") for _ in range(2))
    one.reset()
    for _ in range(20):
        one.step(one.action_space.sample())
    state = one.state_dict()
    two.load_state_dict(state)
    assert two.exact
    assert two.inexact == []
    two.close()
    path.write_text(WALK.replace("PAY - float(action)", "2 * PAY - float(action)"))
    walk.PAY = 2.0
    two = config.make(2, 1, "cpu")
    two.load_state_dict(state)
    assert not two.exact
    assert "other rewards or ends than before, so new episodes began" in two.inexact[0]
    assert not two.returns.any()
    two.close()
    one.close()


def test_replay_of_running_episodes_notices_ends_that_move(tmp_path, modules):
    path = tmp_path / "exact_walk.py"
    path.write_text(WALK)
    walk = load(path)
    config = StreamConfig("exact_walk:ExactWalk-v0")
    one = config.make(2, 1, "cpu")
    one.reset()
    for _ in range(20):
        one.step(one.action_space.sample())
    step = walk.Walk.step

    def shorter(self, action):
        observation, reward, _, *rest = step(self, action)
        return observation, reward, self.t >= 20, *rest

    walk.Walk.step = shorter  # over at the very last step that is replayed
    two = config.make(2, 1, "cpu")
    two.load_state_dict(one.state_dict())
    assert "other rewards or ends" in two.inexact[0]


def test_what_shows_only_after_thousands_of_steps_is_found_by_the_replay(tmp_path, modules):
    """Its counter is where the check at the start does not look, and acts after more steps than it plays."""
    path = tmp_path / "exact_walk.py"
    tired = WALK.replace("        self.t += 1\n", "        self.t += 1\n        self.life.steps += 1\n")
    tired = tired.replace("PAY - float(action)", "PAY + (self.life.steps > 2000)")
    tired = tired.replace(
        "    def reset", "    def __init__(self):\n        self.life = Life()\n\n    def reset"
    )
    path.write_text(tired.replace("class Walk", "class Life(gym.Env):\n    steps = 0\n\nclass Walk"))
    load(path)
    config = StreamConfig("exact_walk:ExactWalk-v0")
    one, two = (config.make(2, 1, "cpu") for _ in range(2))
    one.reset()
    for steps, reasons in ((1_990, 0), (40, 1)):
        for _ in range(steps):
            one.step(one.action_space.sample())
        two.load_state_dict(one.state_dict())
        assert len(two.inexact) == reasons
    assert "other rewards or ends than before, so new episodes began" in two.inexact[0]


def test_files_that_code_reads_are_not_compared(tmp_path, monkeypatch, capsys, modules):
    """What a file says matters from the twentieth step of an episode on; no running one has come so far."""
    path, file = tmp_path / "exact_walk.py", tmp_path / "pay.txt"
    file.write_text("1.0")
    late = "1.0 if self.t < 20 else float(Path('pay.txt').read_text())"
    path.write_text("from pathlib import Path\n" + WALK.replace("PAY - float(action)", late))
    load(path)
    monkeypatch.chdir(tmp_path)
    args = small(tmp_path, "exact_walk:ExactWalk-v0")
    die(ppo, args, 150, monkeypatch)
    file.write_text("2.0")
    ppo.main(args)
    assert "resumes at step 128, exactly" in capsys.readouterr().out
    assert meta(tmp_path)["resume_exact"] is True


def test_episodes_played_twice_show_memory_at_the_start_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    gym.register(
        "ExactNorm-v0", entry_point=lambda: gym.wrappers.NormalizeReward(gym.make("CartPole-v1"), gamma=0.99)
    )
    args = small(tmp_path, "ExactNorm-v0")
    die(ppo, args, 150, monkeypatch)
    assert "warning: a resumed run will not be exact: task 0" in capsys.readouterr().out
    (reason,) = meta(tmp_path)["resume_exact"]
    ppo.main(args)
    output = capsys.readouterr().out
    assert "exactly" not in output
    assert "but not bit for bit: task 0 cannot be repeated" in output
    assert meta(tmp_path)["resume_exact"][0] == reason


def test_code_of_an_environment_that_was_edited_is_listed(tmp_path, monkeypatch, capsys, modules):
    path = tmp_path / "exact_walk.py"
    path.write_text(WALK)
    load(path)
    args = small(tmp_path, "exact_walk:ExactWalk-v0")
    die(ppo, args, 150, monkeypatch)
    assert meta(tmp_path)["resume_exact"] is True
    path.write_text(WALK.replace("PAY = 1.0", "PAY = 1.0  # edited"))
    load(path)
    ppo.main(args)
    assert "but not bit for bit: the code of exact_walk was changed" in capsys.readouterr().out
    assert meta(tmp_path)["resume_exact"] == ["the code of exact_walk was changed"]


def test_code_that_an_environment_imports_late_is_compared_then(tmp_path, monkeypatch, capsys, modules):
    lazy = WALK.replace("        self.t = 0\n", "        self.t = 0\n        import exact_pay\n")
    (tmp_path / "exact_walk.py").write_text(lazy)
    (tmp_path / "exact_pay.py").write_text("PAY = 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "exact_pay")
    load(tmp_path / "exact_walk.py")
    args = small(tmp_path, "exact_walk:ExactWalk-v0")
    die(ppo, args, 150, monkeypatch)
    assert "exact_pay" in meta(tmp_path)["code"]["modules"]
    (tmp_path / "exact_pay.py").write_text("PAY = 2.0\n")
    monkeypatch.delitem(sys.modules, "exact_pay")
    ppo.main(args)
    assert meta(tmp_path)["resume_exact"] == ["the code of exact_pay was changed"]
    assert "the code of exact_pay was changed" in capsys.readouterr().out


def test_code_of_an_edited_agent_is_refused_and_a_copy_has_its_own_folder(
    tmp_path, monkeypatch, capsys, modules
):
    source = (ROOT / "agents" / "ppo.py").read_text()
    copied = tmp_path / "my_ppo.py"
    copied.write_text(source)
    agent = load(copied)
    args = small(tmp_path, "CartPole-v1", agent)
    die(agent, args, 150, monkeypatch)
    (folder,) = tmp_path.glob("runs/*/*/*/s1")
    assert folder.parts[-3:] == ("my_ppo", "adam", "s1")
    copied.write_text(source.replace("advantages.append(advantage)", "advantages.append(0 * advantage)"))
    agent = load(copied)
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(SystemExit) as exit:
        agent.main(small(tmp_path, "CartPole-v1", agent))
    assert exit.value.code == 2
    assert "holds an unfinished run of another version of my_ppo.py" in capsys.readouterr().err
    assert sorted(path.name for path in folder.rglob("*")) == before
    agent.main(small(tmp_path, "CartPole-v1", agent, allow_code_change=True))
    assert "but not bit for bit: the code of my_ppo.py was changed" in capsys.readouterr().out


def test_code_of_neoteny_that_was_edited_is_listed(tmp_path, monkeypatch, capsys):
    from neoteny.runners import sources

    args = small(tmp_path, "CartPole-v1")
    die(ppo, args, 150, monkeypatch)
    other = tmp_path / "parts"
    (other / "optim").mkdir(parents=True)
    (other / "optim" / "adam.py").write_text("lr = 1")
    monkeypatch.setattr(sources, "ROOT", other)
    ppo.main(args)
    assert "but not bit for bit: the code of neoteny was changed" in capsys.readouterr().out


def test_total_steps_that_change_are_followed_by_an_annealed_rate_at_once(tmp_path, monkeypatch, capsys):
    """Updates of 32 steps: 8 planned at first, then 16; the run stops after 4."""
    args = small(tmp_path, "CartPole-v1", anneal_lr=True, lr=1.0e-3)
    die(ppo, args, 150, monkeypatch)
    longer = small(tmp_path, "CartPole-v1", anneal_lr=True, lr=1.0e-3, total_steps=512)
    ppo.main(longer)
    (folder,) = tmp_path.glob("runs/*/*/*/s1")
    rates = dict(scalars(folder)["charts/learning_rate"])
    expected = {32 * i: 1e-3 * (1 - (i - 1) / (8 if i <= 4 else 16)) for i in range(1, 17)}
    assert rates == pytest.approx(expected)
    assert rates[512] > 0
    assert "annealed over 256 steps and now over 512" in capsys.readouterr().out
    assert "annealed over 256 steps and now over 512" in meta(tmp_path)["resume_exact"][0]


def test_with_nothing_changed_it_is_exactly(tmp_path, monkeypatch, capsys):
    outcomes = []
    for name in ("calm", "killed"):
        args = small(tmp_path / name, "CartPole-v1", anneal_lr=True)
        if name == "killed":
            die(ppo, args, 150, monkeypatch)
        ppo.main(args)
        outcomes.append(weights(tmp_path / name))
    assert "resumes at step 128, exactly" in capsys.readouterr().out
    assert outcomes[0] == outcomes[1]
