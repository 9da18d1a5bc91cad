"""MiniGrid streams: the layout changes, the rules stay.

Unless a stream says otherwise, observations are MiniGrid's egocentric image of object, colour and state
codes, (7, 7, 3) uint8, and all seven actions are available.
"""

from __future__ import annotations

import zlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import ReshapeObservation, TransformAction
from minigrid.core.actions import Actions
from minigrid.wrappers import FullyObsWrapper, ImgObsWrapper

from neoteny.envs.grid.nine_rooms import NineRooms
from neoteny.envs.grid.task import FixedLayout
from neoteny.envs.registry import stream, task_rng
from neoteny.envs.wrappers import permute_actions, permute_observations

LAYOUTS = ("Empty-8x8", "SimpleCrossingS9N1", "LavaCrossingS9N1", "DoorKey-5x5", "FourRooms")
LAYOUTS_SMALL = ("Empty-8x8", "DoorKey-5x5", "SimpleCrossingS9N1")
DOORKEY_SIZES = ("DoorKey-5x5", "DoorKey-6x6", "DoorKey-8x8")
MOVES = (Actions.left, Actions.right, Actions.forward)
ALL_BUT_DROP = tuple(action for action in Actions if action != Actions.drop)


def make_grid(name: str, whole: bool = False, **options: Any) -> gym.Env:
    """``MiniGrid-<name>-v0`` with only the image as observation: the agent's view, or the whole grid."""
    env = gym.make(f"MiniGrid-{name}-v0", disable_env_checker=True, **options)
    return ImgObsWrapper(FullyObsWrapper(env) if whole else env)


@stream("grid-layouts", period=100_000, tasks=len(LAYOUTS))
def grid_layouts(k: int, seed: int) -> gym.Env:
    """Five families in cycles, from an empty room to four rooms; each episode draws a new layout."""
    return make_grid(LAYOUTS[k])


@stream("grid-layouts-small", period=60_000, tasks=len(LAYOUTS_SMALL))
def grid_layouts_small(k: int, seed: int) -> gym.Env:
    """Three of the families in shorter cycles, for a laptop."""
    return make_grid(LAYOUTS_SMALL[k])


@stream("grid-doorkey", period=100_000, tasks=len(DOORKEY_SIZES))
def grid_doorkey(k: int, seed: int) -> gym.Env:
    """Fetch the key, open the door, reach the goal, in rooms of growing size, in cycles."""
    return make_grid(DOORKEY_SIZES[k])


KESSLER = ("DoorKey-8x8", "LavaCrossingS9N1", "SimpleCrossingS9N1")


@stream("grid-kessler", period=750_000, tasks=len(KESSLER))
def grid_kessler(k: int, seed: int) -> gym.Env:
    """DoorKey-9x9, LavaCrossingS9N1, SimpleCrossingS9N1, in this order; episodes last at most 100 steps.

    Kessler et al. (2023), "The Effectiveness of World Models for Continual Reinforcement Learning"
    (github.com/skezle/continual-dreamer): tasks of 750,000 steps. Episodes are limited by a wrapper, so the
    reward still depends on each environment's own maximum of steps. There, observations are pictures of the
    same view; the repeated cycles are ours.
    """
    return kessler(k, size=9)


@stream("grid-kessler-small", period=61_440, tasks=len(KESSLER))
def grid_kessler_small(k: int, seed: int) -> gym.Env:
    """The same with DoorKey-5x5 and shorter tasks: ours."""
    return kessler(k, size=5)


def kessler(k: int, size: int) -> gym.Env:
    """The three environments, DoorKey of any size, since 9x9 is not registered."""
    if k == 0:
        return make_grid(KESSLER[0], max_episode_steps=100, size=size)
    return make_grid(KESSLER[k], max_episode_steps=100)


def with_actions(env: gym.Env, actions: tuple[int, ...]) -> gym.Env:
    """Restrict the agent to some of MiniGrid's actions."""
    return TransformAction(env, lambda action: actions[action], gym.spaces.Discrete(len(actions)))


def resampled(name: str, actions: tuple[int, ...], k: int, seed: int, **options: Any) -> gym.Env:
    """One fully observed layout for all episodes of a task, different from that of the task before."""
    env = with_actions(make_grid(name, whole=True, **options), actions)
    rng = task_rng(seed, k)
    while True:
        layout = int(rng.integers(2**31))
        # Even and odd tasks draw from two disjoint halves of all layouts: consecutive tasks always differ.
        if zlib.crc32(env.reset(seed=layout)[0].tobytes()) % 2 == k % 2:
            return FixedLayout(env, layout)


