"""Seaquest: a submarine shoots fish and submarines, picks up divers, and surfaces before its air runs out.

The package keeps enemies in two lists, from which it removes entries while it goes through them from the
end. So it matters which of several enemies in a cell is older. It removes the first entry of equal value, but
where that might be another one, a bullet has hit it before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neoteny.envs.minatar.board import (
    DOWN,
    FIRE,
    LEFT,
    NOOP,
    RIGHT,
    SIZE,
    UP,
    Board,
    Draws,
    Rules,
    Step,
    as_int8,
    replace,
    towards,
)

CHANNELS = (
    "sub_front", "sub_back", "friendly_bullet", "trail", "enemy_bullet", "enemy_fish", "enemy_sub",
    "oxygen_gauge", "diver_gauge", "diver",
)  # fmt: skip
ACTIONS = (NOOP, LEFT, UP, RIGHT, DOWN, FIRE)
GYMNAX_LIMIT = None

AIR, CREW = 200, 6
"""Steps that a full tank lasts, and places for divers."""
SPAWN, MOVE, FASTEST = 20, 5, 2
"""Steps between two arrivals of enemies at first, and between two of their moves, at first and at the end."""
DIVERS, DIVER_MOVE = 30, 5
RELOAD, COOL_DOWN = 10, 5
"""Steps between two shots of an enemy and of the player."""
ENEMIES = 32
"""More than there can be at once: one arrives a step, and each is gone after ten moves, 30 steps."""
SIDE, KIND, ROW, DIVER_SIDE, DIVER_ROW = range(1, 6)
"""Numbers of draws."""
DRAWS, DRAWN = 6, ()


class Things(NamedTuple):
    """Divers, (2, N), or the player's bullets, (2, N). Slots are used in turn."""

    there: Tensor  # bool
    right: Tensor  # whether they go right, bool
    x: Tensor  # int8, as all numbers of things: fewer bytes take less time
    y: Tensor
    timer: Tensor  # steps until the next move; bullets have none


class Enemies(NamedTuple):
    """Fish and submarines, (32, N), each with at most one bullet, which stays in its row."""

    there: Tensor  # bool
    sub: Tensor  # whether it is a submarine, bool
    right: Tensor
    x: Tensor
    y: Tensor
    timer: Tensor
    reload: Tensor  # steps until the next shot
    shot: Tensor  # whether its bullet flies, also after the submarine is gone, bool
    shot_x: Tensor


class State(NamedTuple):
    """The state of N games; what has no other shape is (N,). What things are compared with is int8."""

    x: Tensor  # of the player, int8
    y: Tensor  # int8
    right: Tensor  # whether the player faces right, bool
    air: Tensor
    crew: Tensor  # divers on board; -1 after six of them were brought up
    surfaced: Tensor  # whether the player was at the surface, bool
    cool_down: Tensor
    spawn_every: Tensor
    spawn_timer: Tensor
    diver_timer: Tensor
    move_every: Tensor  # int8
    ramps: Tensor
    spawned: Tensor  # enemies so far
    spawned_divers: Tensor
    bullets: Things
    divers: Things
    enemies: Enemies


def begin(draws: Draws, rules: Rules) -> State:
    """The player is alone at the surface."""
    ones = torch.ones_like(draws(0), dtype=torch.int64)
    no = torch.zeros_like(ones, dtype=torch.bool)

    def none(slots: int) -> Tensor:
        return torch.zeros((slots, *ones.shape), dtype=torch.int8, device=ones.device)

    two, many = none(2), none(ENEMIES)
    things = Things(there=two.bool(), right=two.bool(), x=two, y=two, timer=two)
    enemies = Enemies(
        there=many.bool(), sub=many.bool(), right=many.bool(), x=many, y=many, timer=many, reload=many,
        shot=many.bool(), shot_x=many,
    )  # fmt: skip
    return State(
        x=_small(ones * 5), y=_small(ones * 0), right=no, air=ones * AIR, crew=ones * 0, surfaced=~no,
        cool_down=ones * 0, spawn_every=ones * SPAWN, spawn_timer=ones * SPAWN, diver_timer=ones * DIVERS,
        move_every=_small(ones * MOVE),
        ramps=ones * 0, spawned=ones * 0, spawned_divers=ones * 0, bullets=things, divers=things,
        enemies=enemies,
    )  # fmt: skip


def step(state: State, action: Tensor, draws: Draws, rules: Rules) -> Step:
    """Things arrive, the player acts, bullets fly, divers and enemies move, and the air is used up."""
    state = _spawn_diver(_spawn_enemy(state, draws), draws)
    state = _act(state, action)
    state, rewards = _fly(state)
    state = _pick_up(state)
    state, more, killed = _move_enemies(state)
    state, shot = _fly_shots(state)
    state, paid, lost = _breathe(state, rules)
    return Step(state, rewards + more + paid, killed | shot | lost)


def _slot(number: Tensor, slots: int) -> Tensor:
    """Where the thing of a number goes, (slots, N), bool."""
    slot = torch.arange(slots, dtype=torch.int8, device=number.device)[:, None]
    return slot == _small(number % slots)


