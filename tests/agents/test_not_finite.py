"""What is not finite ends a run in the update in which it comes, and no checkpoint ever holds it."""

import itertools
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from safetensors.torch import load_file

from neoteny.agents import dqn, ppo
from neoteny.configs.flags import with_flags
from neoteny.runners.replay import ReplayMemory
from tests import command_line

FLAGS = "optim:adam --network.hidden 8 --probes.every 0 --num-envs 2 --checkpoint-every 32 --total-steps 160"
OWN = {
    "ppo": (ppo, "--num-steps 16 --minibatches 2 --epochs 1"),
    "dqn": (dqn, "--log-every 32 --train-every 8 --learning-starts 32 --batch-size 8 --buffer-size 100"),
    "dqn on disk": (dqn, "--log-every 32 --train-every 8 --learning-starts 32 --batch-size 8 --memory disk"),
}
PLACES = {"reward": 37, "observation": 37, "final observation": 40, "last observation": 48}
"""Steps of an environment, all in the third update, which makes 33 to 48."""


class Spoiled(gym.Env):
    """Episodes of 10 steps, cut short; the reward or an observation of one step is ``value``."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)
    broken = True
    numbers = itertools.count()

    def __init__(self, where=None, value=0.0):
        self.where, self.value, self.count = where, value, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.show(self.np_random.random(2, np.float32)), {}

    def show(self, observation):
        return observation

    def step(self, action):
        self.t += 1
        self.count += 1
        observation, reward = self.np_random.random(2, np.float32), float(action)
        if Spoiled.broken and PLACES.get(self.where) == self.count:
            if self.where == "reward":
                reward = self.value
            else:
                observation[1] = self.value
        return self.show(observation), reward, False, self.t == 10, {}


def ending(agent, id, folder, monkeypatch, *words):
    module, own = OWN[agent]
    command = f"{FLAGS} {own} --stream.id {id} --runs-dir {folder}"
    return command_line.ending(module, with_flags(command.split(), words), monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Weights of runs whose environment was never broken, by agent and flags."""
    known = {}

    def weights(agent, monkeypatch, *words):
        if (agent, words) not in known:
            folder = tmp_path_factory.mktemp("calm")
            assert ending(agent, "Spoiled-v0", folder, monkeypatch, *words) == 0
            known[agent, words] = final_weights(folder)
        return known[agent, words]

    return weights


@pytest.fixture(autouse=True)
def spoiled():
    Spoiled.broken = True
    gym.register("Spoiled-v0", Spoiled, disable_env_checker=True)
    yield
    del gym.registry["Spoiled-v0"]


def final_weights(folder):
    (path,) = folder.glob("**/checkpoint/weights.safetensors")
    return load_file(path)


CASES = [
    (agent, where, value, clip)
    for agent, where, value in itertools.product(OWN, PLACES, (np.nan, -np.inf))
    if value != value or (where == "reward" and agent != "dqn on disk")
    for clip in ([False, True] if where == "reward" else [False])
]


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "where", "value", "clip"), CASES)
def test_the_update_in_which_it_comes_ends_the_run_and_the_mended_one_goes_on(
    agent, where, value, clip, tmp_path, monkeypatch, undisturbed, capfd
):
    """In rewards, clipped ones too, and in every observation that is learned from."""
    words = ["--rewards.clip"] if clip else []
    gym.registry["Spoiled-v0"].kwargs = {"where": where, "value": value}
    assert ending(agent, "Spoiled-v0", tmp_path, monkeypatch, *words) == 70
    output = capfd.readouterr().err
    assert "error: not finite at step 96: " in output
    assert "Traceback" not in output
    (folder,) = tmp_path.glob("*/*/*/*")
    assert json.loads((folder / "crash" / "crash.json").read_text())["step"] == 96
    states = sorted(folder.glob("checkpoint/step_*/tensors.safetensors"))
    assert [int(path.parent.name.removeprefix("step_")) for path in states] == [32, 64]
    for path in states:
        tensors = load_file(path).values()
        assert all(tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point())
    Spoiled.broken = False
    assert ending(agent, "Spoiled-v0", tmp_path, monkeypatch, *words) == 0
    mended, calm = final_weights(tmp_path), undisturbed(agent, monkeypatch, *words)
    assert all(torch.equal(mended[name], calm[name]) for name in calm)


