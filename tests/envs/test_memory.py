"""What environments remember where it is hard to see, with an effect long after the check, is found."""

import array
import dataclasses
import itertools
import logging
import random
import re
import time

import gymnasium as gym
import numpy as np
import pytest
from minigrid.wrappers import ImgObsWrapper

from neoteny.envs import Schedule, Stream
from neoteny.envs.config import ENGINES
from neoteny.envs.grid.engine import GridEngine
from tests.envs.test_repeatable import Walk, check

LATE = 10**6
COUNTS, GENERATOR = {"episodes": 0}, np.random.default_rng(0)


class Tracker:
    episodes = 0

    def __call__(self):
        self.episodes += 1
        return self.episodes > LATE


@dataclasses.dataclass(slots=True)
class Slotted:
    episodes: int = 0


TRACKER = Tracker()


class InADictionary(Walk):
    def begin(self):
        COUNTS["episodes"] += 1

    def reward(self):
        return 1.0 + (COUNTS["episodes"] > LATE)


class InAnObject(Walk):
    def reward(self):
        return 1.0 + TRACKER()


class InAGenerator(Walk):
    def reward(self):
        return 1.0 + (GENERATOR.random() < 1e-9)


class InADefault(Walk):
    def reward(self, seen=[]):  # noqa: B006
        seen.append(0)
        return 1.0 + (len(seen) > LATE)


def in_a_closure():
    episodes = 0

    class InAClosure(Walk):
        def begin(self):
            nonlocal episodes
            episodes += 1

        def reward(self):
            return 1.0 + (episodes > LATE)

    return InAClosure


def counting():
    for n in itertools.count():
        yield n > LATE


def counter():
    n = 0

    def count():
        nonlocal n
        n += 1
        return n > LATE

    return count


class Held(Walk):
    """Holds something of its own that counts."""

    def __init__(self, made):
        self.held = made

    def begin(self):
        if isinstance(self.held, Slotted):
            self.held.episodes += 1
        elif isinstance(self.held, array.array):
            self.held[0] += 1
        else:
            self.held() if callable(self.held) else next(self.held)


class Nanoseconds(Walk):
    def reward(self):
        return float(time.time_ns() // 10**9 % 2)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (InADictionary, "COUNTS, which all environments share, changes"),
        (InAnObject, "TRACKER, which all"),
        (InAGenerator, "GENERATOR, which all"),
        (InADefault, "a default of reward, which all"),
        (in_a_closure(), "episodes, which all"),
        (lambda: Held(Tracker()), "Held keeps held"),
        (lambda: Held(Slotted()), "Held keeps held"),
        (lambda: Held(itertools.count()), "Held keeps held"),
        (lambda: Held(counting()), "Held keeps held"),
        (lambda: Held(counter()), "Held keeps held"),
        (lambda: Held(array.array("i", [0])), "Held keeps held"),
        (Nanoseconds, "the reward of step"),
    ],
)
def test_what_is_remembered_is_found(make, reason):
    assert reason in check(make)


class Tidy(Walk):
    """A cache, a list, an iterator and a file that each episode uses in the same way."""

    squares: dict[int, int] = {}  # noqa: RUF012

    def begin(self):
        self.path, self.left = [], iter([1, 2, 3])

    def reward(self):
        self.path.append(next(self.left, 0))
        return 0.0 * self.squares.setdefault(int(self.np_random.integers(100)), 1)


class Logs(Walk):
    """Uses packages of Python's, which hold much."""

    def reward(self):
        logging.getLogger("walk").debug("step %s", self.t)
        return float(re.match("a+", "aa").end())


def test_packages_of_others_cost_no_time():
    began = time.process_time()
    assert check(Logs) == ""
    assert time.process_time() - began < 1


def test_what_begins_anew_with_each_episode_is_no_memory():
    assert check(Tidy) == ""


def test_a_task_function_that_draws_is_found_on_tensors_too():
    """The environment is the package's, so that nothing of it is tried."""

    def task(k, seed):
        return ImgObsWrapper(gym.make("MiniGrid-Empty-5x5-v0", max_steps=random.randint(50, 51)))

    stream = Stream(task, Schedule(), ENGINES, 2)
    assert isinstance(stream.engine, GridEngine)
    assert "global random generator of random" in stream.unrepeatable
