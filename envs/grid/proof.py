"""The proof that tensors do what a user's MiniGrid environment does.

The rules on tensors are those of the package's classes. A class, a wrapper or a function of a user's may do
anything else, so its code is read, its layouts are drawn twice, and it is played for some hundred steps by
the package and on tensors side by side.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from minigrid.core.actions import Actions
from minigrid.core.grid import Grid
from minigrid.core.world_object import Door, WorldObj
from minigrid.minigrid_env import MiniGridEnv

from neoteny.envs.engine import UncoveredError
from neoteny.envs.grid.rules import DRAWING, LAYOUT, RULED, DynamicObstacles
from neoteny.envs.grid.task import GridTask
from neoteny.envs.user_code import Reading, is_users, picture, users_members

if TYPE_CHECKING:
    from neoteny.envs.grid.engine import GridEngine

ROUNDS, STEPS = 4, 40
"""Rounds of steps in which all environments are played, each from new layouts."""

AGAIN = 16
"""Layouts that another environment draws in the reverse order."""

OF_STEPS = frozenset(
    ["agent_sees", "carrying", "gen_obs", "gen_obs_grid", "reset", "sample", "setattr", "step"]
) | {"step_count", "steps_remaining", "exec", "eval", "globals"}
"""Names that the code of a layout cannot read: what came of the episode before, and what hides names."""


def check_code(env: MiniGridEnv) -> None:
    """Read a user's environment; UncoveredError if its layouts depend on more than their seeds."""
    reading, name = _reading(env), type(env).__name__
    if changing := reading.changing():
        raise UncoveredError(f"the layouts of {name} depend on {changing}")
    for kind in reading.classes:
        if issubclass(kind, WorldObj | Grid):
            raise UncoveredError(f"{name} makes objects of its own, {kind.__name__}")
    if not hasattr(env, "tensor_rules") and (found := reading.names & OF_STEPS):
        raise UncoveredError(f"the layouts of {name} depend on {', '.join(sorted(found))}")


def check_layouts(make: Callable[[], gym.Env], seeds: Sequence[int]) -> None:
    """Draw layouts of a user's environment; UncoveredError unless they are functions of their seeds alone.

    Args:
        make: makes an environment of the task.
        seeds: of the layouts.
    """
    drawn, last = GridTask(make()), GridTask(make())
    reading = _reading(drawn.env)
    if name := drawn.unlike(last) or _difference(_attributes(drawn.env), _attributes(last.env)):
        raise UncoveredError(f"{name} differs between environments of the same task")
    rows = []
    for seed in seeds:
        rows.append(drawn.draw(seed))
        state, own = reading.state(), _attributes(drawn.env)
        grid, doors = drawn.env.grid, _doors(drawn.env)
        _disturb(drawn.env)
        again = drawn.draw(seed)
        if drawn.env.grid is grid or any(one is other for one in doors for other in _doors(drawn.env)):
            raise UncoveredError("its grid or a door stays from episode to episode")
        if name := reading.changes(state) or _difference(own, _attributes(drawn.env)):
            raise UncoveredError(f"{name} changes from episode to episode")
        _check_same(rows[-1], again)
    for seed, row in list(zip(seeds, rows))[:AGAIN][::-1]:
        _check_same(row, last.draw(seed))
    for task in (drawn, last):
        task.env.close()


def play(engine: GridEngine, make: Callable[[], gym.Env]) -> None:
    """Step environments by the package and on tensors side by side; UncoveredError at the first difference.

    Args:
        engine: has entered the task.
        make: makes an environment of it.
    """
    if isinstance(engine.task.rules, DynamicObstacles):
        raise UncoveredError("its obstacles move at random, which cannot be compared")
    envs = [make() for _ in range(engine.num_envs)]
    tasks = [GridTask(env) for env in envs]
    rng = np.random.default_rng(0)
    begun = list(range(len(envs)))
    for number in range(ROUNDS * STEPS):
        if number % STEPS == 0:
            engine.reset()
            begun = list(range(len(envs)))
        for i in begun:
            _begin(engine, i, envs[i], tasks[i])
        actions = [_act(task, rng) for task in tasks]
        rewards, terminated, truncated, _ = engine.step(torch.tensor(actions))
        for i, (env, action) in enumerate(zip(envs, actions)):
            observation, *theirs, _ = env.step(action)
            ours = rewards[i].item(), terminated[i].item(), truncated[i].item()
            for name, mine, package in zip(("reward", "terminated", "truncated"), ours, theirs):
                if mine != package:
                    raise UncoveredError(f"after some steps {name} is {package}, on tensors {mine}")
            _check_seen(engine, i, observation)
        done = terminated | truncated
        engine.reset(done)
        begun = done.nonzero().flatten().tolist()
    for env in envs:
        env.close()


