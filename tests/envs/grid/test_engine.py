"""MiniGrid on tensors beside the package itself, stepped from the same layouts by the same actions."""

import collections
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.actions import Actions
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Box, Door
from minigrid.envs import RedBlueDoorEnv
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import (
    FlatObsWrapper,
    FullyObsWrapper,
    ImgObsWrapper,
    OneHotPartialObsWrapper,
    ViewSizeWrapper,
)

from neoteny.envs import Schedule, Stream, StreamConfig
from neoteny.envs.config import ENGINES
from neoteny.envs.engine import UncoveredError
from neoteny.envs.grid.engine import GridConfig, GridEngine
from neoteny.envs.grid.tables import OBJECTS, code_of
from neoteny.envs.grid.task import GridTask
from neoteny.envs.single.engine import SingleConfig
from tests.grid_bot import Bot
from tests.seeds import layout_seeds

UNCOVERED = "WFC"
IDS = sorted(id for id in gym.registry if id.startswith("MiniGrid-") and UNCOVERED not in id)
MOVING = [id for id in IDS if "Dynamic" in id]


def package(id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # superseded versions are covered too
        return gym.make(id, disable_env_checker=True)


def engine(make, num_envs, seed=0, **options):
    """Environments of one task, at the beginning of their first episodes."""
    env = make()
    envs = GridEngine(lambda k, seed: make(), (env.observation_space, env.action_space), num_envs, **options)
    envs.enter(Schedule(seed=seed), 0)
    envs.reset()
    return envs


def mission(envs, i):
    return bytes(envs.board.cells[i, envs.view.missions].tolist()).rstrip(b"\0").decode()


def compare(make, steps, num_envs=4, seed=0, **options):
    """Step both; returns what happened, by how often, and what was there for it to happen to."""
    envs = engine(lambda: ImgObsWrapper(make()), num_envs, seed, **options)
    references = [make() for _ in range(num_envs)]
    bots = [
        Bot(reference.unwrapped, np.random.default_rng([seed, i])) for i, reference in enumerate(references)
    ]
    seen, there = collections.Counter(), set()

    def check(i, observation):
        np.testing.assert_array_equal(envs.seen[i], observation["image"])
        assert observation["direction"] == envs.board.place[i] % 4
        assert observation["mission"].lower() == mission(envs, i)

    def reset(i):
        bots[i].forget()
        there.update(thing.type for thing in references[i].unwrapped.grid.grid if thing)
        there.update({"lock"} if doors(references[i].unwrapped) else ())
        check(i, references[i].reset(seed=layout_seeds(envs)[i])[0])

    for i in range(num_envs):
        reset(i)
    for _ in range(steps // num_envs):
        actions = [int(bot.act()) for bot in bots]
        before = [(bot.env.carrying, bot.env.grid.get(*bot.env.front_pos), doors(bot.env)) for bot in bots]
        envs.begin_step()
        reward, terminated, truncated, _ = envs.step(torch.tensor(actions))
        for i, (reference, action) in enumerate(zip(references, actions)):
            observation, *outcome, _ = reference.step(action)
            assert outcome == [reward[i], terminated[i], truncated[i]], (outcome, action)
            check(i, observation)
            carried, front, locked = before[i]
            env = reference.unwrapped
            seen["success"] += outcome[0] > 0
            seen["failure"] += outcome[1] and outcome[0] <= 0
            seen["time over"] += outcome[2]
            seen["picked up"] += carried is None and env.carrying is not None
            seen["dropped"] += carried is not None and env.carrying is None
            seen["box opened"] += action == Actions.toggle and isinstance(front, Box)
            seen["door opened"] += action == Actions.toggle and isinstance(front, Door) and front.is_open
            seen["door unlocked"] += locked > doors(env)
        done = terminated | truncated
        envs.reset(done)
        for i in done.nonzero().flatten().tolist():
            reset(i)
    return seen, there


# What has to happen in 20,000 steps, and to which things; any if none are named.
HAPPENS = {
    "success": (),
    "failure": ("lava",),
    "picked up": ("key", "ball", "box"),
    "dropped": ("key", "ball", "box"),
    "box opened": ("box",),
    "door opened": ("door",),
    "door unlocked": ("lock",),
}

# What cannot happen, by the rules of an environment.
NEVER = {"Playground": ("success",), "Fetch": ("dropped",), "Memory": ("picked up", "dropped")}


def doors(env):
    """How many are locked."""
    return sum(isinstance(thing, Door) and thing.is_locked for thing in env.grid.grid)


@pytest.mark.slow
@pytest.mark.parametrize("id", [id for id in IDS if id not in MOVING])
def test_the_package_does_the_same(id, request):
    steps = request.config.getoption("--grid-steps")
    seen, there = compare(lambda: package(id), steps, layouts=32, renew_every=1)
    if steps >= 20_000:
        print("|", " | ".join([id, *(f"{seen[event]:,}" for event in (*HAPPENS, "time over"))]), "|")
        never = next((events for name, events in NEVER.items() if name in id), ())
        due = [event for event, things in HAPPENS.items() if not things or there & set(things)]
        assert not [event for event in due if not seen[event] and event not in never]


OBJECT = st.sampled_from([thing for thing in OBJECTS if thing is None or thing.type not in ("goal", "lava")])


class Drawn(MiniGridEnv):
    """A room of objects that hypothesis has drawn."""

    def __init__(self, things, place, see_through_walls, size):
        self.things, self.place = things, place
        super().__init__(
            MissionSpace(lambda: "look"),
            grid_size=7,
            see_through_walls=see_through_walls,
            agent_view_size=size,
        )

    def _gen_grid(self, width, height):
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        for number, thing in enumerate(self.things):
            clone = None if thing is None else type(thing).__new__(type(thing))
            if clone is not None:
                clone.__dict__.update(thing.__dict__)
            self.grid.set(1 + number % 5, 1 + number // 5, clone)
        x, y, self.agent_dir = self.place
        self.agent_pos = (x, y)
        self.grid.set(x, y, None)
        self.mission = "look"


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([None, None, None, *OBJECTS]), min_size=25, max_size=25),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3)),
    st.booleans(),
    st.sampled_from([3, 5, 7]),
    st.integers(0, 1000),
)
def test_the_package_does_the_same_in_any_room(things, place, see_through_walls, size, seed):
    compare(lambda: Drawn(things, place, see_through_walls, size), 200, num_envs=2, seed=seed, layouts=1)