@stream("grid-resampled-crossings-small", period=20_480)
@stream("grid-resampled-crossings", period=40_000)
def grid_resampled_crossings(k: int, seed: int) -> gym.Env:
    """One fixed SimpleCrossingS9N1 per task, fully observed; at most 400 steps per episode; three actions.

    Meyer, White and Machado (2024), "Harnessing Discrete Representations for Continual Reinforcement
    Learning" (github.com/ejmejm/discrete-representations-for-continual-rl): a new layout every 40,000 of
    400,000 steps. There, observations are pictures, one action in ten is replaced by another, and the same
    layout may come twice in a row. The small period is ours.
    """
    return resampled("SimpleCrossingS9N1", MOVES, k, seed, max_steps=400)


@stream("grid-resampled-doorkeys", period=100_000)
def grid_resampled_doorkeys(k: int, seed: int) -> gym.Env:
    """One fixed DoorKey-8x8 per task, fully observed; at most 1000 steps per episode; no action "drop".

    From the same paper, with a new layout every 100,000 of 1,000,000 steps; it differs from theirs as
    :func:`grid_resampled_crossings` does.
    """
    return resampled("DoorKey-8x8", ALL_BUT_DROP, k, seed, max_steps=1000)


@stream("grid-resampled-doorkeys-small", period=40_960)
def grid_resampled_doorkeys_small(k: int, seed: int) -> gym.Env:
    """One fixed DoorKey-5x5 per task, at most 250 steps per episode. Size and period are ours."""
    return resampled("DoorKey-5x5", ALL_BUT_DROP, k, seed)


@stream("grid-goals", period=40_000)
def grid_goals(k: int, seed: int) -> gym.Env:
    """:class:`NineRooms` of 5x5 cells with a new goal in each task, in a side room or one of the lower three.

    Chung et al. (2024), "Parseval Regularization for Continual Reinforcement Learning"
    (github.com/wechu/parseval_reg): 20 goals of 40,000 steps each, with the same rooms, doors and reward and
    100 steps to an episode; the agent observes its own place, not the goal. There, it moves in four
    directions between walls without thickness. Ours are turning and going forward, the random starting
    direction, and the order of goals: alternately from the black and the white cells of a chessboard, each
    once per pass.
    """
    return nine_rooms(k, seed, room=5)


@stream("grid-goals-small", period=30_720)
def grid_goals_small(k: int, seed: int) -> gym.Env:
    """The same with rooms of 3x3 cells and shorter tasks: ours."""
    return nine_rooms(k, seed, room=3)


def nine_rooms(k: int, seed: int, room: int) -> gym.Env:
    """:class:`NineRooms` with the goal of task k."""
    side = room + 1
    inside = [i for i in range(3 * side) if i % side]
    goals = [(x, y) for x in inside for y in inside if y > 2 * side or (y > side and x // side != 1)]
    # Alternately from the black and the white cells of a chessboard: the distances of one cell to the goals
    # of consecutive tasks differ by an odd number, so the rewards of any rollout show the audit the change.
    goals = [(x, y) for x, y in goals if (x + y) % 2 == k % 2]
    goal = goals[task_rng(seed, k % 2).permutation(len(goals))[k // 2 % len(goals)]]
    return with_actions(NineRooms(goal, room), MOVES)


def reordered(k: int, seed: int, size: int) -> list[int]:
    """A permutation of ``size`` entries for task k: the identity for task 0; each task moves every entry."""
    order = np.arange(size)
    for task in range(1, k + 1):
        circle = task_rng(seed, task).permutation(size)
        order[circle] = order[np.roll(circle, 1)]
    return order.tolist()


@stream("grid-permuted-observations-small", period=40_960)
@stream("grid-permuted-observations", period=5_120_000)
def grid_permuted_observations(k: int, seed: int) -> gym.Env:
    """DoorKey-5x5 with the 49 cells of the view permuted anew in each task.

    Juliani and Ash (2024), "A Study of Plasticity Loss in On-Policy Deep Reinforcement Learning"
    (github.com/awjuliani/deep-rl-plasticity): ten rounds of 5,000 updates with 1,024 steps each, in another
    grid world. Ours are the small period, and that every switch moves every cell.
    """
    cells = permute_observations(
        ReshapeObservation(make_grid("DoorKey-5x5"), (49, 3)), order=reordered(k, seed, 49), axis=-2
    )
    return ReshapeObservation(cells, (7, 7, 3))


@stream("grid-permuted-actions-small", period=40_960)
@stream("grid-permuted-actions", period=5_120_000)
def grid_permuted_actions(k: int, seed: int) -> gym.Env:
    """DoorKey-5x5 with its seven actions permuted anew in each task.

    From the same paper, with the same rounds. Ours are the small period, and that every switch changes the
    meaning of every action.
    """
    return permute_actions(make_grid("DoorKey-5x5"), order=reordered(k, seed, 7))
