"""MiniGrid's rules as lookup tables, computed by running the package's own objects.

The content of a cell is one *code*, a small integer for each kind of object in each of its states. Everything
that MiniGrid does with objects is then a lookup: the effect of a step on the cell in front of the agent and
on the carried object, the encoding of an object, whether it blocks the view, and which cells are visible.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from minigrid.core.constants import COLOR_NAMES, COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall, WorldObj
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import NDArray

from neoteny.envs.engine import UncoveredError
from neoteny.envs.user_code import users_members

ACTIONS = 7
STAY, LEFT, RIGHT, FORWARD = range(4)  # how the agent moves
UNSEEN, EMPTY = 0, 1  # the first codes; EMPTY also stands for carrying nothing


def _objects() -> list[WorldObj | None]:
    """One object per code, from EMPTY on. A box is empty or holds a key, a ball or an empty box."""
    plain = [kind(color) for kind in (Key, Ball, Box) for color in COLOR_NAMES]
    doors = [
        Door(color, is_open, is_locked)
        for color in COLOR_NAMES
        for is_open, is_locked in ((True, False), (False, False), (False, True))
    ]
    still = [kind(color) for kind in (Wall, Floor, Goal) for color in COLOR_NAMES]
    full = [Box(color, held) for color in COLOR_NAMES for held in plain]
    return [None, *still, Lava(), *doors, *plain, *full]


def _key(thing: WorldObj | None) -> tuple[Any, ...]:
    """The attributes by which objects are distinguished, without their position, and how many there are."""
    if thing is None:
        return ()
    own = thing.__dict__  # several times as fast as getattr
    inside = _key(own["contains"]) if own["contains"] else ()
    return type(thing), own["type"], own["color"], own.get("is_open"), own.get("is_locked"), inside, len(own)


OBJECTS = _objects()
CODES = EMPTY + len(OBJECTS)
AGENT = CODES  # and the next three: the agent in a fully observed grid, by its direction
_CODE_OF = {_key(thing): code for code, thing in enumerate(OBJECTS, start=EMPTY)}
_ONE_OF_EACH = {type(thing): thing for thing in OBJECTS if thing}.values()
_ATTRIBUTES = {type(thing): vars(thing).keys() for thing in _ONE_OF_EACH}
_METHODS = {name for kind in _ATTRIBUTES for name in dir(kind) if callable(getattr(kind, name))}
WALL, BALL = (_CODE_OF[_key(thing)] for thing in (Wall(), Ball()))


def code_of(thing: WorldObj | None) -> int:
    """The code of an object; UncoveredError if it has none, or does something of its own."""
    if thing is None:
        return EMPTY
    try:
        return _CODE_OF[_key(thing)]
    except (KeyError, TypeError):
        return _code_of_odd(thing)


def _code_of_odd(thing: WorldObj) -> int:
    """The code of an object with attributes of a user's, none of them a method; else UncoveredError."""
    if own := vars(thing).keys() & _METHODS:
        raise UncoveredError(f"a {thing.color} {thing.type} has its own {', '.join(sorted(own))}")
    if own := vars(thing).keys() - _ATTRIBUTES.get(type(thing), vars(thing).keys()):
        plain = copy.copy(thing)
        for name in own:
            delattr(plain, name)
        return code_of(plain)
    kind = "" if type(thing) in _ATTRIBUTES else f", a {type(thing).__name__}"
    inside = getattr(thing, "contains", None)
    held = f" that holds a {inside.type}" if inside else ""
    raise UncoveredError(f"the tables do not hold a {thing.color} {thing.type}{kind}{held}")


def check_package() -> None:
    """Raise UncoveredError if a user has put methods into the package's objects or grid."""
    for thing in (*_ONE_OF_EACH, Grid(3, 3)):
        if changed := users_members(thing):
            raise UncoveredError(f"{type(thing).__name__} has another {', '.join(sorted(changed))}")


class _Room(MiniGridEnv):
    """A grid of 3x3 cells in which the effect of a step on one object is recorded."""

    carrying: Any

    def __init__(self) -> None:
        super().__init__(MissionSpace(lambda: ""), grid_size=3)
        self.grid = Grid(3, 3)

    def _gen_grid(self, width: int, height: int) -> None:
        """Leave the grid empty: :func:`rules` places the objects."""

    def gen_obs(self) -> None:
        """Skip the observation, which is not used."""


@functools.cache
def rules() -> NDArray[np.int64]:
    """The effect of a step, (action, code carried, code in front, 5).

    The last axis: the new code in front, the new carried code, the agent's move (STAY, ...), whether it
    reached a goal, and whether the episode ends.
    """
    room = _Room()
    table = np.zeros((ACTIONS, CODES, CODES, 5), np.int64)
    # The carried object matters only by whether there is one and whether it is a key of some colour: a ball
    # stands for all other objects.
    keys = [code for code, thing in enumerate(OBJECTS, start=EMPTY) if isinstance(thing, Key)]
    others = np.setdiff1d(np.arange(CODES), [UNSEEN, EMPTY, *keys])
    cases = itertools.product(range(ACTIONS), (EMPTY, *keys, BALL), range(EMPTY, CODES))
    for action, carried, front in cases:
        before, held = (copy.copy(OBJECTS[code - EMPTY]) for code in (front, carried))
        room.grid.set(2, 1, before)
        room.carrying = held
        room.agent_pos, room.agent_dir, room.step_count = (1, 1), 0, 0
        _, reward, ended, *_ = room.step(action)
        turn = {0: STAY, 1: RIGHT, 3: LEFT}[room.agent_dir]
        move = FORWARD if tuple(room.agent_pos) == (2, 1) else turn
        result = [room.grid.get(2, 1), room.carrying]
        table[action, carried, front] = *map(code_of, result), move, float(reward) > 0, ended
        if carried == BALL:
            table[action, others, front] = table[action, carried, front]
            for column, thing in enumerate(result):
                if thing is held:
                    table[action, others, front, column] = others
    return table


