"""Environments as users have them: each runs, or is refused in one sentence before anything is written."""

import importlib.util
import re
from pathlib import Path

import gymnasium as gym
import minigrid.wrappers as grids
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.wrappers import FlattenObservation

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.envs import StreamConfig
from neoteny.optim import AdamConfig
from neoteny.runners.probes import ProbeConfig
from tests.forked import python

ROOT = Path(__file__).resolve().parents[2]
SHARED = {
    "num_envs": 2, "total_steps": 32, "network": NetworkConfig(hidden=(8,)), "optim": AdamConfig(),
    "probes": ProbeConfig(every=0),
}  # fmt: skip
SMALL = {
    ppo: {"num_steps": 16, "minibatches": 1, "epochs": 1},
    dqn: {"log_every": 32, "train_every": 8, "learning_starts": 16, "batch_size": 8, "buffer_size": 100},
}


class Mine(gym.Env):
    """Counts its steps; what is odd about it comes by keyword."""

    action_space = Discrete(2)

    def __init__(self, space=Box(-10, 10, (2,), np.float32), look=None, result=None, first=None):  # noqa: B008
        self.observation_space, self.result, self.first = space, result, first
        self.look = look or (lambda t: np.array([t, 1], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return (self.first or self.look)(self.t), {}

    def step(self, action):
        self.t += 1
        step = self.look(self.t), float(action), self.t >= 10, False, {}
        return self.result(*step) if self.result else step


NOT_ARRAYS = "observations must be arrays of numbers"
REFUSED = {
    "dict": ({"space": Dict(a=Box(-1, 1, (2,))), "look": lambda t: {"a": np.zeros(2)}}, NOT_ARRAYS),
    "tuple": ({"space": Tuple((Discrete(3), Discrete(2))), "look": lambda t: (1, 1)}, NOT_ARRAYS),
    "discrete": ({"space": Discrete(16), "look": lambda t: t}, NOT_ARRAYS),
    "multi-discrete": ({"space": MultiDiscrete([16, 4])}, NOT_ARRAYS),
    "multi-binary": ({"space": MultiBinary(2)}, NOT_ARRAYS),
    "shape of a step": (
        {"look": lambda t: np.zeros(1 if t else 2, np.float32)},
        r"<Mine<.*> returned an observation of shape \(1,\), which is not in its Box",
    ),
    "scalar step": ({"look": lambda t: np.float32(t) if t else np.zeros(2, np.float32)}, r"of shape \(\)"),
    "shape of a reset": ({"look": lambda t: np.zeros((2, 1), np.float32)}, r"of shape \(2, 1\)"),
    "floats in uint8": (
        {"space": Box(0, 255, (2,), np.uint8), "look": lambda t: np.array([0.1, 0.5])},
        r"returned an observation of float64, which is not in its Box\(0, 255",
    ),
    "old reset": ({"first": lambda t: None, "look": lambda t: np.zeros(2, np.float32)}, r"of shape \(\)"),
    "old step": ({"result": lambda *step: (*step[:3], {})}, "returned 4 values"),
    "no reward": ({"result": lambda o, r, *rest: (o, None, *rest)}, "returned the reward None"),
    "reward in an array": (
        {"result": lambda o, r, *rest: (o, np.array([r]), *rest)},
        "which is not a number",
    ),
    "an error of its own": ({"look": lambda t: {}[t]}, r"KeyError: 0 \(.*test_user_envs\.py, line \d+\)"),
    "cubes": (
        {"space": Box(0, 1, (6, 6, 6), bool), "look": lambda t: np.zeros((6, 6, 6), bool)},
        r"--stream\.channels first or last",
    ),
}


def run(agent, stream, folder, **changes):
    flags = {**SHARED, **SMALL[agent], **changes}
    return agent.main(agent.Args(stream=stream, runs_dir=folder / "runs", **flags))


@pytest.mark.parametrize("agent", [ppo, dqn])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused(kind, agent, register, tmp_path, capsys):
    odd, message = REFUSED[kind]
    with pytest.raises(SystemExit) as exit:
        run(agent, StreamConfig(register(Mine, **odd)), tmp_path)
    assert exit.value.code == 2
    output = capsys.readouterr().err
    assert re.search(message, output)
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    assert not list(tmp_path.iterdir())


RUNS = {
    "lists": {"look": lambda t: [float(t), 1.0]},
    "float64": {"space": Box(-9, 99, (2,), np.float64), "look": lambda t: np.array([t, 1.0])},
    "int64": {"space": Box(0, 2**40, (2,), np.int64), "look": lambda t: np.array([2**33 + t, 1])},
    "one number": {"space": Box(-9, 99, (), np.float32), "look": lambda t: np.float32(t)},
    "whole rewards": {"result": lambda o, r, *rest: (o, int(r), *rest)},
    "0-d rewards": {"result": lambda o, r, *rest: (o, np.array(r), *rest)},
    "both ends": {"result": lambda o, r, end, _, info: (o, r, end, end, info)},
}


@pytest.mark.parametrize("agent", [ppo, dqn])
@pytest.mark.parametrize("kind", RUNS)
def test_what_is_only_unusual_runs(kind, agent, register, tmp_path):
    summary = run(agent, StreamConfig(register(Mine, **RUNS[kind])), tmp_path)
    assert summary["visits"][0]["end"] == 32


def test_what_environments_say_cannot_end_or_falsify_an_episode(register, tmp_path):
    own = {
        "episode_return": 6.0,
        "_episode_return": True,
        "final_obs": np.zeros(3),
        "task": "reach",
        "game": 1,
    }

    def loud(observation, reward, terminated, truncated, info):
        return observation, 1.0, terminated, truncated, {**own, "path": np.zeros(int(observation[0]))}

    id = register(Mine, result=loud)
    summary = run(ppo, StreamConfig(id), tmp_path, num_steps=32, total_steps=64)
    (visit,) = summary["visits"]
    assert (visit["task"], visit["episodes"], visit["return_at_end"]) == (0, 6, 10.0)
    stream = StreamConfig(id).make(2, device="cpu")
    stream.reset()
    info = stream.step(np.zeros(2, int))[-1]
    assert info["task"] == 0
    assert [each["task"] for each in info["env_infos"]] == ["reach", "reach"]


DOOR, GAP = "MiniGrid-DoorKey-5x5-v0", "MiniGrid-LavaGapS5-v0"
WRAPPERS = {  # all of the package, as people put them around an environment
    "stochastic": lambda: grids.ImgObsWrapper(grids.StochasticActionWrapper(gym.make(DOOR), prob=0.5)),
    "no death": lambda: grids.ImgObsWrapper(grids.NoDeath(gym.make(GAP), no_death_types=("lava",))),
    "seeds": lambda: grids.ImgObsWrapper(grids.ReseedWrapper(gym.make(DOOR), seeds=(1, 2))),
    "bonus": lambda: grids.ImgObsWrapper(grids.ActionBonus(gym.make(DOOR))),
    "positions": lambda: grids.ImgObsWrapper(grids.PositionBonus(gym.make(DOOR))),
    "view": lambda: grids.ImgObsWrapper(grids.ViewSizeWrapper(gym.make(DOOR), agent_view_size=5)),
    "narrow view": lambda: grids.ImgObsWrapper(grids.ViewSizeWrapper(gym.make(DOOR), agent_view_size=3)),
    "pixels": lambda: grids.ImgObsWrapper(grids.RGBImgPartialObsWrapper(gym.make(DOOR))),
    "all pixels": lambda: grids.ImgObsWrapper(grids.RGBImgObsWrapper(gym.make(DOOR))),
    "few pixels": lambda: grids.ImgObsWrapper(grids.RGBImgPartialObsWrapper(gym.make(DOOR), tile_size=4)),
    "one-hot": lambda: grids.ImgObsWrapper(grids.OneHotPartialObsWrapper(gym.make(DOOR))),
    "whole": lambda: grids.ImgObsWrapper(grids.FullyObsWrapper(gym.make(DOOR))),
    "flat": lambda: grids.FlatObsWrapper(gym.make(DOOR)),
    "bare": lambda: gym.make(DOOR),
    "direction": lambda: grids.ImgObsWrapper(grids.DirectionObsWrapper(gym.make(DOOR))),
    "texts": lambda: grids.ImgObsWrapper(grids.DictObservationSpaceWrapper(gym.make(DOOR))),
    "symbols": lambda: grids.ImgObsWrapper(grids.SymbolicObsWrapper(gym.make(DOOR))),
    "vector": lambda: FlattenObservation(grids.ImgObsWrapper(gym.make(DOOR))),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*A seed has been passed to `ReseedWrapper.reset`")
@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_registered_minigrid_in_any_wrapper_runs(kind, register, tmp_path):
    id = register(lambda: WRAPPERS[kind]())
    assert run(ppo, StreamConfig(id), tmp_path)["visits"][0]["end"] == 32


@pytest.mark.slow
def test_an_atari_game_runs_by_its_own_id(tmp_path):
    pytest.importorskip("ale_py")
    words = "--stream.id ALE/Pong-v5 --num-envs 2 --num-steps 16 --minibatches 1 --epochs 1 --total-steps 32"
    more = "--network.hidden 8 --probes.every 0 optim:adam"
    done = python(ROOT / "agents" / "ppo.py", *words.split(), *more.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pictures, 210 x 160 x 3, channels last, stepped by the engine single" in done.stdout
    assert "the games of this stream are stepped one by one" in done.stdout
    assert (tmp_path / "runs" / "ALE-Pong-v5" / "ppo" / "adam" / "s1" / "summary.json").exists()


def test_dqn_learns_from_pictures_in_colour(register, tmp_path):
    id = register(lambda: grids.ImgObsWrapper(grids.RGBImgObsWrapper(gym.make(DOOR))))
    assert run(dqn, StreamConfig(id), tmp_path)["visits"][0]["end"] == 32


@pytest.mark.skipif(importlib.util.find_spec("Box2D") is not None, reason="Box2D is installed")
def test_car_racing_without_box2d_names_the_extra(register, tmp_path, capsys):
    id = register(lambda: gym.make("CarRacing-v3", continuous=False))
    with pytest.raises(SystemExit) as exit:
        run(ppo, StreamConfig(id), tmp_path)
    assert exit.value.code == 2
    assert 'the package Box2D is not installed: pip install "neoteny[box2d]"' in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_discrete_car_racing_runs(register, tmp_path):
    pytest.importorskip("Box2D")
    id = register(lambda: gym.make("CarRacing-v3", continuous=False))
    assert run(ppo, StreamConfig(id), tmp_path)["visits"][0]["end"] == 32