def _age(spawned: Tensor, slots: int) -> Tensor:
    """Ranks of things by their age, the newest first, (slots, N); slots are a power of two."""
    slot = torch.arange(slots, dtype=torch.int8, device=spawned.device)[:, None]
    return _small((spawned - 1) % slots) - slot & slots - 1


def _spawn_enemy(state: State, draws: Draws) -> State:
    """An enemy arrives, unless one of the other direction is in its row."""
    due = state.spawn_timer == 0
    right, sub = draws(SIDE) < 1 / 2, draws(KIND) < 1 / 3
    y = 1 + _small(draws(ROW) * 8)
    old = state.enemies
    against = _any(old.there & (old.y == y) & (old.right != right))
    new = _slot(state.spawned, ENEMIES) & (due & ~against)
    x = _small(torch.where(right, 0, SIZE - 1))
    enemies = old._replace(
        there=old.there | new, sub=replace(old.sub, new, sub), right=replace(old.right, new, right),
        x=replace(old.x, new, x), y=replace(old.y, new, y),
        timer=replace(old.timer, new, state.move_every), reload=old.reload.masked_fill(new, RELOAD),
    )  # fmt: skip
    timer = torch.where(due, state.spawn_every, state.spawn_timer)
    return state._replace(enemies=enemies, spawned=state.spawned + (due & ~against), spawn_timer=timer)


def _spawn_diver(state: State, draws: Draws) -> State:
    due = state.diver_timer == 0
    right = draws(DIVER_SIDE) < 1 / 2
    y = 1 + _small(draws(DIVER_ROW) * 8)
    x = _small(torch.where(right, 0, SIZE - 1))
    old, new = state.divers, _slot(state.spawned_divers, 2) & due
    divers = Things(
        old.there | new, replace(old.right, new, right), replace(old.x, new, x), replace(old.y, new, y),
        old.timer.masked_fill(new, DIVER_MOVE),
    )  # fmt: skip
    timer = torch.where(due, DIVERS, state.diver_timer)
    return state._replace(divers=divers, spawned_divers=state.spawned_divers + due, diver_timer=timer)


def _act(state: State, action: Tensor) -> State:
    fires = (action == FIRE) & (state.cool_down == 0)
    old = state.bullets
    new = torch.stack((~old.there[0], old.there[0])) & fires  # of two, one is always gone
    bullets = old._replace(
        there=old.there | new, right=replace(old.right, new, state.right),
        x=replace(old.x, new, state.x), y=replace(old.y, new, state.y),
    )  # fmt: skip
    way = towards(action, LEFT, RIGHT)
    return state._replace(
        bullets=bullets,
        cool_down=torch.where(fires, COOL_DOWN, state.cool_down),
        x=(state.x + way).clamp_(0, SIZE - 1),
        y=(state.y + towards(action, UP, DOWN)).clamp_(0, SIZE - 2),
        right=torch.where(way == 0, state.right, way > 0),
    )


def _fly(state: State) -> tuple[State, Tensor]:
    """Bullets move; each hits the oldest fish in its cell, else the oldest submarine. Returns rewards too."""
    bullets, enemies = state.bullets, state.enemies
    x = bullets.x + _way(bullets.right)
    flying = bullets.there & (x >= 0) & (x < SIZE)
    rank = _age(state.spawned, ENEMIES) + 1 + ENEMIES * as_int8(~enemies.sub)
    cell, cells = _cell(enemies.x, enemies.y), _cell(x, bullets.y)
    there, hits = enemies.there, []
    for bullet in range(2):  # they are never in the same cell
        met = there & (cell == cells[bullet]) & flying[bullet]
        hit, one = _first(met, rank)
        there = there & ~one
        hits.append(hit)
    hit = torch.stack(hits)
    state = state._replace(
        bullets=bullets._replace(there=flying & ~hit, x=x), enemies=enemies._replace(there=there)
    )
    return state, hit.sum(0)


def _pick_up(state: State) -> State:
    """Divers come on board where the player is or where they come to the player, while there is room."""
    old, x, y = state.divers, state.x, state.y
    moves = old.there & (old.timer == 0)
    new_x = old.x + as_int8(moves) * _way(old.right)
    meets = old.there & (old.y == y) & ((old.x == x) | (new_x == x))
    newer = _slot(state.spawned_divers + 1, 2)
    before = (meets & newer).sum(0) * ~newer  # divers that are asked first, (2, N)
    on_board = meets & (before < CREW - state.crew)
    there = old.there & ~on_board & (new_x >= 0) & (new_x < SIZE)
    timer = replace(old.timer - 1, moves, DIVER_MOVE)
    return state._replace(
        divers=old._replace(there=there, x=new_x, timer=timer), crew=state.crew + on_board.sum(0)
    )


