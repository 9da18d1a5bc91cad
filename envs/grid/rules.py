"""The rules that MiniGrid's environments add to the common ones: when an episode ends, and its reward.

Each class reimplements, for N environments at a time, the ``step`` of those of the package's environments
that it is registered for in ``RULES``. An environment that only makes layouts needs no rules of its own. For
your own environment with its own ``step``, put a subclass of :class:`Rules` in its attribute
``tensor_rules``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from minigrid import envs
from minigrid.core.actions import Actions
from minigrid.core.world_object import Ball, Box, Key
from minigrid.minigrid_env import MiniGridEnv
from torch import Tensor

from neoteny.envs.engine import UncoveredError
from neoteny.envs.grid.tables import BALL, EMPTY, code_of
from neoteny.envs.user_code import users_members

if TYPE_CHECKING:
    from neoteny.envs.grid.board import Board

Outcome = tuple[Tensor, Tensor]
"""Rewards, (N,) float64, and whether episodes terminate, (N,) bool."""


class Rules:
    """The common rules.

    Args:
        env: an environment of the task, to read constants from.
    """

    def __init__(self, env: Any) -> None:
        pass

    def data(self, env: Any) -> list[int]:
        """A fixed number of integers that an episode needs, from an environment just after its reset."""
        return []

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Step all environments; updates ``board``."""
        return board.move(action)

    def observe(self, place: Tensor) -> Tensor | None:
        """Observations, (N, ...), from the agents' places, (N,); ``None`` for their views."""
        return None


class PickUp(Rules):
    """The episode ends when a certain object is picked up. Data 0: its code."""

    def data(self, env: Any) -> list[int]:
        """Raise UncoveredError if another object looks the same: the package accepts only this one."""
        code = code_of(env.obj)
        things = [thing for cell in env.grid.grid if cell for thing in (cell, cell.contains) if thing]
        if [code_of(thing) for thing in things].count(code) != 1:
            raise UncoveredError(
                f"several objects look like the one to pick up, a {env.obj.color} {env.obj.type}"
            )
        return [code]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Reward picking the object up, not carrying it on."""
        reward, terminated = super().step(board, action)
        won = (action == Actions.pickup) & (board.carried == board.data[0])
        return torch.where(won, board.success_reward, reward), terminated | won


class Fetch(Rules):
    """The episode ends with the first object that is picked up. Data 0: the code of the right one."""

    def data(self, env: Any) -> list[int]:
        """Any object of the right type and colour counts."""
        return [code_of({"key": Key, "ball": Ball}[env.targetType](env.targetColor))]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Reward only the right object."""
        reward, terminated = super().step(board, action)
        fetched = board.carried != EMPTY
        right = board.success_reward * (board.carried == board.data[0])
        return torch.where(fetched, right, reward), terminated | fetched


class GoTo(Rules):
    """Success is the action "done" beside a target cell. Data 0: the cell. Toggling ends the episode too."""

    def data(self, env: Any) -> list[int]:
        """The cell of the door or object at the start of the episode."""
        return [cell_of(env, env.target_pos)]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Beside means above, below, left or right."""
        reward, terminated = super().step(board, action)
        done = action == Actions.done
        columns, rows = board.distance(board.cell, board.data[0])
        won = done & (columns + rows == 1)
        return torch.where(won, board.success_reward, reward), terminated | done | (action == Actions.toggle)


class PutNear(Rules):
    """Success is dropping one object near the cell of another. Data 0: code of the first; 1: the cell."""

    def data(self, env: Any) -> list[int]:
        """A code identifies the object, since no two objects of a layout look the same."""
        kind = {"key": Key, "ball": Ball, "box": Box}[env.move_type]
        return [code_of(kind(env.moveColor)), cell_of(env, env.target_pos)]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """The episode ends when a wrong object is picked up, or after any attempt to drop one."""
        drops = (action == Actions.drop) & (board.carried != EMPTY)
        reward, terminated = super().step(board, action)
        wrong = (action == Actions.pickup) & (board.carried != EMPTY) & (board.carried != board.data[0])
        columns, rows = board.distance(board.front, board.data[1])
        won = drops & (board.carried == EMPTY) & (columns <= 1) & (rows <= 1)
        return torch.where(won, board.success_reward, reward), terminated | wrong | drops


class Memory(Rules):
    """Two cells end the episode. Data 0: the right cell; 1: the wrong one. Nothing can be picked up."""

    def data(self, env: Any) -> list[int]:
        """The cells in front of the two objects at the end of the hallway."""
        return [cell_of(env, env.success_pos), cell_of(env, env.failure_pos)]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """The agent's cell alone decides, whatever the action was."""
        action = action.masked_fill(action == Actions.pickup, Actions.toggle)
        reward, terminated = super().step(board, action)
        won, lost = board.cell == board.data[0], board.cell == board.data[1]
        reward = torch.where(won, board.success_reward, reward).masked_fill(lost, 0.0)
        return reward, terminated | won | lost


