"""MiniGrid's rules as lookup tables, made by running the package's own objects.

A cell is one *code*, a small number for each kind of object in each of its states. Everything that MiniGrid
does to objects is then a lookup: what a step makes of the cell in front of the agent and of what it carries,
what an object looks like, whether one sees past it, and which cells of a row are visible.
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

ACTIONS = 7
STAY, LEFT, RIGHT, FORWARD = range(4)  # how the agent moves
UNSEEN, EMPTY = 0, 1  # the first codes; EMPTY is also what is carried by one that carries nothing


def _objects() -> list[WorldObj | None]:
    """One object for each code from EMPTY on. Boxes hold nothing, a key, a ball or an empty box."""
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
    """All that tells an object from others, but for where it is."""
    if thing is None:
        return ()
    inside = () if thing.contains is None else _key(thing.contains)
    is_open, is_locked = getattr(thing, "is_open", None), getattr(thing, "is_locked", None)
    return type(thing), thing.color, is_open, is_locked, inside


OBJECTS = _objects()
CODES = EMPTY + len(OBJECTS)
AGENT = CODES  # and the next three: an agent seen from above, by its direction
_CODE_OF = {_key(thing): code for code, thing in enumerate(OBJECTS, start=EMPTY)}
WALL, BALL = (_CODE_OF[_key(thing)] for thing in (Wall(), Ball()))


def code_of(thing: WorldObj | None) -> int:
    """The code of an object, or UncoveredError."""
    if thing is None:
        return EMPTY
    try:
        return _CODE_OF[_key(thing)]
    except KeyError:
        held = "" if thing.contains is None else f" that holds a {thing.contains.type}"
        raise UncoveredError(f"no table holds a {thing.color} {thing.type}{held}") from None


class _Room(MiniGridEnv):
    """Three by three cells, in which one object is stepped at."""

    carrying: Any

    def __init__(self) -> None:
        super().__init__(MissionSpace(lambda: ""), grid_size=3)
        self.grid = Grid(3, 3)

    def _gen_grid(self, width: int, height: int) -> None:
        """What is in the room is put there by hand."""

    def gen_obs(self) -> None:
        """Not looked at."""


@functools.cache
def rules() -> NDArray[np.int64]:
    """What a step does, (action, code carried, code in front, 5).

    The last axis: what is in front then, what is carried then, how the agent moves, whether it reached a
    goal, and whether the episode ends.
    """
    room = _Room()
    table = np.zeros((ACTIONS, CODES, CODES, 5), np.int64)
    # What is carried decides only by being a key of some colour, or at all: a ball stands for all else.
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
    """Kind, colour and state of every code as an observation shows them, agents last, (CODES + 4, 3)."""
    empty = (OBJECT_TO_IDX["empty"], 0, 0)
    seen = [thing.encode() if thing else empty for thing in OBJECTS]
    agents = [(OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], direction) for direction in range(4)]
    return np.array([(OBJECT_TO_IDX["unseen"], 0, 0), *seen, *agents], np.uint8)


@functools.cache
def onehot_encoding() -> NDArray[np.uint8]:
    """The same, one-hot for kind, colour and state, (CODES + 4, 20)."""
    sizes = len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX)
    parts = [np.eye(size + 1, dtype=np.uint8)[encoding()[:, i], :size] for i, size in enumerate(sizes)]
    return np.concatenate(parts, axis=1)


def which(property: Callable[[WorldObj], bool]) -> NDArray[np.bool_]:
    """Which codes stand for objects with a property, (CODES,)."""
    return np.array([False, *(thing is not None and property(thing) for thing in OBJECTS)])


class Sight(NamedTuple):
    """What is visible of a view, row by row, the agent's own first.

    A *state* is a pair of what is visible of a row and, through it, of the next one; the first state is that
    before the agent's own row.
    """

    next: NDArray[np.int64]
    """The state of a row, (states, 2**size): by that of the row before and opaque cells, bit i the i-th."""
    visible: NDArray[np.uint8]
    """1 for the cells that are visible in a row of that state, (states, size)."""


@functools.cache
def sight(size: int) -> Sight:
    """Rows of ``size`` cells, from MiniGrid's own sweep over a view of two rows."""
    sets = 1 << size
    row, farther = (np.zeros((sets, sets), np.int64) for _ in range(2))  # by visible at first, opaque
    bits = 1 << np.arange(size)
    for blocked in range(sets):
        # The sweep is a union over the cells where it starts, so one start at a time will do.
        for start in range(size):
            grid = Grid(size, 3)
            for i in range(size):
                grid.grid[2 * size + i] = Wall() if blocked >> i & 1 else None
                grid.grid[size + i] = Wall()  # which hides all that is farther
            mask = grid.process_vis((start, 2))
            has = np.arange(sets) >> start & 1 == 1
            row[has, blocked] |= int(mask[:, 2] @ bits)
            farther[has, blocked] |= int(mask[:, 1] @ bits)
    first = 1 << size // 2
    pairs, state = np.unique(np.concatenate(([first], (row * sets + farther).ravel())), return_inverse=True)
    # Exchange two states, so that the first is number 0.
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
    """The cells seen, (places, size, size), to the right and towards the agent; beyond the grid: cells."""


@functools.lru_cache(maxsize=64)
def places(width: int, height: int, size: int) -> Places:
    """Tables of a grid for views of ``size`` x ``size`` cells."""
    x, y, direction = (axis.ravel() for axis in np.indices((width, height, 4)))
    ahead = np.array(DIR_TO_VEC)[direction]
    right = np.stack((-ahead[:, 1], ahead[:, 0]), axis=1)
    here = np.stack((x, y), axis=1)

    def cell(at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of cells at (..., 2)."""
        inside = (at >= 0).all(-1) & (at < (width, height)).all(-1)
        return np.where(inside, at[..., 0] * height + at[..., 1], width * height)

    front, own = cell(here + ahead), cell(here)
    # Where the way ahead leads out of the grid, there is a wall; the number of the place does not matter.
    forward = np.where(front < width * height, front, own)
    moved = 4 * np.stack((own, own, own, forward), axis=1)
    moved += np.stack((direction, (direction - 1) % 4, (direction + 1) % 4, direction), axis=1)
    i, j = np.indices((size, size))[..., None]
    seen = (
        here[:, None, None] + ahead[:, None, None] * (size - 1 - j) + right[:, None, None] * (i - size // 2)
    )
    return Places(front, moved, cell(seen))