def test_every_object_has_a_code_of_its_own():
    codes = [code_of(thing) for thing in OBJECTS]
    assert len(set(codes)) == len(codes)
    assert max(codes) < 250
    with pytest.raises(UncoveredError, match=r"the tables do not hold a red box that holds a door"):
        code_of(Box("red", Door("blue")))


@pytest.mark.slow
@pytest.mark.parametrize("id", MOVING)
def test_obstacles_move_as_often_everywhere_as_in_the_package(id):
    """Where a ball goes from one cell, and whether it stays, against counts of the package."""
    envs = engine(lambda: ImgObsWrapper(package(id)), 512, layouts=1)
    reference = package(id)
    reference.reset(seed=layout_seeds(envs)[0])
    np.testing.assert_array_equal(envs.seen[0], reference.unwrapped.gen_obs()["image"])
    ours, theirs = collections.Counter(), collections.Counter()
    envs.step(torch.zeros(512, dtype=torch.int64))
    ours.update(map(tuple, envs.board.data.T.tolist()))
    for seed in range(512):
        reference.reset(seed=layout_seeds(envs)[0])
        reference.unwrapped._np_random = np.random.default_rng(seed)
        reference.step(0)
        env = reference.unwrapped
        theirs[tuple(int(o.cur_pos[0]) * env.height + int(o.cur_pos[1]) for o in env.obstacles)] += 1
    first = [collections.Counter() for _ in range(2)]
    for marginal, counts in zip(first, (ours, theirs)):
        for cells, count in counts.items():
            for number, cell in enumerate(cells):
                marginal[number, cell] += count
    assert first[0].keys() == first[1].keys()
    chi2 = sum((first[0][key] - first[1][key]) ** 2 / (first[0][key] + first[1][key]) for key in first[0])
    freedom = len(first[0]) - len(envs.board.data)
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def test_obstacles_end_episodes_as_in_the_package():
    """From where all is at some moment, whatever the obstacles do next."""
    id = "MiniGrid-Dynamic-Obstacles-6x6-v0"
    envs, rng = engine(lambda: ImgObsWrapper(package(id)), 64, layouts=64), np.random.default_rng(0)
    hits = goals = 0
    for _ in range(150):
        actions = torch.as_tensor(rng.choice(3, 64, p=[0.1, 0.2, 0.7]))
        expected = (actions == Actions.forward) & ~envs.board.is_free_or_goal(envs.board.front)
        envs.begin_step()
        reward, terminated, truncated, _ = envs.step(actions)
        assert torch.equal(reward == -1, expected)
        assert torch.equal(terminated, expected | (reward > 0))
        balls = (envs.board.cells == code_of(Ball())).sum(1)
        assert (balls == len(envs.board.data)).all()
        assert (envs.board.cells.gather(1, envs.board.data.T) == code_of(Ball())).all()
        hits, goals = hits + int(expected.sum()), goals + int((reward > 0).sum())
        envs.reset(terminated | truncated)
    assert hits > 20
    assert goals > 5