class Unlock(Rules):
    """Success is opening a door. Data 0: its cell."""

    def data(self, env: Any) -> list[int]:
        """The cell of the door."""
        return [cell_of(env, env.door.cur_pos)]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """As in the package, toggling anything while the door is open counts as success."""
        reward, terminated = super().step(board, action)
        won = (action == Actions.toggle) & board.is_open(board.data[0])
        return torch.where(won, board.success_reward, reward), terminated | won


class RedBlueDoors(Rules):
    """Success is opening the red door before the blue one. Data 0 and 1: their cells."""

    def data(self, env: Any) -> list[int]:
        """Search the grid for the doors, since the environment does not hold their positions."""
        return [
            cell_of(env, divmod(env.grid.grid.index(door), env.width)[::-1])
            for door in (env.red_door, env.blue_door)
        ]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Opening the blue door first, or both at once, ends the episode without a reward."""
        red_before, blue_before = board.is_open(board.data[0]), board.is_open(board.data[1])
        reward, terminated = super().step(board, action)
        red, blue = board.is_open(board.data[0]), board.is_open(board.data[1])
        won = blue & red_before
        lost = (blue & ~red_before) | (~blue & red & blue_before)
        reward = torch.where(won, board.success_reward, reward).masked_fill(lost, 0.0)
        return reward, terminated | won | lost


class DynamicObstacles(Rules):
    """Balls move to a random free cell around them before each step. Data: their cells.

    The moves have the same distribution as in the package; the random numbers are a function of seed, task,
    environment, episode and step.
    """

    TRIES = 101
    """Number of draws among the nine cells around a ball, after which the package lets it stay."""

    def data(self, env: Any) -> list[int]:
        """The cells of the balls, in the order in which they move."""
        return [cell_of(env, obstacle.cur_pos) for obstacle in env.obstacles]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Going forward costs 1 if the cell ahead was occupied (except by a goal) before the balls moved."""
        action = action.masked_fill(action > Actions.forward, Actions.left)
        hit = (action == Actions.forward) & ~board.is_free_or_goal(board.front)
        for number in range(len(board.data)):
            self._move(board, number)
        reward, terminated = super().step(board, action)
        return reward.masked_fill(hit, -1.0), terminated | hit

    def _move(self, board: Board, number: int) -> None:
        old = board.data[number]
        around = board.around(old)
        free = (board.cells.gather(1, around) == EMPTY) & (around != board.cell[:, None])
        count = free.sum(1)
        # Index of the drawn cell among the free ones. The ball stays if no draw would have found a free cell.
        turn = (board.random(2 * number) * count).long()
        stays = board.random(2 * number + 1) < (1 - count / 9).pow(self.TRIES)
        chosen = free & (free.cumsum(1) == turn[:, None] + 1) & ~stays[:, None]
        new = torch.where(chosen.any(1), (around * chosen).sum(1), old)
        board.cells.scatter_(1, old[:, None], EMPTY)
        board.cells.scatter_(1, new[:, None], BALL)
        old.copy_(new)