@functools.cache
def encoding() -> NDArray[np.uint8]:
    """The observation (kind, colour, state) of every code, agents last, (CODES + 4, 3)."""
    empty = (OBJECT_TO_IDX["empty"], 0, 0)
    seen = [thing.encode() if thing else empty for thing in OBJECTS]
    agents = [(OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], direction) for direction in range(4)]
    return np.array([(OBJECT_TO_IDX["unseen"], 0, 0), *seen, *agents], np.uint8)


@functools.cache
def onehot_encoding() -> NDArray[np.uint8]:
    """The same as one-hot vectors of kind, colour and state, (CODES + 4, 20)."""
    sizes = len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX)
    parts = [np.eye(size + 1, dtype=np.uint8)[encoding()[:, i], :size] for i, size in enumerate(sizes)]
    return np.concatenate(parts, axis=1)


def which(property: Callable[[WorldObj], bool]) -> NDArray[np.bool_]:
    """A mask of the codes whose objects have a property, (CODES,)."""
    return np.array([False, *(thing is not None and property(thing) for thing in OBJECTS)])


class Sight(NamedTuple):
    """Visibility in a view as a finite automaton that reads it row by row, the agent's own row first.

    A *state* is a pair of sets: the visible cells of a row and, seen through it, those of the next row. State
    0 is that before the agent's own row.
    """

    next: NDArray[np.int64]
    """Transitions, (states, 2**size): (state of the row before, bit mask of opaque cells) -> state."""
    visible: NDArray[np.uint8]
    """1 for the visible cells of a row in each state, (states, size)."""


@functools.cache
def sight(size: int) -> Sight:
    """Compute the automaton for rows of ``size`` cells with MiniGrid's own ``process_vis`` on two rows."""
    sets = 1 << size
    row, farther = (np.zeros((sets, sets), np.int64) for _ in range(2))  # (visible at first, opaque)
    bits = 1 << np.arange(size)
    for blocked in range(sets):
        # The result is a union over the starting cells, so each start is computed alone.
        for start in range(size):
            grid = Grid(size, 3)
            for i in range(size):
                grid.grid[2 * size + i] = Wall() if blocked >> i & 1 else None
                grid.grid[size + i] = Wall()  # hides all rows beyond
            mask = grid.process_vis((start, 2))
            has = np.arange(sets) >> start & 1 == 1
            row[has, blocked] |= int(mask[:, 2] @ bits)
            farther[has, blocked] |= int(mask[:, 1] @ bits)
    first = 1 << size // 2
    pairs, state = np.unique(np.concatenate(([first], (row * sets + farther).ravel())), return_inverse=True)
    # Swap two states, so that the initial one is number 0.
    was = state[0]
    pairs[[0, was]], state = pairs[[was, 0]], np.where(state == was, 0, np.where(state == 0, was, state))
    seen = (pairs[:, None] // sets >> np.arange(size) & 1).astype(np.uint8)
    return Sight(state[1:].reshape(sets, sets)[pairs % sets], seen)


class Places(NamedTuple):
    """Places of an agent, ``4 * cell + direction``, where cell ``x * height + y`` is at (x, y)."""

    front: NDArray[np.int64]
    """The cell in front, (places,)."""
    moved: NDArray[np.int64]
    """The place after STAY, LEFT, RIGHT, FORWARD, (places, 4)."""
    view: NDArray[np.int64]
    """The cells in view, (places, size, size), by column and row; outside the grid: width * height."""


@functools.lru_cache(maxsize=64)
def places(width: int, height: int, size: int) -> Places:
    """The tables of a grid for views of ``size`` x ``size`` cells."""
    x, y, direction = (axis.ravel() for axis in np.indices((width, height, 4)))
    ahead = np.array(DIR_TO_VEC)[direction]
    right = np.stack((-ahead[:, 1], ahead[:, 0]), axis=1)
    here = np.stack((x, y), axis=1)

    def cell(at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the cells at coordinates (..., 2)."""
        inside = (at >= 0).all(-1) & (at < (width, height)).all(-1)
        return np.where(inside, at[..., 0] * height + at[..., 1], width * height)

    front, own = cell(here + ahead), cell(here)
    # Grids are enclosed by walls, so the entry for a move out of the grid is never used.
    forward = np.where(front < width * height, front, own)
    moved = 4 * np.stack((own, own, own, forward), axis=1)
    moved += np.stack((direction, (direction - 1) % 4, (direction + 1) % 4, direction), axis=1)
    i, j = np.indices((size, size))[..., None]
    seen = (
        here[:, None, None] + ahead[:, None, None] * (size - 1 - j) + right[:, None, None] * (i - size // 2)
    )
    return Places(front, moved, cell(seen))
