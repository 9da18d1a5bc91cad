"""MiniGrid environments as users write them do the same on tensors as in the package, or are left to it."""

import enum
import functools
import itertools
import random
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit, TransformAction, TransformObservation
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Box, Door, Goal, Key, Lava, Wall
from minigrid.envs import DoorKeyEnv, DynamicObstaclesEnv, EmptyEnv
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FlatObsWrapper, ImgObsWrapper, OneHotPartialObsWrapper

from neoteny.envs import Schedule, Stream, StreamConfig
from neoteny.envs.checks import try_out
from neoteny.envs.config import ENGINES
from neoteny.envs.engine import UncoveredError
from neoteny.envs.grid.engine import GridConfig, GridEngine
from neoteny.envs.grid.rules import Rules
from neoteny.envs.grid.task import FixedLayout, GridTask
from neoteny.envs.single.engine import SingleConfig, SingleEngine
from tests.seeds import layout_seeds

LAYOUTS = GridConfig(layouts=64)
COUNT, EPISODES = {"episodes": 0}, itertools.count()
RARE = 64


class Room(MiniGridEnv):
    """A room with a goal, furnished by its subclasses."""

    size, see = 6, True

    def __init__(self, **options):
        options = {"grid_size": self.size, "max_steps": 40, "see_through_walls": self.see} | options
        super().__init__(mission_space=MissionSpace(lambda: "go"), **options)

    def _gen_grid(self, width, height):
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.put_obj(Goal(), width - 2, height - 2)
        self.agent_pos, self.agent_dir = (1, 1), 0
        self.furnish()

    def furnish(self):
        pass

    def is_rare(self):
        return self._rand_int(0, RARE) == 0


def room(furnish=None, wrap=ImgObsWrapper, **members):
    """A function that makes an environment of a new subclass."""
    kind = type("Mine", (Room,), members | ({"furnish": furnish} if furnish else {}))
    return lambda: wrap(kind())


class Few(enum.IntEnum):
    forward = 0
    left = 1
    right = 2
    pickup = 3
    drop = 4
    toggle = 5
    done = 6


class Flower(Ball):
    def can_overlap(self):
        return True


class Torus(Grid):
    def get(self, i, j):
        return super().get(i % self.width, j % self.height)


def with_attribute(name, value):
    """A constructor that sets an attribute."""

    def construct(self):
        Room.__init__(self)
        setattr(self, name, value(self) if callable(value) and name == "step" else value)

    return construct


def max_steps_of_the_layout(self):
    self.max_steps = int(self._rand_int(5, 30))


def max_steps_of_a_rare_layout(self):
    self.max_steps = 10 if self.is_rare() else 40


def counter_on_the_environment(self):
    self.own = getattr(self, "own", 0) + 1
    if self.own > 1000:
        self.grid.set(2, 2, Wall())


def counter_on_the_class(self):
    Counted.episodes += 1
    if Counted.episodes > 1000:
        self.grid.set(2, 2, Wall())


class Counted:
    episodes = 0


def counter_in_a_global(self):
    COUNT["episodes"] += 1
    if COUNT["episodes"] > 1000:
        self.grid.set(2, 2, Wall())


def counter_in_an_iterator(self):
    if next(EPISODES) > 1000:
        self.grid.set(2, 2, Wall())


def counter_in_a_default(self, seen=[]):  # noqa: B006
    seen.append(0)
    if len(seen) > 1000:
        self.grid.set(2, 2, Wall())


def rare_counter(self):
    if self._rand_int(0, 8) == 0:
        self.own = getattr(self, "own", 0) + 1
    if getattr(self, "own", 0) > 100:
        self.grid.set(2, 2, Wall())


def grid_of_another_size(self):
    n = int(self._rand_int(5, 8))
    self.width = self.height = n
    self.grid = Grid(n, n)
    self.grid.wall_rect(0, 0, n, n)


def grid_that_is_not_of_the_size(self):
    self.grid = Grid(8, 8)
    self.grid.wall_rect(0, 0, 8, 8)


def rare_object(self):
    if self.is_rare():
        self.grid.set(2, 2, Flower("green"))


def object_with_its_own_method(self):
    for thing in filter(None, self.grid.grid):
        if thing.type == "goal":
            thing.can_overlap = lambda: False