def wrapped(wrap, id="MiniGrid-DoorKey-6x6-v0"):
    return lambda: wrap(package(id))


@pytest.mark.parametrize(
    "wrap",
    [
        FlatObsWrapper,
        lambda env: ImgObsWrapper(FullyObsWrapper(env)),
        lambda env: ImgObsWrapper(OneHotPartialObsWrapper(env)),
        lambda env: gym.wrappers.FlattenObservation(ImgObsWrapper(env)),
        lambda env: gym.wrappers.TimeLimit(ImgObsWrapper(env), 20),
    ],
    ids=["flat", "whole", "one-hot", "image as a vector", "time limit"],
)
def test_what_wrappers_show(wrap):
    make = wrapped(wrap)
    envs, reference = engine(make, 1, layouts=8), make()
    first, _ = reference.reset(seed=layout_seeds(envs)[0])
    np.testing.assert_array_equal(envs.seen[0], first)
    assert envs.seen.dtype == torch.uint8
    bot = Bot(reference.unwrapped, np.random.default_rng(0))
    for _ in range(100):
        action = int(bot.act())
        envs.begin_step()
        reward, terminated, truncated, _ = envs.step(torch.tensor([action]))
        observation, *outcome, _ = reference.step(action)
        np.testing.assert_array_equal(envs.seen[0], observation)
        assert outcome == [reward[0], terminated[0], truncated[0]]
        if outcome[1] or outcome[2]:
            envs.reset(terminated | truncated)
            observation, _ = reference.reset(seed=layout_seeds(envs)[0])
            np.testing.assert_array_equal(envs.seen[0], observation)
            bot.forget()


class OpenDoors(RedBlueDoorEnv):
    """Closing the blue door, too, ends an episode without a reward."""

    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        self.red_door.is_open = self.blue_door.is_open = True


@pytest.mark.slow
def test_red_and_blue_doors_that_are_open_at_first():
    seen, _ = compare(lambda: OpenDoors(size=5), 4000, layouts=8)
    assert seen["failure"] > 5


class Strange(MiniGridEnv):
    """An environment with a step of its own."""

    def __init__(self):
        super().__init__(MissionSpace(lambda: ""), grid_size=5)

    def _gen_grid(self, width, height):
        self.grid, self.mission = Grid(width, height), ""
        self.grid.wall_rect(0, 0, width, height)
        self.agent_pos, self.agent_dir = (1, 1), 0

    def step(self, action):
        return super().step(action)