class NoGlobalDraws:
    """Checks that nothing draws from a global generator; keeps an environment's warnings to itself."""

    def __enter__(self) -> None:
        self.before, self.quiet = self._states(), warnings.catch_warnings()
        self.quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: Any) -> None:
        self.quiet.__exit__(*error)
        if error[0] is None and self.before != self._states():
            raise UncoveredError("it draws from a global generator")

    @staticmethod
    def _states() -> tuple[Any, ...]:
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002
        return random.getstate(), kind, np.asarray(keys).tobytes(), *rest


def _begin(engine: GridEngine, i: int, env: gym.Env, task: GridTask) -> None:
    """Begin the episode of environment ``i`` by the package; UncoveredError if it is another."""
    pool, number = engine.pools[engine.k], int(engine.board.layout[i])
    observation, _ = env.reset(seed=pool.seed_of(number))
    cells, data = engine.board.cells[i].numpy(), engine.board.state[2:, i].tolist()
    _check_same((cells, data), task.read())
    _check_seen(engine, i, observation)


def _check_seen(engine: GridEngine, i: int, observation: Any) -> None:
    seen = engine.seen[i].numpy()
    if np.shape(observation) != seen.shape or not np.array_equal(observation, seen):
        raise UncoveredError("its observations differ from those on tensors")


def _check_same(one: tuple[np.ndarray, list[int]], other: tuple[np.ndarray, list[int]]) -> None:
    if not np.array_equal(one[0], other[0]) or one[1] != other[1]:
        raise UncoveredError("its layouts are not functions of their seeds")


def _act(task: GridTask, rng: np.random.Generator) -> int:
    """An action, often one that does something to what is in front of the agent."""
    env, place = task.env, tuple(map(int, task.env.front_pos))
    inside = 0 <= place[0] < env.width and 0 <= place[1] < env.height
    thing = env.grid.get(*place) if inside else None
    likely = [Actions.forward, Actions.forward, Actions.left, Actions.right]
    if thing is None and env.carrying:
        likely.append(Actions.drop)
    elif thing is not None and thing.type == "wall":
        likely = [Actions.left, Actions.right]
    elif thing is not None and not thing.can_overlap():
        likely = [Actions.pickup, Actions.toggle, Actions.toggle, Actions.left]
    wanted = int(rng.choice(likely))
    if wanted not in task.actions or rng.random() < 0.2:
        return int(rng.integers(len(task.actions)))
    return task.actions.index(wanted)


def _reading(env: MiniGridEnv) -> Reading:
    """What the user's code that makes layouts reaches."""
    passed = (RULED - LAYOUT) | DRAWING | {"__init__", "tensor_rules"}
    roots = {name: value for name, value in users_members(env).items() if name not in passed}
    return Reading(roots | _own(env), filter(is_users, type(env).__mro__), env)


def _disturb(env: Any) -> None:
    """Leave an environment as an episode might: what can be carried is gone, and every door has moved."""
    for door in _doors(env):
        door.is_open, door.is_locked = not door.is_open, False
    things = env.grid.grid
    things[:] = [None if thing is not None and thing.can_pickup() else thing for thing in things]


def _doors(env: Any) -> list[Door]:
    return [thing for thing in env.grid.grid if isinstance(thing, Door)]


def _own(env: MiniGridEnv) -> dict[str, Any]:
    """The attributes of an environment that the package does not know."""
    made_anew = ("room_grid",)  # by the package, for each layout
    return {name: value for name, value in vars(env).items() if name not in RULED and name not in made_anew}


def _attributes(env: MiniGridEnv) -> dict[str, Any]:
    return {name: picture(value, env) for name, value in _own(env).items()}


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    return next((name for name in one | other if one.get(name) != other.get(name)), None)
