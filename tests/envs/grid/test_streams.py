"""MiniGrid streams: what their docstrings promise of layouts, goals, permutations and lengths of episodes."""

import functools
import itertools

import numpy as np
import pytest
from minigrid.core.world_object import Goal

from neoteny.envs import StreamConfig
from neoteny.envs.grid.streams import NineRooms, reordered
from neoteny.envs.registry import registered_streams

GRIDS = [id for id in registered_streams() if id.startswith("grid-")]


@functools.cache
def stream(id):
    return StreamConfig(id).make(1)


def task(id, k, seed=1):
    return stream(id).make_task(k, seed)


def length_of_an_idle_episode(env):
    env.reset(seed=0)
    for step in range(1, 2000):  # turning on the spot
        if any(env.step(0)[2:4]):
            return step
    return None


@pytest.mark.parametrize(
    ("id", "k", "limit"),
    [
        *(("grid-kessler", k, 100) for k in range(3)),
        ("grid-kessler-small", 0, 100),
        ("grid-resampled-crossings", 1, 400),
        ("grid-resampled-doorkeys", 1, 1000),
        ("grid-resampled-doorkeys-small", 1, 250),
        ("grid-goals", 1, 100),
        ("grid-permuted-observations", 1, 250),
    ],
)
def test_episodes_end_at_their_limit(id, k, limit):
    assert length_of_an_idle_episode(task(id, k)) == limit


@pytest.mark.parametrize(
    ("id", "shape", "actions"),
    [
        ("grid-kessler", (7, 7, 3), 7),
        ("grid-resampled-crossings", (9, 9, 3), 3),
        ("grid-resampled-doorkeys", (8, 8, 3), 6),
        ("grid-resampled-doorkeys-small", (5, 5, 3), 6),
        ("grid-goals", (4 * 19 * 19,), 3),
        ("grid-goals-small", (4 * 13 * 13,), 3),
        ("grid-permuted-observations", (7, 7, 3), 7),
        ("grid-permuted-actions", (7, 7, 3), 7),
    ],
)
def test_what_is_seen_and_can_be_done(id, shape, actions):
    for k in range(3):
        env = task(id, k)
        observation, _ = env.reset(seed=0)
        assert (env.observation_space.shape, env.action_space.n) == (shape, actions)
        assert env.observation_space.contains(observation)


def test_kesslers_grids_come_in_his_order():
    names = [type(task("grid-kessler", k).unwrapped).__name__ for k in range(3)]
    assert names == ["DoorKeyEnv", "CrossingEnv", "CrossingEnv"]
    assert [task("grid-kessler", k).unwrapped.width for k in range(3)] == [9, 9, 9]
    missions = [task("grid-kessler", k).unwrapped.mission for k in range(3)]
    assert ["lava" in mission for mission in missions] == [False, True, False]
    assert task("grid-kessler-small", 0).unwrapped.width == 5


def reachable(env):
    """Cells the agent can come to, if it opens what is locked."""
    grid, start = env.unwrapped.grid, tuple(int(i) for i in env.unwrapped.agent_pos)
    cells, seen = [start], {start}
    for x, y in cells:
        for cell in {(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)} - seen:
            thing = grid.get(*cell)
            if thing is None or thing.type in ("goal", "key", "door"):
                cells.append(cell)
                seen.add(cell)
    return seen


def goal_of(env):
    grid = env.unwrapped.grid
    (place,) = (i for i, thing in enumerate(grid.grid) if isinstance(thing, Goal))
    return place % grid.width, place // grid.width


@pytest.mark.slow
@pytest.mark.parametrize("id", [id for id in GRIDS if "resampled" in id])
def test_layouts_stay_through_a_task_and_differ_from_the_one_before(id):
    before = None
    for k in range(25):
        env = task(id, k)
        layout = env.reset(seed=0)[0]
        np.testing.assert_array_equal(layout, env.reset(seed=1)[0])
        np.testing.assert_array_equal(layout, task(id, k).reset()[0])
        assert before is None or (layout != before).any()
        assert goal_of(env) in reachable(env)
        before = layout


