"""Breakout: a ball on diagonals breaks three rows of bricks; it must not pass the paddle in the last row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neoteny.envs.minatar.board import LEFT, NOOP, RIGHT, SIZE, Board, Draws, Rules, Step, towards

CHANNELS = ("paddle", "ball", "trail", "brick")
ACTIONS = (NOOP, LEFT, RIGHT)
GYMNAX_LIMIT = 1000

START = 1
"""Number of the draw that decides on which side the ball starts."""
DRAWS, DRAWN = 2, ("x", "dx", "last_x")

WALL = (1 << 3 * SIZE) - 1
"""All bricks: bit 10 * (y - 1) + x for the one in rows 1 to 3."""


class State(NamedTuple):
    """The state of N games, each field (N,)."""

    paddle: Tensor  # its column
    x: Tensor  # of the ball
    y: Tensor
    dx: Tensor  # direction of the ball, -1 or 1
    dy: Tensor
    last_x: Tensor  # of the ball, one step ago
    last_y: Tensor
    bricks: Tensor  # bits, see WALL
    strike: Tensor  # whether the ball was at a brick at the last step, bool


def begin(draws: Draws, rules: Rules) -> State:
    """The ball starts in a corner of row 3, and goes down."""
    right = (draws(START) * 2).long()
    x, ones = right * (SIZE - 1), torch.ones_like(right)
    return State(
        paddle=ones * 4, x=x, y=ones * 3, dx=1 - 2 * right, dy=ones, last_x=x, last_y=ones * 3,
        bricks=ones * WALL, strike=torch.zeros_like(right, dtype=torch.bool),
    )  # fmt: skip


def step(state: State, action: Tensor, draws: Draws, rules: Rules) -> Step:
    """Move the paddle, then the ball."""
    paddle = (state.paddle + towards(action, LEFT, RIGHT)).clamp_(0, SIZE - 1)
    x, y, dx, dy = state.x + state.dx, state.y + state.dy, state.dx, state.dy

    ceiling, inside = y < 0, x.clamp(0, SIZE - 1)
    dx = torch.where(x == inside, dx, -dx)
    x, y = inside, y.clamp(min=0)

    # A ball that was at a brick at the last step passes through.
    brick = ((y - 1) * SIZE + x).clamp_(0, 3 * SIZE - 1)
    at_brick = (y >= 1) & (y <= 3) & (state.bricks >> brick & 1).bool()
    broken = at_brick & ~state.strike
    bricks = state.bricks ^ broken.long() << brick

    at_bottom = y == SIZE - 1
    bricks = torch.where(at_bottom & (bricks == 0), WALL, bricks)
    under = state.x == paddle  # the paddle is below where the ball was
    caught = at_bottom & (under | (x == paddle))  # or where it goes, which turns it back
    dx = torch.where(caught & ~under, -dx, dx)
    turned = broken | caught
    dy = torch.where(ceiling | turned, -dy, dy)
    y = torch.where(turned, state.y, y)
    after = State(paddle, x, y, dx, dy, state.x.clone(), state.y.clone(), bricks, at_brick)
    return Step(after, broken, at_bottom ^ caught)


def show(state: State, board: Board) -> None:
    """The trail is where the ball was."""
    board.mark(0, state.paddle, SIZE - 1)
    board.mark(1, state.x, state.y)
    board.mark(2, state.last_x, state.last_y)
    rows = state.bricks >> torch.arange(0, 3 * SIZE, SIZE, device=state.x.device)[:, None] & (1 << SIZE) - 1
    board.fill(3, rows, top=1)