def _move_enemies(state: State) -> tuple[State, Tensor, Tensor]:
    """Enemies move, into bullets too, and submarines shoot. Returns rewards and whether the player is met."""
    old, bullets = state.enemies, state.bullets
    in_row = old.there & (old.y == state.y)
    moves = old.there & (old.timer == 0)
    x = old.x + as_int8(moves) * _way(old.right)
    stays = (x >= 0) & (x < SIZE)
    arrives = in_row & (x == state.x)
    timer = replace(old.timer - 1, moves, state.move_every)
    there = old.there & stays
    rank = ENEMIES - _age(state.spawned, ENEMIES) + ENEMIES * as_int8(old.sub)
    comes, cell, cells = moves & ~arrives, _cell(x, old.y), _cell(bullets.x, bullets.y)
    hits = []
    for bullet in range(2):  # each hits the newest submarine that comes to its cell, else the newest fish
        met = there & comes & (cell == cells[bullet]) & bullets.there[bullet]
        hit, one = _first(met, rank)
        there = there & ~one
        hits.append(hit)
    hit = torch.stack(hits)

    # A submarine that is hit still shoots.
    asked = old.there & old.sub
    shot = asked & (old.reload == 0)
    enemies = old._replace(
        there=there, x=x, timer=timer, reload=replace(old.reload - as_int8(asked), shot, RELOAD),
        shot=old.shot | shot, shot_x=replace(old.shot_x, shot, x),
    )  # fmt: skip
    state = state._replace(enemies=enemies, bullets=bullets._replace(there=bullets.there & ~hit))
    return state, hit.sum(0), _any(arrives | in_row & (old.x == state.x))


def _fly_shots(state: State) -> tuple[State, Tensor]:
    """Bullets of enemies move; returns whether one was, or now is, where the player is."""
    old, player = state.enemies, state.x
    x = old.shot_x + _way(old.right)
    met = old.shot & (old.y == state.y) & ((old.shot_x == player) | (x == player))
    shot = old.shot & (x >= 0) & (x < SIZE)
    return state._replace(enemies=old._replace(shot=shot, shot_x=x)), _any(met)


def _breathe(state: State, rules: Rules) -> tuple[State, Tensor, Tensor]:
    """Use air, or surface, which needs a diver; returns rewards and whether the game is lost."""
    under = state.y > 0
    surfaces = ~under & ~state.surfaced & (state.crew != 0)
    lost = (state.air <= 0) | (~under & ~state.surfaced & (state.crew == 0))
    full = surfaces & (state.crew == CREW)
    rewards = full * (state.air * 10).div(AIR, rounding_mode="floor")
    every, spawn_every, ramps = state.move_every, state.spawn_every, state.ramps
    if rules.ramping:
        ramp = surfaces & ((spawn_every > 1) | (every > FASTEST))
        every = every - as_int8(ramp & (every > FASTEST) & (ramps % 2 == 1))
        spawn_every = spawn_every - (ramp & (spawn_every > 1)).long()
        ramps = ramps + ramp
    after = state._replace(
        air=torch.where(surfaces, AIR, state.air - under.long()),
        crew=state.crew * ~full - surfaces.long(),
        surfaced=~under,
        cool_down=(state.cool_down - 1).clamp_(min=0),
        spawn_timer=(state.spawn_timer - 1).clamp_(min=0),
        diver_timer=(state.diver_timer - 1).clamp_(min=0),
        move_every=every,
        spawn_every=spawn_every,
        ramps=ramps,
    )
    return after, rewards, lost


def _way(right: Tensor) -> Tensor:
    """1 for what goes right, else -1."""
    return 2 * as_int8(right) - 1


def _cell(x: Tensor, y: Tensor) -> Tensor:
    """Numbers of cells, which differ where x is on the board."""
    return torch.add(x, y, alpha=SIZE)


def _any(flags: Tensor) -> Tensor:
    """Whether any thing has a flag, (N,); several times as fast as ``any``."""
    return as_int8(flags).amax(0).bool()


def _small(numbers: Tensor) -> Tensor:
    return numbers.to(torch.int8)


def _first(flags: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Whether any thing has a flag, (N,), and which of them is it, the one of the highest rank above 0."""
    ranked = as_int8(flags) * rank
    highest = ranked.amax(0)
    return highest > 0, flags & (ranked == highest)


def show(state: State, board: Board) -> None:
    """Gauges in the lowest row; trails are the cells behind what moves."""
    bullets, enemies, divers = state.bullets, state.enemies, state.divers
    board.mark(0, state.x, state.y)
    board.mark(1, state.x - _way(state.right), state.y)
    board.mark(2, bullets.x, bullets.y, bullets.there)
    board.mark(4, enemies.shot_x, enemies.y, enemies.shot)
    of_kind = board.place_of.take(5 + enemies.sub.long())
    board.mark_places(of_kind, enemies.x, enemies.y, enemies.there)
    board.mark(9, divers.x, divers.y, divers.there)
    for things in (enemies, divers):
        behind = things.x - _way(things.right)
        board.mark(3, behind, things.y, things.there & (behind >= 0) & (behind < SIZE))
    column = torch.arange(SIZE, device=state.x.device)[:, None].expand(-1, len(state.x))
    air = (state.air.clamp(min=0) * 10).div(AIR, rounding_mode="floor")
    board.mark(7, column, SIZE - 1, column < air)
    board.mark(8, column, SIZE - 1, (column < SIZE - 1) & (column >= SIZE - 1 - state.crew))
