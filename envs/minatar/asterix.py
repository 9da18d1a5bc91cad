"""Asterix: enemies and gold cross the board in eight rows; the player collects gold and avoids enemies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neoteny.envs.minatar.board import DOWN, LEFT, NOOP, RIGHT, SIZE, UP, Board, Draws, Rules, Step, towards

CHANNELS = ("player", "enemy", "trail", "gold")
ACTIONS = (NOOP, LEFT, UP, RIGHT, DOWN)
GYMNAX_LIMIT = 1000

SLOTS = SIZE - 2
"""At most one thing in each of the rows 1 to 8."""
SPAWN, MOVE, RAMP = 10, 5, 100
"""Steps between arrivals, between moves, and between increases of the difficulty, at first."""
SIDE, KIND, SLOT, SKIPPED = range(1, 5)
"""Numbers of draws: from which side a thing comes, what it is, in which row, and, by gymnax's rules, which
row is left out."""
DRAWS, DRAWN = 5, ()


class State(NamedTuple):
    """The state of N games, each field (N,) or (8, N)."""

    x: Tensor  # of the player
    y: Tensor
    there: Tensor  # (8, N), whether there is a thing in each row, bool
    at: Tensor  # (8, N), its column
    right: Tensor  # (8, N), whether it goes right, bool
    gold: Tensor  # (8, N), whether it is gold, bool
    spawn_every: Tensor
    spawn_timer: Tensor
    move_every: Tensor
    move_timer: Tensor
    ramp_timer: Tensor
    ramps: Tensor  # how often the difficulty was increased


def begin(draws: Draws, rules: Rules) -> State:
    """The player is in the middle of an empty board."""
    ones = torch.ones_like(draws(0), dtype=torch.int64)
    none = torch.zeros((SLOTS, *ones.shape), dtype=torch.bool, device=ones.device)
    return State(
        x=ones * 5, y=ones * 5, there=none, at=none.long(), right=none, gold=none, spawn_every=ones * SPAWN,
        spawn_timer=ones * SPAWN, move_every=ones * MOVE, move_timer=ones * MOVE, ramp_timer=ones * RAMP,
        ramps=ones * 0,
    )  # fmt: skip


def step(state: State, action: Tensor, draws: Draws, rules: Rules) -> Step:
    """A thing may arrive; then the player moves, then all things do."""
    state = _spawn(state, draws, rules)
    x = (state.x + towards(action, LEFT, RIGHT)).clamp_(0, SIZE - 1)
    y = (state.y + towards(action, UP, DOWN)).clamp_(1, SLOTS)
    there, at, right, gold = state.there, state.at, state.right, state.gold

    in_row = _rows(there) == y
    met = there & in_row & (at == x)
    rewards, killed = met & gold, met & ~gold
    there = there & ~rewards

    moves = state.move_timer == 0
    at = at + (there & moves) * (2 * right.long() - 1)
    there = there & (at >= 0) & (at < SIZE)
    met = there & in_row & (at == x) & moves
    rewards, killed = rewards | met & gold, killed | met & ~gold
    there = there & ~rewards

    state = state._replace(
        x=x, y=y, there=there, at=at, spawn_timer=state.spawn_timer - 1,
        move_timer=torch.where(moves, state.move_every, state.move_timer) - 1,
    )  # fmt: skip
    return Step(_ramp(state) if rules.ramping else state, rewards.sum(0), killed.any(0))


def _spawn(state: State, draws: Draws, rules: Rules) -> State:
    """A thing arrives in a free row, if there is one, and it is time."""
    due = state.spawn_timer == 0
    free = ~state.there
    if rules.gymnax:  # one row is left out, unless all others are taken: then what is in one of them goes
        row = _rows(free) - 1
        skipped = (draws(SKIPPED) * SLOTS).long()
        free = free & (row != skipped)
        count = free.sum(0)
        # No row is free: the last in a random order of the other rows.
        other = (draws(SLOT) * (SLOTS - 1)).long()
        other = other + (other >= skipped)
        emptied = due & (count == 0) & (row == other)
        state = state._replace(there=state.there & ~emptied)
    count = free.sum(0)
    turn = (draws(SLOT) * count).long()
    new = due & free & (free.cumsum(0) == turn + 1)
    right = draws(SIDE) < 1 / 2
    return state._replace(
        there=state.there | new,
        at=torch.where(new, torch.where(right, 0, SIZE - 1), state.at),
        right=torch.where(new, right, state.right),
        gold=torch.where(new, draws(KIND) < 1 / 3, state.gold),
        spawn_timer=torch.where(due, state.spawn_every, state.spawn_timer),
    )


def _ramp(state: State) -> State:
    """Things come more often, and move faster at every second increase, until neither is possible."""
    active = (state.spawn_every > 1) | (state.move_every > 1)
    due = active & (state.ramp_timer < 0)
    faster = due & (state.move_every > 1) & (state.ramps % 2 == 1)
    return state._replace(
        move_every=state.move_every - faster.long(),
        spawn_every=state.spawn_every - (due & (state.spawn_every > 1)).long(),
        ramps=state.ramps + due,
        ramp_timer=torch.where(due, RAMP, state.ramp_timer - active.long()),
    )


def show(state: State, board: Board) -> None:
    """The trail is the cell behind a thing."""
    row = _rows(state.there)
    board.mark(0, state.x, state.y)
    kind = board.place_of.take(1 + 2 * state.gold.long())
    board.mark_places(kind, state.at, row, state.there)
    behind = state.at + 1 - 2 * state.right.long()
    board.mark(2, behind, row, state.there & (behind >= 0) & (behind < SIZE))


def _rows(things: Tensor) -> Tensor:
    """The rows of things, (8, 1)."""
    return torch.arange(1, SLOTS + 1, device=things.device)[:, None]
