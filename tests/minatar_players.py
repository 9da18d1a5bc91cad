"""Players that get far in the package's games of MinAtar, as functions of a game's environment."""

import numpy as np

NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)


def go(here, there):
    """The action that brings a column nearer to another."""
    return NOOP if here == there else LEFT if there < here else RIGHT


def breakout(env, rng):
    """Waits where the ball comes down, and turns it back half of the time."""
    x, y, (dx, dy) = env.ball_x, env.ball_y, [(-1, -1), (1, -1), (1, 1), (-1, 1)][env.ball_dir]
    while True:
        ahead = x + dx
        if not 0 <= ahead <= 9:
            ahead, dx = min(9, max(0, ahead)), -dx
        if y + dy == 9:
            return go(env.pos, ahead if (env.brick_map.sum() + env.ball_y) % 2 else x)
        if y + dy < 0 or env.brick_map[y + dy, ahead]:
            dy = -dy
        x, y = ahead, y + dy


def asterix(env, rng):
    """Takes the way to gold that no enemy crosses."""
    places = {}
    for action in (NOOP, LEFT, UP, RIGHT, DOWN):
        x = env.player_x + (action == RIGHT) - (action == LEFT)
        y = env.player_y + (action == DOWN) - (action == UP)
        places[action] = min(9, max(0, x)), min(8, max(1, y))
    things = [each for each in env.entities if each is not None]
    gold = [(each[0], each[1]) for each in things if each[3]]

    def danger(place):
        way = [
            (each[0] + step * (1 if each[2] else -1), each[1])
            for each in things if not each[3] for step in range(4)
        ]  # fmt: skip
        return place in way

    def distance(place):
        return min([abs(x - place[0]) + abs(y - place[1]) for x, y in gold] or [abs(place[0] - 5)])

    return min(places, key=lambda each: (danger(places[each]), distance(places[each]), rng.random()))


def freeway(env, rng):
    """Goes up."""
    return UP if rng.random() < 0.95 else rng.integers(6)


def space_invaders(env, rng):
    """Evades bullets, and shoots at the columns with aliens."""
    safe = [
        column for column in (env.pos, env.pos - 1, env.pos + 1)
        if 0 <= column <= 9 and not env.e_bullet_map[6:, column].any()
    ]  # fmt: skip
    if env.pos not in safe:
        return go(env.pos, safe[0]) if safe else rng.integers(6)
    lowest = np.flatnonzero(env.alien_map.any(0))
    target = min(lowest, key=lambda column: abs(column + env.alien_dir - env.pos))
    if env.shot_timer == 0 and env.alien_map[:, max(0, env.pos - 1) : env.pos + 2].any():
        return FIRE
    step = go(env.pos, int(np.clip(target + env.alien_dir, 0, 9)))
    return step if env.pos + (step == RIGHT) - (step == LEFT) in safe else NOOP


def seaquest(env, rng):
    """Collects divers, shoots at what is in its row, and surfaces in time."""
    x, y = env.sub_x, env.sub_y
    enemies = [(each[0], each[1], each[2]) for each in env.e_fish + env.e_subs + env.e_bullets]
    ahead = [e for e in enemies if e[1] == y and (e[0] > x if env.sub_or else e[0] < x)]
    if ahead and env.shot_timer == 0 and env.e_fish + env.e_subs:
        return FIRE

    def danger(place):
        return any(
            (column, row) == place or (row == place[1] and 0 < (place[0] - column) * (1 if way else -1) <= 2)
            for column, row, way in enemies
        )  # fmt: skip

    places = {
        NOOP: (x, y), LEFT: (max(0, x - 1), y), RIGHT: (min(9, x + 1), y), UP: (x, max(0, y - 1)),
        DOWN: (x, min(8, y + 1)),
    }  # fmt: skip
    up = (
        env.diver_count == 6
        or env.oxygen < 25
        or (env.surface and env.diver_count < 0 and rng.random() < 0.1)
    )
    divers = [(each[0] + (1 if each[2] else -1), each[1]) for each in env.divers]
    target = min(divers, key=lambda d: abs(d[0] - x) + abs(d[1] - y)) if divers else (5, 4)
    if up and (env.diver_count or env.oxygen < 15):
        target = (x, 0)
    elif y <= 1 and not env.diver_count:  # which would end the game
        places.pop(UP)

    def distance(place):
        return abs(target[0] - place[0]) + abs(target[1] - place[1])

    return min(places, key=lambda each: (danger(places[each]), distance(places[each]), rng.random()))


PLAYERS = {
    "Breakout": breakout,
    "Asterix": asterix,
    "SpaceInvaders": space_invaders,
    "Freeway": freeway,
    "Seaquest": seaquest,
}