@pytest.mark.slow
@pytest.mark.parametrize(("id", "even", "odd"), [("grid-goals", 65, 60), ("grid-goals-small", 25, 20)])
def test_goals_differ_and_can_be_reached(id, even, odd):
    seen = []
    for k in range(2 * even):
        env = task(id, k)
        env.reset(seed=0)
        goal = goal_of(env)
        assert goal == env.unwrapped.goal
        assert goal in reachable(env)
        seen.append(goal)
    assert (len(set(seen[::2])), len(set(seen[1::2]))) == (even, odd)
    assert len(set(seen)) == even + odd
    # No cell is as far from one goal as from the next, so that no rollout takes them for one another.
    assert [(x + y) % 2 for x, y in seen] == [0, 1] * even
    assert task(id, 2 * even).unwrapped.goal == seen[0]
    side = (env.unwrapped.width - 1) // 3
    assert {(x // side, y // side) for x, y in seen} == {(0, 1), (2, 1), (0, 2), (1, 2), (2, 2)}
    assert [task(id, k, seed=2).unwrapped.goal for k in range(5)] != seen[:5]


def test_the_agent_sees_where_it_is_and_where_it_looks_and_no_goal():
    env = task("grid-goals", 0)
    seen = {np.flatnonzero(env.reset(seed=seed)[0]).item() for seed in range(20)}
    assert seen == {direction * 361 + 9 * 19 + 9 for direction in range(4)}
    other = task("grid-goals", 1)
    np.testing.assert_array_equal(env.reset(seed=0)[0], other.reset(seed=0)[0])
    while env.unwrapped.agent_dir != 1:
        env.step(0)
    place = env.step(2)[0].reshape(4, 19, 19)
    assert (place[1, 9, 10], place.sum()) == (1.0, 1.0)


def test_nine_rooms_have_the_doors_of_the_source():
    walls = NineRooms((1, 13), room=5).walls
    doors = [(x, y) for x in range(19) for y in range(19) if not (walls[x, y] or (x % 6 and y % 6))]
    assert doors == sorted(
        [(x, y) for x in (3, 9, 15) for y in (6, 12)] + [(x, y) for x in (6, 12) for y in (3, 15)]
    )


def test_rewards_of_the_nine_rooms_lead_to_the_goal():
    env = NineRooms((9, 15), room=5)  # straight down from the middle, six cells away
    env.reset(seed=0)
    while env.agent_dir != 1:
        assert env.step(0)[1] == pytest.approx(-0.06)
    for left in (5, 4, 3, 2, 1):
        _, reward, terminated, truncated, _ = env.step(2)
        assert (reward, terminated, truncated) == (pytest.approx(-0.01 * left), False, False)
    _, reward, terminated, truncated, _ = env.step(2)
    assert (reward, terminated, truncated) == (3.0, True, False)


@pytest.mark.parametrize("size", [7, 49])
def test_every_task_moves_every_entry(size):
    orders = [reordered(k, 1, size) for k in range(12)]
    assert orders[0] == list(range(size))
    for before, order in itertools.pairwise(orders):
        assert sorted(order) == list(range(size))
        assert all(old != new for old, new in zip(before, order))
    assert reordered(1, 2, size) != orders[1]


def test_permuted_views_hold_the_same_cells():
    plain, permuted = (task("grid-permuted-observations", k) for k in (0, 3))
    order = reordered(3, 1, 49)
    for seed in range(3):
        cells = plain.reset(seed=seed)[0].reshape(49, 3)
        np.testing.assert_array_equal(permuted.reset(seed=seed)[0].reshape(49, 3), cells[order])


def test_permuted_actions_do_what_others_did():
    plain, permuted = (task("grid-permuted-actions", k) for k in (0, 3))
    order = reordered(3, 1, 7)
    for action in range(7):
        plain.reset(seed=0)
        permuted.reset(seed=0)
        for _ in range(3):
            step, other = permuted.step(action), plain.step(order[action])
            np.testing.assert_array_equal(step[0], other[0])