RULES: dict[Callable[..., Any], type[Rules]] = {
    MiniGridEnv.step: Rules,
    envs.BlockedUnlockPickupEnv.step: PickUp,
    envs.DynamicObstaclesEnv.step: DynamicObstacles,
    envs.FetchEnv.step: Fetch,
    envs.GoToDoorEnv.step: GoTo,
    envs.GoToObjectEnv.step: GoTo,
    envs.KeyCorridorEnv.step: PickUp,
    envs.MemoryEnv.step: Memory,
    envs.ObstructedMazeEnv.step: PickUp,
    envs.PutNearEnv.step: PutNear,
    envs.RedBlueDoorEnv.step: RedBlueDoors,
    envs.UnlockEnv.step: Unlock,
    envs.UnlockPickupEnv.step: PickUp,
}
"""Keyed by the ``step`` method, so that classes that inherit it are covered too."""


LAYOUT = frozenset(
    [
        *("_gen_grid", "place_obj", "put_obj", "place_agent"),
        *(name for name in vars(MiniGridEnv) if name.startswith("_rand")),
    ]
)
"""Names of a MiniGrid environment that only make layouts."""

DRAWING = frozenset(
    ["render", "get_frame", "get_full_render", "get_pov_render", "pprint_grid", "hash", "close", "metadata"]
)
"""Names that nothing of a step depends on."""

STATE = frozenset(
    [
        *("actions", "action_space", "agent_dir", "agent_pos", "agent_view_size", "carrying", "grid"),
        *("height", "max_steps", "mission", "see_through_walls", "step_count", "width"),
        *("__getattr__", "__getattribute__", "__setattr__", "__delattr__"),
    ]
)
"""Names of attributes, which the rules read as they are, and of what would compute them."""

RULED = STATE | {name for name in dir(MiniGridEnv) if not name.startswith("__")} - LAYOUT - DRAWING
"""Names that a user's environment on tensors cannot override."""

IN_STEPS = frozenset(
    [
        *("obj", "target_pos", "targetType", "targetColor", "move_type", "moveColor", "success_pos"),
        *("failure_pos", "door", "red_door", "blue_door", "obstacles"),
    ]
)
"""Names of attributes that steps of the package read at any time, and rules when an episode begins."""

BY_RULES = frozenset(["step", "_reward", "gen_obs"])
"""Names that a class with rules of its own, ``tensor_rules``, overrides."""


def rules_of(env: MiniGridEnv) -> Rules:
    """The rules of an environment; UncoveredError if it overrides more than its layout and its mission."""
    kind = type(env)
    ruled = users_members(env).keys() & RULED
    own = getattr(env, "tensor_rules", None)
    if own is not None:
        place = next((i for i, each in enumerate(kind.__mro__) if "tensor_rules" in vars(each)), 0)
        ruled -= BY_RULES - {name for each in kind.__mro__[:place] for name in vars(each)}
    else:
        unlike = ("reset", "gen_obs", "gen_obs_grid", "_reward", "get_view_exts", "front_pos", "dir_vec")
        ruled |= {name for name in unlike if getattr(kind, name) is not getattr(MiniGridEnv, name)}
        ruled |= {"step"} - {"step" for step in RULES if step is kind.step}
        if kind.step is not MiniGridEnv.step:
            ruled |= users_members(env).keys() & IN_STEPS
        if kind.step is envs.DynamicObstaclesEnv.step:  # which places the balls again
            ruled |= users_members(env).keys() & {"place_obj"}
    if ruled:
        raise UncoveredError(f"{kind.__name__} overrides {', '.join(sorted(ruled))}")
    return RULES[kind.step](env) if own is None else own(env)


def cell_of(env: MiniGridEnv, place: Any) -> int:
    """The number of the cell at (x, y)."""
    return int(place[0]) * env.height + int(place[1])