class Generous(gym.ObservationWrapper):
    """Does more than its base class says."""

    def observation(self, observation):
        return observation

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 1.0, *rest


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: Generous(ImgObsWrapper(package("MiniGrid-Empty-5x5-v0"))),
            "Generous cannot be expressed by tables",
        ),
        (lambda: ImgObsWrapper(Strange()), "Strange overrides step"),
        (lambda: package("MiniGrid-Empty-5x5-v0"), "its observations are not an array"),
        (lambda: gym.make("CartPole-v1"), "CartPoleEnv is not a MiniGrid environment"),
        (
            lambda: gym.wrappers.TransformReward(ImgObsWrapper(package("MiniGrid-Empty-5x5-v0")), abs),
            "TransformReward cannot be expressed by tables",
        ),
        (
            lambda: ImgObsWrapper(ViewSizeWrapper(package("MiniGrid-Empty-5x5-v0"), 5)),
            "ViewSizeWrapper cannot be expressed by tables",
        ),
        (
            lambda: gym.wrappers.RescaleObservation(
                gym.wrappers.DtypeObservation(ImgObsWrapper(package("MiniGrid-Empty-5x5-v0")), np.float32),
                0,
                1,
            ),
            "its observations are not only rearranged",
        ),
    ],
)
def test_what_is_not_covered_is_reported(make, reason):
    with pytest.raises(UncoveredError, match=reason):
        GridTask(make())


def test_what_is_not_covered_is_stepped_by_the_package(capsys):
    stream = Stream(lambda k, seed: ImgObsWrapper(Strange()), Schedule(), ENGINES, 2)
    assert not isinstance(stream.engine, GridEngine)
    (output,) = capsys.readouterr().out.splitlines()
    assert "MiniGrid's own package" in output
    assert "Strange overrides step" in output
    assert stream.reset()[0].shape == (2, 7, 7, 3)


@pytest.mark.parametrize("id", ["MiniGrid-DoorKey-5x5-v0", "MiniGrid-Dynamic-Obstacles-5x5-v0"])
def test_an_environment_does_the_same_however_many_there_are(id):
    make = lambda: ImgObsWrapper(package(id))  # noqa: E731
    one, many = (engine(make, n, seed=3, layouts=8, renew_every=1) for n in (1, 4096))
    actions = torch.randint(0, int(one.spaces[1].n), (60, 4096), generator=torch.Generator().manual_seed(0))
    for action in actions:
        mine, theirs = one.step(action[:1])[:3], many.step(action)[:3]
        assert [part[0] for part in mine] == [part[0] for part in theirs]
        assert torch.equal(one.seen[0], many.seen[0])
        one.reset(mine[1] | mine[2])
        many.reset(theirs[1] | theirs[2])
        assert torch.equal(one.seen[0], many.seen[0])
    assert len(set(layout_seeds(many))) >= 8


def test_layouts_are_renewed_and_every_environment_sees_them_all():
    envs = engine(wrapped(ImgObsWrapper, "MiniGrid-FourRooms-v0"), 4, layouts=32, renew_every=2)
    seen = [set() for _ in range(4)]
    for _ in range(32):
        for mine, seed in zip(seen, layout_seeds(envs)):
            mine.add(seed)
        envs.reset(torch.ones(4, dtype=torch.bool))
    assert all(mine == seen[0] for mine in seen)
    assert len(seen[0]) == 32
    for _ in range(64):
        envs.begin_step()
        envs.step(torch.zeros(4, dtype=torch.int64))
    later = set()
    for _ in range(32):
        envs.reset(torch.ones(4, dtype=torch.bool))
        later |= set(layout_seeds(envs))
    assert len(later) == 32
    assert not later & seen[0]