def test_what_is_infinite_for_the_networks_counts(tmp_path, monkeypatch, capfd):
    """A float64 observation beyond float32."""
    monkeypatch.setattr(Spoiled, "observation_space", Box(-np.inf, np.inf, (2,), np.float64))

    monkeypatch.setattr(
        Spoiled, "show", lambda self, seen: seen * np.float64(1e300 if self.count == 37 else 1)
    )
    for agent in ("ppo", "dqn"):
        assert ending(agent, "Spoiled-v0", tmp_path, monkeypatch) == 70
        assert "not finite at step 96: " in capfd.readouterr().err


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_the_newest_places_are_all_that_were_filled(where, tmp_path):
    memory = ReplayMemory(
        20,
        2,
        Spoiled.observation_space,
        Spoiled.action_space,
        folder=tmp_path / "f" if where == "disk" else None,
    )
    memory.open()
    no, yes = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    actions = torch.zeros(2, dtype=torch.int64)
    for number in range(1, 40):
        observations = torch.full((2, 2), float(number))
        memory.add(observations, actions, torch.full((2,), float(number)), no, yes, observations + 0.5)
    newest = memory.newest(3)
    assert newest["frames"].unique().tolist() == [36.5, 37, 37.5, 38, 38.5, 39, 39.5]
    assert {37, 38, 39} <= set(newest["rewards"].tolist())
    memory.add(observations, actions, torch.zeros(2), no, no, torch.full((2, 2), 50.0))
    assert memory.newest(1)["frames"].unique().tolist() == [39, 39.5, 50]
    assert len(memory.newest(10**6)["rewards"]) == 2 * memory.places


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_a_memory_holds_every_unsigned_type(dtype, stack, where, tmp_path):
    top = np.iinfo(dtype).max
    shape = (stack, 2) if stack > 1 else (2,)
    space, folder = Box(0, top, shape, dtype), tmp_path / "f" if where == "disk" else None
    memory = ReplayMemory(20, 1, space, Discrete(2), stack, folder=folder)
    memory.open()
    frames = [np.array([number, top - number], dtype) for number in range(6)]
    seen = [np.stack(frames[i : i + 3]) if stack > 1 else frames[i] for i in range(4)]
    no, action = torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    for before, after in itertools.pairwise(seen):
        memory.add(
            *(torch.from_numpy(before)[None], action, torch.zeros(1), no, no, torch.from_numpy(after)[None])
        )
    batch = memory.gather(torch.zeros(1, dtype=torch.int64), torch.tensor([2]))
    assert batch.observations.dtype == torch.from_numpy(seen[0]).dtype
    expected = [seen[2], seen[3]]
    if stack > 1:  # frames from before the memory's first are zeros; here all three are known
        assert batch.observations[0].numpy().tolist() == np.stack([frames[2], frames[3], frames[4]]).tolist()
    else:
        assert batch.observations[0].numpy().tolist() == expected[0].tolist()
    assert batch.next_observations[0].numpy().tolist() == expected[1].tolist()
    again = ReplayMemory(20, 1, space, Discrete(2), stack, folder=folder)
    again.open()
    again.load_state_dict(memory.state_dict())
    other = again.gather(torch.zeros(1, dtype=torch.int64), torch.tensor([2]))
    assert other.observations.numpy().tolist() == batch.observations.numpy().tolist()


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["ppo", "dqn"])
@pytest.mark.parametrize("shape", [(), (3,), (4, 4)])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_agents_learn_from_every_unsigned_type(dtype, shape, agent, tmp_path, monkeypatch):
    monkeypatch.setattr(Spoiled, "observation_space", Box(0, 100, shape, dtype))

    monkeypatch.setattr(Spoiled, "show", lambda self, seen: np.full(shape, self.t, dtype))
    assert ending(agent, "Spoiled-v0", tmp_path, monkeypatch, "--total-steps", "64") == 0


def add_steps(memory, tasks):
    """A step in each of these tasks."""
    observation, reward, no = torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    for task in tasks:
        memory.add(observation, torch.zeros(1, dtype=torch.int64), reward, no, no, observation, task)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_numbers_of_tasks_beyond_32_bits_are_kept(where, tmp_path):
    folder = tmp_path / "f" if where == "disk" else None
    memory = ReplayMemory(20, 1, Spoiled.observation_space, Discrete(2), folder=folder)
    memory.open()
    add_steps(memory, (3, 2**31, 2**40, 2**40))
    assert memory.tasks() == {3: 0.25, 2**31: 0.25, 2**40: 0.5}


def test_a_memory_on_disk_of_the_version_before_is_read(tmp_path):
    """Its numbers of tasks had 32 bits."""
    memory = ReplayMemory(20, 1, Spoiled.observation_space, Discrete(2), folder=tmp_path)
    memory.open()
    add_steps(memory, (3, 3, 7, 7))
    memory.flush()
    state = memory.state_dict()
    state["layout"]["fields"]["tasks"] = "<i4 ()"
    np.save(tmp_path / "tasks.npy", np.load(tmp_path / "tasks.npy").astype(np.int32))
    again = ReplayMemory(20, 1, Spoiled.observation_space, Discrete(2), folder=tmp_path)
    again.open()
    again.load_state_dict(state)
    assert again.tasks() == {3: 0.5, 7: 0.5}
    assert not list(tmp_path.glob(".tmp*"))


@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_a_run_on_tasks_of_large_numbers_ends_well(agent, tmp_path, monkeypatch):
    words = ["--stream.period", "32", "--stream.tasks", str(2**31), str(10**12), "5"]
    assert ending(agent, "cartpole-gravity", tmp_path, monkeypatch, *words, "--probes.every", "1") == 0
    (summary,) = tmp_path.glob("**/summary.json")
    tasks = [visit["task"] for visit in json.loads(summary.read_text())["visits"]]
    assert tasks == [2**31, 10**12, 5, 2**31, 10**12]