def object_of_another_type(self):
    for thing in filter(None, self.grid.grid):
        if thing.type == "goal":
            thing.type = "lava"


def pythons_generator(self):
    self.grid.set(random.randint(2, 4), 2, Wall())


def pythons_generator_in_a_rare_layout(self):
    if self.is_rare():
        self.grid.set(random.randint(2, 4), 2, Wall())


def numpys_generator(self):
    if self.is_rare():
        self.grid.set(int(np.random.randint(2, 4)), 2, Wall())  # noqa: NPY002


def unseeded_generator(self):
    if self.is_rare():
        self.grid.set(int(np.random.default_rng().integers(2, 4)), 2, Wall())


def a_clock(self):
    if time.time() % 1000 < 1:
        self.grid.set(2, 2, Wall())


def steps_of_the_episode_before(self):
    if getattr(self, "step_count", 0) > 30:
        self.grid.set(2, 2, Wall())


def what_was_carried_before(self):
    self.grid.set(2, 1, Key("red"))
    if self.carrying:
        self.grid.set(2, 2, Wall())


def grid_that_stays(self):
    if not hasattr(self, "mine"):
        self.grid.set(2, 1, Door("red"))
        self.mine = self.grid
    self.grid = self.mine


def door_that_stays(self):
    if not hasattr(self, "door"):
        self.door = Door("red")
    self.grid.set(2, 1, self.door)


def door_in_two_cells(self):
    door = Door("red")
    self.grid.set(2, 1, door)
    self.grid.set(1, 2, door)


def drawn_once(self):
    if not hasattr(self, "place"):
        self.place = int(self._rand_int(2, 5))
    self.grid.set(self.place, 2, Wall())


def not_where_it_was(self):
    place = int(self._rand_int(2, 5))
    self.place = place if place != getattr(self, "place", None) else 2 + place % 3
    self.grid.set(self.place, 2, Wall())


def own_grid(self):
    cells = self.grid.grid
    self.grid = Torus(self.width, self.height)
    self.grid.grid = cells


def step_of_the_layout(self):
    self.step = lambda action: None


def view_of_a_rare_layout(self):
    if self.is_rare():
        self.gen_obs = lambda: {"image": np.zeros((7, 7, 3), np.uint8)}


def generator_of_a_space(self):
    if self.is_rare():
        self.agent_dir = int(self.action_space.sample()) % 4


def no_walls_around(self):
    self.grid = Grid(self.width, self.height)


def direction_that_is_none(self):
    self.agent_dir = 4


UNLIKE_LAYOUTS = [
    (max_steps_of_the_layout, "change max_steps"),
    (max_steps_of_a_rare_layout, "change max_steps"),
    (counter_on_the_environment, "own changes from episode to episode"),
    (counter_on_the_class, r"Counted\.episodes changes from episode to episode"),
    (counter_in_a_global, "COUNT changes"),
    (counter_in_an_iterator, "EPISODES changes"),
    (counter_in_a_default, "a default of counter_in_a_default changes"),
    (rare_counter, "own changes"),
    (grid_of_another_size, "change width, height"),
    (grid_that_is_not_of_the_size, "its grid is 8 by 8 cells"),
    (rare_object, "makes objects of its own, Flower"),
    (object_with_its_own_method, "a green goal has its own can_overlap"),
    (object_of_another_type, "the tables do not hold a green lava"),
    (pythons_generator, "depend on random"),
    (pythons_generator_in_a_rare_layout, "depend on random"),
    (numpys_generator, "depend on random"),
    (unseeded_generator, "depend on random"),
    (a_clock, "depend on time"),
    (steps_of_the_episode_before, "depend on step_count"),
    (what_was_carried_before, "depend on carrying"),
    (grid_that_stays, "its grid or a door stays"),
    (door_that_stays, "its grid or a door stays"),
    (door_in_two_cells, "one door is in several cells"),
    (drawn_once, "not functions of their seeds"),
    (not_where_it_was, "not functions of their seeds|place changes"),
    (own_grid, "makes objects of its own, Torus"),
    (step_of_the_layout, "its layouts set step"),
    (view_of_a_rare_layout, "its layouts set gen_obs"),
    (generator_of_a_space, "depend on sample"),
    (no_walls_around, "no walls enclose the agent"),
    (direction_that_is_none, "direction is 4"),
]