def test_layouts_drawn_ahead_are_those_drawn_when_they_are_due():
    """As a run draws them that is restored between two renewals."""
    ahead, late = (engine(wrapped(ImgObsWrapper, "MiniGrid-FourRooms-v0"), 1, layouts=8) for _ in range(2))
    for number in (3, 0, 16):
        for _ in range(number):
            ahead.pools[0].draw_next()
        places = [envs.pools[0].renew(16) for envs in (ahead, late)]
        assert places[0].tolist() == places[1].tolist() == list(range(8))
        assert torch.equal(ahead.pools[0].cells, late.pools[0].cells)
        assert torch.equal(ahead.pools[0].data, late.pools[0].data)


@pytest.mark.parametrize("steps", [5, 16, 20, 39])
def test_a_restored_engine_has_the_layouts_of_the_last_renewal(steps):
    """Which takes place after 16 draws, one a step here."""
    one, two = (
        engine(wrapped(ImgObsWrapper, "MiniGrid-FourRooms-v0"), 2, layouts=8, renew_every=1) for _ in range(2)
    )
    for _ in range(steps):
        one.begin_step()
    two.load_state_dict(one.state_dict(), Schedule(), 0, torch.zeros(2))
    for _ in range(2):
        assert torch.equal(one.pools[0].cells, two.pools[0].cells)
        for each in (one, two):
            for _ in range(16):
                each.begin_step()


@pytest.mark.usefixtures("forked_workers")
def test_workers_do_not_change_the_engine_and_so_the_results():
    workers = SingleConfig(workers=1)
    with pytest.raises(ValueError, match=r"--stream\.single flags .* ignored: .* --stream\.engine grid"):
        StreamConfig("grid-layouts", single=workers).make(2)
    stream = StreamConfig("grid-layouts", single=workers, engine="single").make(2)
    assert stream.reset()[0].shape == (2, 7, 7, 3)
    stream.close()


def test_a_fixed_layout_stays():
    stream = StreamConfig("grid-resampled-crossings").make(3)
    stream.reset()
    (layout,) = set(layout_seeds(stream.engine))
    for _ in range(500):
        stream.step(stream.action_space.sample())
    assert layout_seeds(stream.engine) == [layout] * 3


def test_missions_are_read_as_they_are_written():
    envs = engine(wrapped(ImgObsWrapper, "MiniGrid-LockedRoom-v0"), 2, layouts=4)
    reference = package("MiniGrid-LockedRoom-v0")
    for i, seed in enumerate(layout_seeds(envs)):
        assert reference.reset(seed=seed)[0]["mission"] == mission(envs, i)


@pytest.mark.parametrize("layouts", [12, 0, -8])
def test_a_number_of_layouts_that_is_no_power_of_two_is_refused(layouts):
    with pytest.raises(ValueError, match=r"--stream\.grid\.layouts must be a power of two"):
        StreamConfig("grid-layouts", grid=GridConfig(layouts)).make(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_does_the_same_as_the_cpu():
    make = wrapped(ImgObsWrapper)
    here, there = (engine(make, 64, device=device) for device in ("cpu", "cuda"))
    for action in torch.randint(0, 7, (200, 64), generator=torch.Generator().manual_seed(0)):
        outcomes = [envs.step(action.to(envs.device))[:3] for envs in (here, there)]
        for one, two in zip(*outcomes):
            assert torch.equal(one, two.cpu())
        for envs, (_, terminated, truncated) in zip((here, there), outcomes):
            envs.reset(terminated | truncated)
        assert torch.equal(here.seen, there.seen.cpu())


def test_random_numbers_have_53_bits_and_are_below_1():
    envs = engine(lambda: ImgObsWrapper(package("MiniGrid-Dynamic-Obstacles-5x5-v0")), 512, layouts=8)
    numbers = torch.cat([envs.board.random(draw) for draw in range(64)])
    assert numbers.dtype == torch.float64
    assert 0 <= numbers.min() < 1e-3
    assert 1 - 1e-3 < numbers.max() < 1
    assert not torch.equal(numbers, numbers.float().double())
