"""Space Invaders: a cannon in the lowest row shoots at aliens, which shoot back and come nearer.

A row of the board is a number of ten bits, of which bit x is column x; a board is ten of them, (10, N).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neoteny.envs.minatar.board import FIRE, LEFT, NOOP, RIGHT, SIZE, Board, Draws, Rules, Step, towards

CHANNELS = ("cannon", "alien", "alien_left", "alien_right", "friendly_bullet", "enemy_bullet")
ACTIONS = (NOOP, LEFT, RIGHT, FIRE)
GYMNAX_LIMIT = 1000
DRAWS, DRAWN = 1, ()

COOL_DOWN = 5
"""Steps between two shots of the cannon."""
MOVE, FASTEST = 12, 6
"""Most steps between two moves of the aliens in the first wave, and in the last ones."""
SHOT = 10
"""Steps between two shots of the aliens."""
WAVE, WIDE_WAVE = 0b0011111100, 0b0111111100
"""Each of the four rows of aliens; by gymnax's rules the first wave has a column more."""
EDGES = 1 | 1 << SIZE - 1
"""The first and the last column."""


class State(NamedTuple):
    """The state of N games, each field (N,) or (10, N)."""

    cannon: Tensor  # its column
    bullets: Tensor  # (10, N), of the cannon
    enemy_bullets: Tensor  # (10, N)
    aliens: Tensor  # (10, N)
    right: Tensor  # whether the aliens go right, bool
    move_every: Tensor  # most steps between two moves of the aliens
    move_timer: Tensor
    shot_timer: Tensor  # of the aliens
    cool_down: Tensor  # of the cannon


def begin(draws: Draws, rules: Rules) -> State:
    """The first wave of aliens."""
    ones = torch.ones_like(draws(0), dtype=torch.int64)
    none = torch.zeros((SIZE, *ones.shape), dtype=torch.int64, device=ones.device)
    return State(
        cannon=ones * 5, bullets=none, enemy_bullets=none,
        aliens=none + _wave(none, WIDE_WAVE if rules.gymnax else WAVE),
        right=torch.zeros_like(ones, dtype=torch.bool), move_every=ones * MOVE, move_timer=ones * MOVE,
        shot_timer=ones * SHOT, cool_down=ones * 0,
    )  # fmt: skip


def step(state: State, action: Tensor, draws: Draws, rules: Rules) -> Step:
    """The cannon acts, bullets fly, aliens move and shoot; then bullets that meet aliens hit them."""
    fires = (action == FIRE) & (state.cool_down == 0)
    cool_down = torch.where(fires, COOL_DOWN, state.cool_down)
    cannon = (state.cannon + towards(action, LEFT, RIGHT)).clamp_(0, SIZE - 1)
    column = 1 << cannon
    # The new bullet is in the cannon's row, and all bullets go one row up.
    fired = torch.where(fires, column, 0)
    bullets = torch.cat((state.bullets[1:-1], (state.bullets[-1] | fired)[None], _empty(fired)))
    enemy_bullets = torch.cat((_empty(fired), state.enemy_bullets[:-1]))
    # gymnax checks where the cannon was.
    exposed = 1 << state.cannon if rules.gymnax else column
    hit = enemy_bullets[-1] & exposed

    aliens, right, move_timer, landed = _march(state)
    hit = hit | (state.aliens[-1] | aliens[-1]) & column
    enemy_bullets, shot_timer = _shoot(state, enemy_bullets, aliens, cannon)

    killed = aliens & bullets
    aliens, bullets = aliens ^ killed, bullets ^ killed
    cleared = (aliens == 0).all(0)
    move_every = state.move_every
    if rules.ramping:
        move_every = move_every - (cleared & (move_every > FASTEST)).long()
    after = State(
        cannon, bullets, enemy_bullets, aliens + cleared * _wave(aliens, WAVE), right, move_every,
        move_timer - 1, shot_timer - 1, (cool_down - 1).clamp_(min=0),
    )  # fmt: skip
    return Step(after, _count(killed), landed | (hit != 0))


def _march(state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move the aliens if it is time: aliens, whether they go right, their timer, and whether they landed."""
    aliens = state.aliens
    moves = state.move_timer == 0
    columns = _any(aliens)
    turns = moves & torch.where(state.right, columns >> SIZE - 1, columns & 1).bool()
    sideways = torch.where(state.right, aliens << 1, aliens >> 1)
    moved = torch.where(turns, aliens.roll(1, 0), torch.where(moves, sideways, aliens))
    timer = torch.where(moves, torch.minimum(_count(aliens), state.move_every), state.move_timer)
    return moved, state.right ^ turns, timer, turns & (aliens[-1] != 0)


def _shoot(state: State, bullets: Tensor, aliens: Tensor, cannon: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest alien of the column nearest to the cannon shoots: bullets, and the aliens' timer."""
    due = state.shot_timer == 0
    column = torch.arange(SIZE, device=cannon.device)[:, None]
    # Twice the distance, so that the left one of two columns at the same distance is nearer.
    distance = 2 * (column - cannon).abs() + (column > cannon).long()
    distance = torch.where((_any(aliens) >> column & 1).bool(), distance, 2 * SIZE)
    nearest = distance.argmin(0)
    in_column = aliens >> nearest & 1
    lowest = (in_column * (column + 1)).amax(0) - 1
    shot = (column == lowest) & due
    return bullets | torch.where(shot, 1 << nearest, 0), torch.where(due, SHOT, state.shot_timer)


def _any(rows: Tensor) -> Tensor:
    """The columns in which any row has a bit, (N,)."""
    found = rows[0]
    for row in rows[1:]:
        found = found | row
    return found


def _count(rows: Tensor) -> Tensor:
    """The number of bits of all rows, (N,)."""
    pairs = rows - (rows >> 1 & 0b0101010101)
    fours = (pairs & 0b1100110011) + (pairs >> 2 & 0b0011001100 >> 2)
    return ((fours & 15) + (fours >> 4 & 15) + (fours >> 8)).sum(0)


def _wave(rows: Tensor, bits: int) -> Tensor:
    """Four rows of aliens, (10, 1)."""
    return (torch.arange(SIZE, device=rows.device)[:, None] < 4) * bits


def _empty(row: Tensor) -> Tensor:
    """An empty row, (1, N)."""
    return torch.zeros_like(row)[None]


def show(state: State, board: Board) -> None:
    """A channel each for aliens that go left and right, beside one for all."""
    board.paint(state.aliens, state.right, ((1, 2), (1, 3)))
    board.mark(0, state.cannon, SIZE - 1)
    board.fill(4, state.bullets)
    board.fill(5, state.enemy_bullets)
