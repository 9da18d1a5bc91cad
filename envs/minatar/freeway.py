"""Freeway: a chicken crosses eight lanes of cars; an episode lasts 2,501 steps, by gymnax's rules 2,500."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neoteny.envs.minatar.board import DOWN, NOOP, SIZE, UP, Board, Draws, Rules, Step, towards

CHANNELS = ("chicken", "car", "speed1", "speed2", "speed3", "speed4", "speed5")
ACTIONS = (NOOP, UP, DOWN)
GYMNAX_LIMIT = 2500

LANES = SIZE - 2
"""Rows 1 to 8, with one car each."""
COLUMN = 4
"""In which the chicken walks."""
REST = 3
"""Steps between two of the chicken's moves."""
TIME = 2500
SPEEDS = 5
"""A car of speed s moves at every (s + 1)-th step."""
CARS = 1
"""Number of the draw that decides speeds and directions of all cars."""
DRAWS, DRAWN = 2, ("wait", "speed", "right")


class State(NamedTuple):
    """The state of N games, each field (N,) or (8, N)."""

    y: Tensor  # of the chicken
    rest: Tensor  # steps until it can move
    time: Tensor  # that is left
    at: Tensor  # (8, N), columns of the cars
    wait: Tensor  # (8, N), steps until they move
    speed: Tensor  # (8, N), 1 to 5
    right: Tensor  # (8, N), whether they go right, bool


def begin(draws: Draws, rules: Rules) -> State:
    """All cars are in column 0."""
    speed, right = _cars(draws)
    ones = torch.ones_like(draws(0), dtype=torch.int64)
    return State(
        y=ones * (SIZE - 1), rest=ones * REST, time=ones * TIME, at=torch.zeros_like(speed), wait=speed,
        speed=speed, right=right,
    )  # fmt: skip


def step(state: State, action: Tensor, draws: Draws, rules: Rules) -> Step:
    """Move the chicken, then the cars; one that was or comes where the chicken is sends it back."""
    way = towards(action, UP, DOWN)
    way = way * (state.rest == 0)
    y = (state.y + way).clamp_(0, SIZE - 1)
    rest = torch.where(way != 0, REST, state.rest)

    across = y == 0
    y = torch.where(across, SIZE - 1, y)
    new_speed, new_right = _cars(draws)
    speed = torch.where(across, new_speed, state.speed)
    right = torch.where(across, new_right, state.right)
    wait = torch.where(across, new_speed, state.wait)

    moves = wait == 0
    at = (state.at + moves * (2 * right.long() - 1)) % SIZE
    wait = torch.where(moves, speed, wait - 1)
    lane = torch.arange(1, LANES + 1, device=y.device)[:, None]
    hit = ((lane == y) & ((state.at == COLUMN) | (at == COLUMN))).any(0)
    y = torch.where(hit, SIZE - 1, y)

    time = state.time - 1
    after = State(y, (rest - 1).clamp_(min=0), time, at, wait, speed, right)
    # gymnax's limit of steps truncates.
    return Step(after, across, time < 0)


def _cars(draws: Draws) -> tuple[Tensor, Tensor]:
    """Speeds and directions of new cars, (8, N): the digits of one random number."""
    choices = 2 * SPEEDS
    number = (draws(CARS) * choices**LANES).long()
    powers = choices ** torch.arange(LANES, device=number.device)[:, None]
    digit = number.div(powers, rounding_mode="floor") % choices
    return digit % SPEEDS + 1, digit < SPEEDS


def show(state: State, board: Board) -> None:
    """The trail, in a channel for each speed, is the cell behind a car, on a board without edges."""
    lane = torch.arange(1, LANES + 1, device=state.y.device)[:, None]
    board.mark(0, torch.full_like(state.y, COLUMN), state.y)
    board.mark(1, state.at, lane)
    behind = (state.at + 1 - 2 * state.right.long()) % SIZE
    board.mark_places(board.place_of.take(state.speed + 1), behind, lane)