@pytest.mark.parametrize(
    ("furnish", "reason"), UNLIKE_LAYOUTS, ids=lambda each: getattr(each, "__name__", "")
)
def test_layouts_that_depend_on_more_than_a_seed_are_left_to_the_package(furnish, reason):
    assert_left_to_the_package(room(furnish), reason)


def own_step(self, action):
    observation, reward, *rest = Room.step(self, action)
    return observation, reward - 0.01, *rest


def own_reset(self, *, seed=None, options=None):
    Room.reset(self, seed=seed)
    self.carrying = Key("red")
    return self.gen_obs(), {}


def executed(reward):
    """A class from a text, which has no module."""
    names = {"Room": Room}
    exec(f"class Mine(Room):\n    _reward = {reward}", names)
    return lambda: ImgObsWrapper(names["Mine"]())


def patched(env, name, value):
    """An environment with an attribute that was set on it from outside."""
    setattr(env.unwrapped, name, value)
    return env


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (room(__init__=with_attribute("actions", Few)), "has its own actions"),
        (room(__init__=with_attribute("action_space", gym.spaces.Discrete(8))), "has 8 actions"),
        (room(__init__=with_attribute("action_space", gym.spaces.Discrete(3, start=1))), "its actions are"),
        (room(_reward=lambda self: 1), "overrides _reward"),
        (room(step=own_step), "overrides step"),
        (room(reset=own_reset), "overrides reset"),
        (room(gen_obs_grid=lambda self, size=None: Room.gen_obs_grid(self, size)), "overrides gen_obs_grid"),
        (room(get_view_exts=lambda self, size=None: (0, 0, 7, 7)), "overrides get_view_exts"),
        (room(agent_sees=lambda self, x, y: True), "overrides agent_sees"),
        (room(front_pos=property(lambda self: (1, 1))), "overrides front_pos"),
        (room(carrying=property(lambda self: None, lambda self, value: None)), "overrides carrying"),
        (room(__init__=with_attribute("step", lambda env: lambda action: None)), "overrides step"),
        (lambda: patched(ImgObsWrapper(EmptyEnv()), "_reward", lambda: 1), "overrides _reward"),
        (executed("lambda self: 1"), "overrides _reward"),
        (room(_gen_grid=lambda self, w, h: self.nothing), "AttributeError: 'Mine' object has no attribute"),
        (
            lambda: ImgObsWrapper(type("Mine", (DynamicObstaclesEnv,), {})(size=6)),
            "obstacles move at random",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_a_class_overrides_is_left_to_the_package(make, reason):
    """Own rewards, steps, actions and views: the tables hold the package's."""
    assert_left_to_the_package(make, reason)


def test_methods_put_into_the_packages_classes_are_found(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(MiniGridEnv, "_reward", lambda self: 1)
        assert_left_to_the_package(lambda: ImgObsWrapper(EmptyEnv()), "EmptyEnv overrides _reward")
    with monkeypatch.context() as patch:
        reward = functools.wraps(MiniGridEnv._reward)(lambda self: 1)
        patch.setattr(MiniGridEnv, "_reward", reward)
        assert_left_to_the_package(lambda: ImgObsWrapper(EmptyEnv()), "EmptyEnv overrides _reward")
    monkeypatch.setattr(Door, "toggle", lambda self, env, pos: False)
    for make in (room(), lambda: ImgObsWrapper(DoorKeyEnv())):
        assert_left_to_the_package(make, "Door has another toggle")


def test_environments_that_differ_from_one_another_are_left_to_the_package():
    """Something drawn or counted by the constructor: N environments of the package would have N of it."""
    numbers = itertools.count()

    def construct(self):
        Room.__init__(self)
        self.number = next(numbers)

    assert_left_to_the_package(room(__init__=construct), "number differs between environments")


class Flipped(gym.ObservationWrapper):
    def observation(self, observation):
        return observation[::-1]


class FlippedLate(Flipped):
    def __init__(self, env):
        super().__init__(env)
        self.calls = 0

    def observation(self, observation):
        self.calls += 1
        return observation if self.calls < 1000 else observation[::-1]


class FlippedAtTheEnd(Flipped):
    def observation(self, observation):
        return observation[::-1] if self.unwrapped.step_count > 30 else observation


class FlippedAtLava(Flipped):
    def observation(self, observation):
        return observation[::-1] if (observation[..., 0] == 9).any() else observation


class OwnImage(ImgObsWrapper):
    def observation(self, observation):
        return observation["image"][::-1]


class Shorter(TimeLimit):
    def step(self, action):
        *step, truncated, info = super().step(action)
        return *step, truncated or self.unwrapped.step_count > 5, info


class Generous(gym.Wrapper):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + 1, *rest


def slips(rng):
    """A function of actions that fails once in a thousand times."""
    return lambda action: int(action) if rng.random() > 0.001 else 0


def actions_by(function, number=7):
    return lambda env: TransformAction(ImgObsWrapper(env), function, gym.spaces.Discrete(number))


def observations_by(function):
    def wrap(env):
        image = ImgObsWrapper(env)
        return TransformObservation(image, function, image.observation_space)

    return wrap


def reading_the_environment(env):
    image = ImgObsWrapper(env)
    late = lambda o: o[::-1] if env.unwrapped.step_count > 30 else o  # noqa: E731
    return TransformObservation(image, late, image.observation_space)


def counting(env):
    calls = []

    def order(observation):
        calls.append(0)
        return observation if len(calls) < 1000 else observation[::-1]

    image = ImgObsWrapper(env)
    return TransformObservation(image, order, image.observation_space)


def generous_step(env):
    env = ImgObsWrapper(env)
    env.step = lambda action: (*env.env.step(action)[:1], 1.0, False, False, {})
    return env


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (actions_by(lambda action: int(slips(np.random.default_rng())(action))), "depends on"),
        (actions_by(slips(np.random.default_rng(0))), "func of TransformAction depends on rng"),
        (actions_by(slips(random.Random(0))), "func of TransformAction depends on rng"),
        (actions_by(lambda action: action + random.random() // 1), "depends on random"),
        (actions_by(lambda action: 9), "not only renamed"),
        (lambda env: FlippedLate(ImgObsWrapper(env)), "observation of FlippedLate depends on what it remem"),
        (lambda env: FlippedAtTheEnd(ImgObsWrapper(env)), "depends on the environment"),
        (lambda env: FlippedAtLava(ImgObsWrapper(env)), "not only rearranged"),
        (reading_the_environment, "depends on the environment"),
        (counting, "func of TransformObservation depends on calls"),
        (observations_by(lambda o: o + np.uint8(np.random.default_rng(0).random() < 0.1)), "depends on"),
        (observations_by(lambda o: o * 2), "not only rearranged"),
        (OwnImage, "OwnImage cannot be expressed by tables"),
        (lambda env: Shorter(ImgObsWrapper(env), 20), "Shorter cannot be expressed by tables"),
        (lambda env: Generous(ImgObsWrapper(env)), "Generous cannot be expressed by tables"),
        (generous_step, "ImgObsWrapper cannot be expressed by tables"),
    ],
)
def test_transforms_that_draw_remember_or_look_are_left_to_the_package(wrap, reason):
    """Also where that happens only after a thousand calls, in the package's own environment too."""
    for make in (room(wrap=wrap), lambda: wrap(EmptyEnv())):
        assert_left_to_the_package(make, reason)


def furniture(self):
    self.grid.set(2, 1, Door("red", is_locked=True))
    self.grid.set(1, 2, Key("red"))
    self.grid.set(3, 3, Lava())
    self.grid.set(2, 3, Box("blue", Ball("green")))


def key_in_hand(self):  # which the package takes away again
    self.carrying = Key("red")


def numbers_of_numpy(self):
    self.agent_dir, self.agent_pos = np.int64(self._rand_int(0, 4)), np.array([2, 3])


def a_smaller_room(self):
    n = int(self._rand_int(4, self.width + 1))
    self.grid = Grid(self.width, self.height)
    self.grid.wall_rect(0, 0, n, n)
    self.put_obj(Goal(), n - 2, n - 2)


def long_mission(self):
    self.mission = "x" * 200


def stale_attribute(self):
    """An attribute that some layouts set and none reads."""
    if self._rand_bool():
        self.last = self._rand_pos(2, 4, 2, 4)
        self.grid.set(*self.last, Wall())


def on_the_goal(self):
    self.agent_pos = (4, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        room(furniture),
        room(furniture, see=False, size=9),
        room(key_in_hand),
        room(numbers_of_numpy),
        room(a_smaller_room),
        room(long_mission),
        room(on_the_goal),
        room(stale_attribute),
        room(__init__=with_attribute("action_space", gym.spaces.Discrete(3))),
        room(__init__=functools.partialmethod(Room.__init__, agent_view_size=3)),
        room(furniture, wrap=FlatObsWrapper),
        room(furniture, wrap=lambda env: ImgObsWrapper(OneHotPartialObsWrapper(env))),
        room(furniture, wrap=actions_by([2, 1, 0, 5].__getitem__, 4)),
        room(furniture, wrap=actions_by(lambda action: 6 - action)),
        room(furniture, wrap=observations_by(lambda o: np.rot90(o))),
        room(furniture, wrap=lambda env: Flipped(ImgObsWrapper(env))),
        room(furniture, wrap=lambda env: FixedLayout(ImgObsWrapper(env), 5)),
        lambda: ImgObsWrapper(type("Mine", (DoorKeyEnv,), {})(size=6)),
    ],
)
def test_layouts_missions_and_rearrangements_of_a_user_run_on_tensors(make):
    """What must not fall back: every class that only makes layouts would be many times slower."""
    stream = stream_of(make)
    assert isinstance(stream.engine, GridEngine)
    assert_equal(stream.engine, make, 400)


class Paid(Room):
    """Pays for each step, by rules of its own."""

    class tensor_rules(Rules):
        def step(self, board, action):
            reward, terminated = super().step(board, action)
            return reward - 0.5, terminated

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward - 0.5, *rest


class PaidMore(Paid):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward - 0.5, *rest


class PaidLess(Room):
    tensor_rules = Paid.tensor_rules


def test_rules_of_a_user_are_compared_too():
    stream = stream_of(lambda: ImgObsWrapper(Paid()))
    assert isinstance(stream.engine, GridEngine)
    assert_equal(stream.engine, lambda: ImgObsWrapper(Paid()), 200)
    assert_left_to_the_package(lambda: ImgObsWrapper(PaidMore()), "PaidMore overrides step")
    assert_left_to_the_package(lambda: ImgObsWrapper(PaidLess()), "reward is 0, on tensors -0.5")


class RareLimit(Room):
    """Another limit of steps in one layout of ``rare``, none of them among the first."""

    rare = 64

    def furnish(self):
        self.max_steps = 10 if self._rand_int(0, self.rare) == 0 else 40


def test_a_layout_drawn_later_that_the_tables_do_not_hold_is_drawn_again_and_told_once(capsys, monkeypatch):
    monkeypatch.setattr(RareLimit, "rare", 10**9)
    engine = stream_of(lambda: ImgObsWrapper(RareLimit())).engine
    assert isinstance(engine, GridEngine)
    monkeypatch.setattr(RareLimit, "rare", 4)
    for _ in range(16):
        engine._renew()
    pool = engine.pools[0]
    assert 20 < len(pool.redrawn) < 120
    assert all(0 <= seed < 2**31 for seed in pool.redrawn.values())
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert "of RareLimit is drawn again" in output.err
    assert "change max_steps" in output.err
    env = RareLimit()
    for number in range(256, 320):
        env.reset(seed=pool.seed_of(number))
        assert env.max_steps == 40


def tasks(k, seed):
    return ImgObsWrapper(OwnReward() if k >= 2 else Room(max_steps=40 + k))


class OwnReward(Room):
    def _reward(self):
        return 1


@pytest.mark.slow
def test_a_new_task_that_tensors_cannot_step_ends_the_run_with_the_remedy():
    """An engine never changes within a run; tasks that recur are all tried before it starts."""
    stream = Stream(tasks, Schedule(period=20), (LAYOUTS, SingleConfig()), 2)
    assert isinstance(stream.engine, GridEngine)
    stream.reset()
    for _ in range(19):
        stream.step(stream.action_space.sample())
    assert stream.misfit_before(39) == ""
    assert "cannot step task 2" in stream.misfit_before(40)
    with pytest.raises(ValueError, match=r"cannot step task 2.* _reward; .* --stream\.engine single"):
        stream.step(stream.action_space.sample())
    for schedule in (Schedule(period=20, tasks=3), Schedule(period=20, tasks=(0, 2))):
        assert isinstance(Stream(tasks, schedule, ENGINES, 2).engine, SingleEngine)


def test_another_seed_is_another_task():
    """A stream that is reset with a new seed has new tasks, which are tried in turn."""

    def task(k, seed):
        return ImgObsWrapper(OwnReward() if seed == 5 else Room())

    stream = Stream(task, Schedule(), (LAYOUTS, SingleConfig()), 2, seed=3)
    with pytest.raises(ValueError, match=r"cannot step task 0"):
        stream.reset(seed=5)


def test_what_the_package_and_neoteny_made_is_not_tried():
    """Shipped streams are proven by these tests, so they start at once."""
    for id in ("grid-goals-small", "grid-permuted-actions-small", "MiniGrid-DoorKey-5x5-v0"):
        env = StreamConfig(id)._task()(0, 1)
        assert not GridTask(env).users


FEATURES = [each for each, _ in UNLIKE_LAYOUTS]
FEATURES += [furniture, key_in_hand, numbers_of_numpy, a_smaller_room, stale_attribute, on_the_goal]
MEMBERS = [
    {},
    {"_reward": lambda self: 1},
    {"step": own_step},
    {"see": False},
    {"__init__": with_attribute("actions", Few)},
    {"__init__": with_attribute("action_space", gym.spaces.Discrete(3))},
]
WRAPPERS = [
    ImgObsWrapper,
    lambda env: FlippedLate(ImgObsWrapper(env)),
    lambda env: Flipped(ImgObsWrapper(env)),
    lambda env: TimeLimit(ImgObsWrapper(env), 15),
    actions_by(lambda action: 6 - action),
    actions_by(slips(np.random.default_rng(0))),
    counting,
]


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(FEATURES), max_size=2),
    st.sampled_from(MEMBERS),
    st.sampled_from(WRAPPERS),
    st.integers(0, 1000),
)
def test_any_class_of_a_user_does_the_same_or_is_left_to_the_package(features, members, wrap, seed):
    """Effects of more than a thousand steps or one layout in 64 among them."""

    def furnish(self):
        for feature in features:
            feature(self)

    make = room(furnish, wrap, **members)
    assume(is_playable(make))
    stream = stream_of(make, seed)
    if isinstance(stream.engine, GridEngine):
        assert_equal(stream.engine, make, 600)


