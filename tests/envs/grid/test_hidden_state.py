"""Layouts that depend on what is hard to see in a user's code are left to the package too."""

import array
import dataclasses
import functools
import itertools
import sys
import time
import types

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from minigrid.core.world_object import Door, Wall
from minigrid.envs import GoToObjectEnv
from minigrid.wrappers import ImgObsWrapper

from tests.envs.grid.test_proof import LAYOUTS, Room, actions_by, assert_left_to_the_package, room

NEVER = 10**6  # in so many layouts once: only the code shows it
MANY = 1000
NUMBERS, BYTES = array.array("i", [0]), bytearray(2)
LARGE = {"levels": [[0] * 100 for _ in range(300)], "episodes": 0}
GENERATOR = {"own": np.random.default_rng(0)}
DRAWN = itertools.count(200)


@dataclasses.dataclass(slots=True)
class Slotted:
    episodes: int = 0


class Plain:
    """Has no attribute at first."""


class Holder:
    def __init__(self):
        self.rng = np.random.default_rng(0)


class Called:
    """A clock in a method that no name leads to."""

    def __call__(self, action):
        return int(action) if time.time() > 0 else 0


class Built:
    def __init__(self):
        self.place = 2 if time.time() > 0 else 3


SLOTTED, HOLDER, CALLED = Slotted(), Holder(), Called()


def wall(self, is_there=True):
    if is_there:
        self.grid.set(2, 2, Wall())


def generator_of_an_object(self):
    wall(self, self._rand_int(0, NEVER) == 0 and HOLDER.rng.random() < 0.5)


def generator_in_a_container(self):
    wall(self, self._rand_int(0, NEVER) == 0 and GENERATOR["own"].random() < 0.5)


def clock_in_a_call(self):
    wall(self, CALLED(1))


def clock_in_a_constructor(self):
    wall(self, Built().place == 2)


def clock_in_a_partial_method(self, is_there):
    wall(self, time.time() < 0)


class Cached(Room):
    @functools.cached_property
    def place(self):
        return 2 if time.time() > 0 else 3

    def furnish(self):
        self.grid.set(self.place, 2, Wall())


def counter_of_a_function(self):
    counter_of_a_function.n = getattr(counter_of_a_function, "n", 0) + 1
    wall(self, counter_of_a_function.n > MANY)


def counter_in_slots(self):
    SLOTTED.episodes += 1
    wall(self, SLOTTED.episodes > MANY)


def counter_that_a_class_gets_later(self):
    Plain.episodes = getattr(Plain, "episodes", 0) + 1
    wall(self, Plain.episodes > MANY)


def counter_in_an_array(self):
    NUMBERS[0] += 1
    wall(self, NUMBERS[0] > MANY)


def counter_in_bytes(self):
    BYTES[0] = (BYTES[0] + 1) % 256
    wall(self, BYTES[0] == 255)


def counter_beside_much_else(self):
    LARGE["episodes"] += 1
    wall(self, LARGE["episodes"] > MANY)


def counter_of_a_module_imported_late(self):
    import my_settings

    my_settings.episodes += 1
    wall(self, my_settings.episodes > MANY)


def numpy_imported_late(self):
    import numpy as late

    wall(self, self._rand_int(0, NEVER) == 0 and late.random.rand() < 0.5)  # noqa: NPY002


def part_of_numpy_imported_late(self):
    from numpy import random as late

    wall(self, self._rand_int(0, NEVER) == 0 and late.rand() < 0.5)  # noqa: NPY002


def door_of_the_episode_before(self):
    before, self.gate = getattr(self, "gate", None), Door("red", is_locked=True)
    self.grid.set(2, 1, self.gate)
    wall(self, before is not None and before.is_open)


def another_limit_each_time(self):
    Room.__init__(self, max_steps=next(DRAWN))


class Moving(GoToObjectEnv):
    """Its target, which a step of the package looks up each time, depends on where the agent is."""

    @property
    def target_pos(self):
        return self.target if self.agent_pos[0] < 4 else (1, 1)

    @target_pos.setter
    def target_pos(self, place):
        self.target = place


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (room(generator_of_an_object), "depend on HOLDER"),
        (room(generator_in_a_container), "depend on GENERATOR"),
        (room(clock_in_a_call), "depend on time"),
        (room(clock_in_a_constructor), "depend on time"),
        (room(functools.partialmethod(clock_in_a_partial_method, True)), "depend on time"),
        (lambda: ImgObsWrapper(Cached()), "depend on time"),
        (room(wrap=actions_by(CALLED)), "func of TransformAction depends on time"),
        (room(numpy_imported_late), "depend on random"),
        (room(part_of_numpy_imported_late), "depend on random"),
        (room(counter_of_a_function), "furnish changes|counter_of_a_function changes"),
        (room(counter_in_slots), "SLOTTED changes"),
        (room(counter_that_a_class_gets_later), r"Plain\.episodes changes"),
        (room(counter_in_an_array), "NUMBERS changes"),
        (room(counter_in_bytes), "BYTES changes"),
        (room(counter_beside_much_else), "LARGE, which is too large to compare"),
        (room(counter_of_a_module_imported_late), "episodes changes"),
        (room(door_of_the_episode_before), "not functions of their seeds"),
        (room(__init__=another_limit_each_time), "max_steps differs between environments"),
        (lambda: TimeLimit(ImgObsWrapper(Room(max_steps=999)), next(DRAWN)), "the limit of steps differs"),
        (lambda: ImgObsWrapper(Moving()), "overrides target_pos"),
    ],
)
def test_what_is_hard_to_see_is_left_to_the_package(make, reason, monkeypatch):
    settings = types.ModuleType("my_settings")
    settings.episodes = 0
    monkeypatch.setitem(sys.modules, "my_settings", settings)
    assert_left_to_the_package(make, reason)


class Table:
    """A table of places, read and never changed."""

    places = ((2, 2), (3, 2))

    def __init__(self, first):
        self.first = first

    def __getitem__(self, number):
        return self.places[number + self.first]


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    table: Table
    names: tuple[str, ...] = ("a", "b")


SETTING = Setting(Table(0))


def constants_of_many_kinds(self):
    self.grid.set(*SETTING.table[int(self._rand_int(0, 2))], Wall())


def test_what_never_changes_is_no_reason():
    for make in (room(constants_of_many_kinds), room(wrap=actions_by([2, 1, 0, 5].__getitem__, 4))):
        LAYOUTS.covers(lambda k, seed, make=make: make(), 0, 0)
