"""Whether a restored stream can go on exactly: found at the start, by playing the same episodes twice.

A stream is restored by replaying each running episode in a fresh environment, from its lifelong state, its
seed and its actions. An environment that depends on anything else gives other results then: on what earlier
episodes left behind, on a random generator that it shares with others, or on the time of day.

So some episodes are played in two environments that take turns, as in a run, and some of them are replayed in
fresh environments. Results must be the same, and so must be what environments and wrappers remember, since a
difference may have an effect much later. Nothing else in the process is affected.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import PassiveEnvChecker, RecordEpisodeStatistics, RecordVideo

from neoteny.envs.schedule import Schedule
from neoteny.envs.single.episodes import Episode
from neoteny.envs.single.serial import replay
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction, agent_actions

SECONDS = 0.5
"""Time for a check; what is not done by then is left out."""

LONG, SHORT = 128, 40
"""Steps of each environment in its first episodes, and again in its last; short episodes in between."""

SHIFT = 100_003
"""Seconds by which the clock is ahead in replays of the first environment, and twice that in those of the
second: more than a day and odd, so that what depends on days, hours or seconds differs."""

RECORDERS = PassiveEnvChecker, RecordEpisodeStatistics, RecordVideo
"""Wrappers that remember earlier episodes without an effect on later ones."""

PACKAGES = ("gymnasium", "minigrid", "ale_py", "neoteny", "builtins", "numpy", "torch")
"""Packages whose classes and modules hold no state of episodes."""

DEPTH = 4
"""Levels of nested attributes that are compared."""


class Budget:
    """A time limit in seconds of this process, which do not depend on what else the machine does."""

    def __init__(self, seconds: float) -> None:
        self.until = time.process_time() + seconds
        self.latest = time.monotonic() + 8 * seconds  # for environments that wait

    def is_spent(self) -> bool:
        """Whether the time is over."""
        return time.process_time() > self.until or time.monotonic() > self.latest


@dataclasses.dataclass
class Played:
    """An episode with its results: observation, reward and end of the reset and of each step."""

    seed: int
    lifelong: list[Any]
    actions: list[Any] = dataclasses.field(default_factory=list)
    results: list[tuple[np.ndarray, float, bool]] = dataclasses.field(default_factory=list)

    def add(self, observation: Any, reward: Any = 0.0, ended: bool = False) -> None:
        """Add the results of the reset or of a step."""
        self.results.append((np.array(observation), float(reward), ended))


def first_reason(schedule: Schedule, check: Callable[[int], str]) -> str:
    """The first reason that ``check`` gives for a visit, with its task; empty if there is none.

    Checked are the first visits to all recurring tasks, else to the first two tasks, while there is time.
    """
    budget = Budget(SECONDS)
    visits: dict[int, int] = {}
    for visit in range(1 if schedule.period is None else len(schedule.cycle) or 2):
        visits.setdefault(schedule.task_of(visit), visit)
    for task, visit in visits.items():
        if budget.is_spent():
            break
        if reason := check(visit):
            return f"task {task} cannot be repeated from its seeds and actions: {reason}"
    return ""


def unrepeatable_episodes(task: TaskFunction, spaces: Spaces, schedule: Schedule, visit: int) -> str:
    """Why replayed episodes of a visit's task may differ from those lived through; empty if they do not."""
    start, budget = schedule.start_of(visit), Budget(SECONDS)

    def make() -> TaskEnv:
        env = TaskEnv(task, spaces, stride=0)
        env.enter(schedule, start)
        return env

    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(shared_state())
        envs = [stack.enter_context(contextlib.closing(make())) for _ in range(2)]
        seen = [shared.watch(env.env) for env in envs]
        played, whole = _play(envs)
        if reason := next(filter(None, (shared.changed(), *(watched() for watched in seen))), ""):
            return reason
        for place, (env, episodes) in enumerate(zip(envs, played), start=1):
            last = len(episodes) - 1
            numbers = {last, 3 * last // 4, last // 2, last // 3, 0} if episodes else set()
            for number in sorted(numbers, reverse=True):
                with later(place), contextlib.closing(make()) as fresh:
                    reason = _replay(fresh, episodes[number], start)
                    if not reason and whole and number == last:
                        reason = remembered(env.env, fresh.env)
                if reason or budget.is_spent():
                    return reason
    return ""


def _play(envs: list[TaskEnv]) -> tuple[list[list[Played]], bool]:
    """Play episodes in environments that take turns.

    Returns:
        The episodes of each environment, and whether they did not end with an error.
    """
    budget = Budget(SECONDS / 2)
    played: list[list[Played]] = [[] for _ in envs]
    steps = [0] * len(envs)
    seeds = itertools.count(1)
    spaces = [agent_actions(env.env.action_space) for env in envs]
    for space in spaces:
        space.seed(0)
    try:
        while not budget.is_spent() and min(steps) < 2 * (LONG + SHORT):
            for i, env in enumerate(envs):
                episodes = played[i]
                is_short = LONG <= steps[i] < LONG + 2 * SHORT
                if not episodes or episodes[-1].results[-1][2] or (is_short and steps[i] % 2 == 0):
                    episode = Played(next(seeds), env.lifelong)
                    episode.add(env.reset(episode.seed))
                    episodes.append(episode)
                action = spaces[i].sample()
                kept = np.array(action)
                observation, reward, terminated, truncated, _ = env.step(action)
                episodes[-1].actions.append(kept)
                episodes[-1].add(observation, reward, bool(terminated or truncated))
                steps[i] += 1
    except (Exception, SystemExit):  # a run will meet it too
        return played, False
    return played, True


def _replay(env: TaskEnv, episode: Played, start: int) -> str:
    """Replay an episode in a fresh environment; returns what differs."""
    again = Episode(start, episode.seed, episode.lifelong, np.array(episode.actions))
    replayed = replay(env, again)
    for number, (observation, reward, ended) in enumerate(episode.results):
        try:
            now = next(replayed)
        except Exception as error:
            return f"a replay raised {type(error).__name__}: {error}"
        same = {"observation": _same(np.asarray(now[0]), observation), "reward": _same(float(now[1]), reward)}
        same["end"] = now[2] == ended
        for what, equal in same.items():
            if not equal:
                return f"the {what} of step {number} was another in a replay"
    return ""


def remembered(old: gym.Env, fresh: gym.Env) -> str:
    """What an environment or a wrapper keeps from earlier episodes, unlike a fresh one; empty if nothing."""
    for one, other in zip(_layers(old), _layers(fresh)):
        if not isinstance(one, RECORDERS) and (name := _difference(vars(one), vars(other))):
            return (
                f"{type(one).__name__} keeps {name} from one episode to the next; a lifelong_state would "
                "carry it (docs/extending.md)"
            )
    return ""


class shared_state(contextlib.AbstractContextManager["shared_state"]):
    """The state that all environments of a process share; on exit the random generators are restored."""

    def __enter__(self) -> shared_state:
        """Note the state of the global random generators."""
        self.before = self._generators()
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the global random generators."""
        random.setstate(self.before["random"])
        np.random.set_state(self.before["numpy.random"])  # noqa: NPY002
        torch.set_rng_state(self.before["torch"])

    def changed(self) -> str:
        """Why the use of a global random generator makes results unrepeatable; empty if none was used."""
        for name, state in self._generators().items():
            if not _same(state, self.before[name]):
                return f"it uses the global random generator of {name}, not one of its own"
        return ""

    def watch(self, env: gym.Env) -> Callable[[], str]:
        """Note the class attributes and global variables of an environment; returns a check of changes."""
        owners: dict[str, Mapping[str, Any]] = {}
        for kind in itertools.chain.from_iterable(type(layer).__mro__ for layer in _layers(env)):
            if kind.__module__.partition(".")[0] not in PACKAGES:
                owners[kind.__name__] = vars(kind)
                owners[kind.__module__] = vars(sys.modules[kind.__module__])
        before = {name: _numbers(variables) for name, variables in owners.items()}

        def changed() -> str:
            for owner, variables in owners.items():
                if name := _difference(before[owner], _numbers(variables)):
                    return f"{owner}.{name}, which all environments share, changes"
            return ""

        return changed

    def _generators(self) -> dict[str, Any]:
        state = np.random.get_state()  # noqa: NPY002
        return {"random": random.getstate(), "numpy.random": state, "torch": torch.get_rng_state()}


@contextlib.contextmanager
def later(times: int = 1) -> Iterator[None]:
    """Set the clocks ahead, so that what depends on the time differs, whatever unit it is measured in."""
    clocks = {name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")}
    try:
        for name, clock in clocks.items():
            setattr(time, name, lambda clock=clock: clock() + times * SHIFT)
        yield
    finally:
        for name, clock in clocks.items():
            setattr(time, name, clock)


def _layers(env: gym.Env) -> Iterator[gym.Env]:
    """Wrappers from the outermost, then the environment."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _numbers(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the variables that are numbers, arrays or lists; others are mostly caches."""
    kinds = (bool, int, float, np.ndarray, np.number, list)
    return {
        name: value.copy() if isinstance(value, np.ndarray | list) else value
        for name, value in variables.items()
        if isinstance(value, kinds)
    }


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first attribute that differs; empty if none does."""
    return next((name for name in one if name in other and not _same(one[name], other[name])), "")


def _same(one: Any, other: Any, depth: int = DEPTH) -> bool:
    """Whether two values are equal; objects that cannot be looked into count as equal."""
    if type(one) is type(other):
        if isinstance(one, np.random.Generator):
            one, other = one.bit_generator.state, other.bit_generator.state
        elif isinstance(one, np.random.RandomState | torch.Generator):
            one, other = one.get_state(), other.get_state()
        elif isinstance(one, random.Random):
            one, other = one.getstate(), other.getstate()
    if isinstance(one, torch.Tensor | np.ndarray | np.number | bool | int | float | str | bytes):
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return torch.equal(one, other)
        a, b = np.asarray(one), np.asarray(other)
        if a.dtype.hasobject or b.dtype.hasobject:
            return True
        return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
    if type(one) is not type(other):
        return one is not None and other is not None  # of which one is not there yet
    if depth == 0 or isinstance(one, gym.Env | gym.Space | type) or callable(one):
        return True
    if isinstance(one, dict):  # a cache may have more entries
        return all(_same(one[key], other[key], depth - 1) for key in one if key in other)
    if isinstance(one, list | tuple | collections.deque):
        return len(one) == len(other) and all(_same(*pair, depth - 1) for pair in zip(one, other))
    if isinstance(one, set | frozenset):
        return one == other
    if isinstance(getattr(one, "__dict__", None), dict):
        return _same(vars(one), vars(other), depth - 1)
    return True