def stream_of(make, seed=0):
    return Stream(lambda k, seed: make(), Schedule(), (LAYOUTS, SingleConfig()), 2, seed)


def is_playable(make):
    """Whether the package itself can step a class."""
    env = make()
    try:
        for seed in range(64):
            env.reset(seed=seed)
            for action in (2, 2, 1, 2, 2, 2):
                env.step(action % env.action_space.n)[4].clear()
        try_out(make())  # as a stream does, with random actions, which may lead out of a room without walls
    except Exception:
        return False
    return True


def assert_left_to_the_package(make, reason):
    with pytest.raises(UncoveredError, match=reason):
        LAYOUTS.covers(lambda k, seed: make(), 0, 0)


def assert_equal(engine, make, steps):
    """Step tensors and the package from the same layouts; episodes are cut so that many begin."""
    engine.renew_every = 1
    engine.reset()
    envs, rng = [make() for _ in range(engine.num_envs)], np.random.default_rng(0)
    begun = range(len(envs))
    for step in range(steps):
        seeds = layout_seeds(engine)
        for i in begun:
            np.testing.assert_array_equal(envs[i].reset(seed=seeds[i])[0], engine.seen[i])
        forward = rng.random(len(envs)) < 0.4
        actions = np.where(forward, 2, rng.integers(envs[0].action_space.n, size=len(envs)))
        rewards, terminated, truncated, _ = engine.step(torch.as_tensor(actions))
        for i, env in enumerate(envs):
            observation, *outcome, _ = env.step(int(actions[i]))
            np.testing.assert_array_equal(observation, engine.seen[i])
            assert outcome == [rewards[i], terminated[i], truncated[i]]
        done = terminated | truncated | (step % 20 == 0)
        engine.reset(done)
        begun = done.nonzero().flatten().tolist()
