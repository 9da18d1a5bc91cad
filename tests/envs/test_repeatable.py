"""Environments whose results depend on more than seeds and actions are found by playing twice."""

import random
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, RecordEpisodeStatistics
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Goal, Wall
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import ActionBonus, ImgObsWrapper, PositionBonus

from neoteny.envs import StreamConfig
from neoteny.envs.registry import registered_streams
from neoteny.envs.schedule import Schedule
from neoteny.envs.single.engine import SingleConfig

COUNT = 0


class Walk(gym.Env):
    """Reward 1 for 30 steps, whatever happens: the parent of environments that remember something."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.begin()
        return np.zeros(2, np.float32), {}

    def begin(self):
        pass

    def reward(self):
        return 1.0

    def step(self, action):
        self.t += 1
        return np.array([self.t, action], np.float32), self.reward(), self.t >= 30, False, {}


class OwnNoise(Walk):
    def reward(self):
        return self.np_random.normal()


class Cached(Walk):
    """A cache of what never changes is no memory of episodes."""

    def __init__(self):
        self.table = {}

    def reward(self):
        return self.table.setdefault((self.t, int(self.np_random.integers(100))), 2.0 * self.t)


class Carried(Walk):
    """Its state is carried by the stream."""

    episodes = 0

    @property
    def lifelong_state(self):
        return self.episodes

    @lifelong_state.setter
    def lifelong_state(self, episodes):
        self.episodes = episodes

    def begin(self):
        self.episodes += 1

    def reward(self):
        return float(self.episodes)


class NotCarried(Walk):
    """The same without a lifelong_state."""

    episodes = 0

    def begin(self):
        self.episodes += 1

    def reward(self):
        return float(self.episodes)


class GlobalNoise(Walk):
    def reward(self):
        return float(np.random.normal())  # noqa: NPY002


class RareGlobalNoise(Walk):
    """The draw has an effect in one of a billion steps."""

    def reward(self):
        return 1.0 + (random.random() < 1e-9)


class SeedsGlobal(Walk):
    """With a second environment in between, seeding the global generator is of no use."""

    def reset(self, *, seed=None, options=None):
        np.random.seed(seed)  # noqa: NPY002
        return super().reset(seed=seed)

    def reward(self):
        return float(np.random.rand())  # noqa: NPY002


class Unseeded(Walk):
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def reward(self):
        return self.rng.normal()


class Counter(Walk):
    """Changes after 5,000 episodes, long after the check."""

    episodes = 0

    def begin(self):
        self.episodes += 1

    def reward(self):
        return 1.0 + (self.episodes > 5000)


class SharedCounter(Walk):
    episodes = 0

    def begin(self):
        SharedCounter.episodes += 1


class ModuleCounter(Walk):
    def begin(self):
        global COUNT
        COUNT += 1


def captured():
    """An environment whose function remembers something in a captured variable."""
    made = 0

    class Captures(Walk):
        def begin(self):
            nonlocal made
            made += 1

    return Captures()


class Watch(Walk):
    """The time is up after a minute of its own clock."""

    def begin(self):
        self.began = time.time()

    def step(self, action):
        observation, reward, ended, cut, info = super().step(action)
        return observation, reward, ended or time.time() - self.began > 60, cut, info


class EvenSeconds(Walk):
    def reward(self):
        return float(int(time.time()) % 2)


FINE = {
    "own generator": OwnNoise,
    "cache": Cached,
    "lifelong state": Carried,
    "records only": lambda: RecordEpisodeStatistics(gym.make("CartPole-v1")),
}
MINIGRID = "MiniGrid-Empty-8x8-v0"
WRONG = {
    "NormalizeReward": (lambda: NormalizeReward(gym.make("CartPole-v1")), "the reward of step"),
    "NormalizeObservation": (
        lambda: NormalizeObservation(gym.make("CartPole-v1")),
        "the observation of",
    ),
    "NormalizeReward without rewards": (
        lambda: NormalizeReward(ImgObsWrapper(gym.make("MiniGrid-Empty-16x16-v0"))),
        "NormalizeReward keeps return_rms",
    ),
    "ActionBonus": (lambda: ImgObsWrapper(ActionBonus(gym.make(MINIGRID))), "the reward of step"),
    "PositionBonus": (lambda: ImgObsWrapper(PositionBonus(gym.make(MINIGRID))), "the reward of step"),
    "no lifelong state": (NotCarried, "the reward of step"),
    "global noise": (GlobalNoise, "global random generator of numpy.random"),
    "rare global noise": (RareGlobalNoise, "global random generator of random"),
    "seeded global noise": (SeedsGlobal, "global random generator of numpy.random"),
    "generator that reset does not seed": (Unseeded, "the reward of step"),
    "counter": (Counter, "Counter keeps episodes"),
    "counter of the class": (SharedCounter, "SharedCounter.episodes, which all environments share"),
    "global variable": (ModuleCounter, "COUNT, which all environments share"),
    "captured variable": (captured, "which all environments share, changes"),
    "own clock": (Watch, "Watch keeps began"),
    "time of day": (EvenSeconds, "the reward of step"),
}


def check(make):
    env = make()
    spaces = env.observation_space, env.action_space
    env.close()
    return SingleConfig().unrepeatable(lambda k, seed: make(), spaces, Schedule())


@pytest.mark.parametrize("kind", FINE)
def test_repeatable_environments_pass(kind):
    assert check(FINE[kind]) == ""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", WRONG)
def test_environments_that_depend_on_more_than_seeds_and_actions_are_found(kind):
    make, reason = WRONG[kind]
    assert reason in check(make)


def test_the_check_leaves_global_generators_and_clocks_alone():
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    clock = time.time
    check(GlobalNoise)
    check(RareGlobalNoise)
    drawn = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    assert drawn == (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002
    assert time.time is clock


class Breaks(Walk):
    def reward(self):
        if self.t > 20:
            raise SystemExit(3)
        return 1.0


def test_an_environment_that_breaks_is_left_to_the_run():
    assert check(Breaks) == ""


class Room(MiniGridEnv):
    """A room whose layout a child may furnish."""

    def __init__(self, **options):
        super().__init__(mission_space=MissionSpace(lambda: "go"), grid_size=6, max_steps=40, **options)

    def _gen_grid(self, width, height):
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.put_obj(Goal(), width - 2, height - 2)
        self.agent_pos, self.agent_dir = (1, 1), 0
        self.furnish()

    def furnish(self):
        self.grid.set(int(self.np_random.integers(2, 5)), 2, Wall())


class GlobalRoom(Room):
    def furnish(self):
        self.grid.set(random.randint(2, 4), 2, Wall())


class CountingRoom(Room):
    """The goal moves after every ten episodes."""

    def furnish(self):
        self.made = getattr(self, "made", 0) + 1
        self.grid.set(4, 4, None)
        self.put_obj(Goal(), *[(4, 4), (4, 1), (1, 4)][self.made // 10 % 3])


@pytest.mark.parametrize(
    ("room", "reason"),
    [
        (Room, ""),
        (GlobalRoom, "global random generator of random"),
        (CountingRoom, "task 0 cannot be repeated"),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "single"])
def test_layouts_of_own_minigrids_on_tensors_and_of_the_package(room, reason, engine):
    id = f"Repeatable{room.__name__}-v0"
    gym.register(id, entry_point=room)
    try:
        stream = StreamConfig(id, engine=engine).make(2, device="cpu")
        assert reason in stream.unrepeatable
        assert bool(stream.unrepeatable) == bool(reason)
        assert ("a resumed run will not be exact" in str(stream)) == bool(reason)
        assert stream.inexact == [stream.unrepeatable] * bool(reason)
    finally:
        del gym.registry[id]


SMALL = [id for id in registered_streams() if not id.startswith(("lunarlander", "atari"))]


@pytest.mark.slow
@pytest.mark.parametrize("id", SMALL)
def test_shipped_streams_are_repeatable(id):
    stream = StreamConfig(id).make(2, seed=1)  # which does not try it, since it is shipped
    began = time.perf_counter()
    assert stream.engine_config.unrepeatable(stream.make_task, stream.raw_spaces, stream.schedule) == ""
    assert time.perf_counter() - began < 10  # the check itself takes less than a second


def test_a_task_that_is_not_the_first_is_checked():
    def task(k, seed):
        return Unseeded() if k == 2 else Walk()

    spaces = Walk.observation_space, Walk.action_space
    reason = SingleConfig().unrepeatable(task, spaces, Schedule(period=100, tasks=3))
    assert reason.startswith("task 2 cannot be repeated")
