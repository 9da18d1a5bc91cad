"""Whether a restored stream can go on exactly: found at the start, by playing the same episodes twice.

A stream is restored by replaying each running episode in a fresh environment, from its lifelong state, its
seed and its actions. An environment that depends on anything else gives other results then: on what earlier
episodes left behind, on a random generator that it shares with others, or on the time of day.

So some episodes are played in two environments that take turns, as in a run, and some of them are replayed in
fresh environments. Results must be the same, and so must be what environments and wrappers remember, since a
difference may have an effect much later. Nothing else in the process is affected.
"""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import itertools
import random
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Set
from types import FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import PassiveEnvChecker, RecordEpisodeStatistics, RecordVideo

from neoteny.envs.schedule import Schedule
from neoteny.envs.single.episodes import Episode
from neoteny.envs.single.serial import replay
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction, agent_actions
from neoteny.envs.user_code import (
    Reading,
    attributes,
    content,
    is_installed,
    is_users,
    module_of,
    users_members,
)

SECONDS = 0.5
"""Time for a check; what is not done by then is left out."""

LONG, SHORT = 128, 40
"""Steps of each environment in its first episodes, and again in its last; short episodes in between."""

SHIFT = 100_003
"""Seconds by which the clock is ahead in replays of the first environment, and twice that in those of the
second: more than a day and odd, so that what depends on days, hours or seconds differs."""

CLOCKS, NANOSECONDS = ("time", "monotonic", "perf_counter"), 10**9

RECORDERS = PassiveEnvChecker, RecordEpisodeStatistics, RecordVideo
"""Wrappers that remember earlier episodes without an effect on later ones."""

DEPTH, LARGEST = 4, 20_000
"""Levels and number of nested values that are compared."""

OPAQUE = object()
"""Stands for what cannot be looked into."""


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
        watched = shared.watch(envs[0].env)
        played, whole = _play(envs)
        if reason := shared.changed() or watched():
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
        if isinstance(one, RECORDERS):
            continue
        if name := _difference(attributes(one), attributes(other)):
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
            if not _same(_plain(state), _plain(self.before[name])):
                return f"it uses the global random generator of {name}, not one of its own"
        return ""

    def watch(self, env: gym.Env) -> Callable[[], str]:
        """Note what the environment's code reads besides the environment; returns a check of changes.

        That is class attributes, global variables, captured variables and attributes of functions.
        """
        roots: dict[str, Any] = {}
        kinds: set[type] = set()
        for layer in _layers(env):
            roots |= {f"{type(layer).__name__}.{name}": each for name, each in users_members(layer).items()}
            kinds |= {kind for kind in type(layer).__mro__ if is_users(kind)}
        packages = {_package(kind) for kind in kinds}
        reading = Reading(roots, kinds, is_read=lambda thing: is_users(thing) and _is_of(thing, packages))
        before = {key: _plain(value) for key, value in reading.values().items()}

        def changed() -> str:
            now = reading.values()
            changes = (key[0] for key in before if key in now and not _same(_plain(now[key]), before[key]))
            return next((f"{name}, which all environments share, changes" for name in changes), "")

        return changed

    def _generators(self) -> dict[str, Any]:
        state = np.random.get_state()  # noqa: NPY002
        return {"random": random.getstate(), "numpy.random": state, "torch": torch.get_rng_state()}


@contextlib.contextmanager
def later(times: int = 1) -> Iterator[None]:
    """Set the clocks ahead, so that what depends on the time differs, whatever unit it is measured in."""
    units = {f"{name}{unit}": scale for name in CLOCKS for unit, scale in (("", 1), ("_ns", NANOSECONDS))}
    clocks = {name: getattr(time, name) for name in units}
    try:
        for name, clock in clocks.items():
            ahead = times * SHIFT * units[name]
            setattr(time, name, lambda clock=clock, ahead=ahead: clock() + ahead)
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


def _package(thing: Any) -> str:
    """The package, or the module outside of packages, in which a function or class was made."""
    return module_of(thing).partition(".")[0]


def _is_of(thing: Any, packages: Container[str]) -> bool:
    """Whether a function or class is from one of ``packages``, or from no installed package at all."""
    package = _package(thing)
    file = getattr(sys.modules.get(package), "__file__", None)
    return package in packages or (file is not None and not is_installed(file))


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first attribute that differs; empty if none does."""
    both = (name for name in one if name in other)
    return next((name for name in both if not _same(_plain(one[name]), _plain(other[name]))), "")


def _plain(value: Any, depth: int = DEPTH, left: list[int] | None = None) -> Any:
    """A copy of a value, made of numbers, texts, arrays, lists and dicts; OPAQUE for anything else.

    Args:
        value: to copy.
        depth: levels that are copied.
        left: number of nested values that are copied, counted down.
    """
    left = left or [LARGEST]
    left[0] -= 1
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        return value
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return OPAQUE if value.dtype.hasobject else value.copy()
    if (state := _state_of_generator(value)) is not None:
        return _plain(state)
    if isinstance(value, bytearray | array.array):
        return bytes(value)
    if depth == 0 or left[0] < 0 or isinstance(value, gym.Env | gym.Space | type | ModuleType | MethodType):
        return OPAQUE
    if isinstance(value, Mapping | list | tuple | collections.deque | Set) and len(value) > left[0]:
        return OPAQUE
    if isinstance(value, Mapping):
        return {key: _plain(each, depth - 1, left) for key, each in value.items()}
    if isinstance(value, list | tuple | collections.deque):
        return [_plain(each, depth - 1, left) for each in value]
    if isinstance(value, Set):
        return frozenset(value)
    held = _held(value)
    return OPAQUE if held is OPAQUE else _plain(held, depth, left)


def _held(value: Any) -> Any:
    """What an object of another kind holds, as a list or a dict; OPAQUE if that cannot be told."""
    if isinstance(value, FunctionType):
        return [*map(content, value.__closure__ or ()), vars(value)]
    if isinstance(value, GeneratorType):
        return [value.gi_frame.f_lasti, value.gi_frame.f_locals] if value.gi_frame else None
    if own := _numbers_of_class(value) | attributes(value):
        return own
    if isinstance(value, Iterator):
        with contextlib.suppress(TypeError):  # of a file
            return list(value.__reduce__()[1:])
    return OPAQUE


def _numbers_of_class(value: Any) -> dict[str, Any]:
    """Numbers that a class holds, which an object of it may replace by its own later."""
    entries = (entry for kind in reversed(type(value).__mro__) for entry in vars(kind).items())
    return {name: each for name, each in entries if isinstance(each, bool | int | float)}


def _state_of_generator(value: Any) -> Any:
    """The state of a random generator; ``None`` if it is none."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState | torch.Generator):
        return value.get_state()
    return value.getstate() if isinstance(value, random.Random) else None


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, as made by :func:`_plain`."""
    number = np.ndarray | np.generic | bool | int | float | complex | str | bytes
    if isinstance(one, number) and isinstance(other, number):
        a, b = np.asarray(one), np.asarray(other)
        return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
    if type(one) is not type(other):
        return one is not None and other is not None  # of which one is not there yet
    if isinstance(one, dict):  # a cache may have more entries
        return all(_same(one[key], other[key]) for key in one if key in other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
