"""What MiniGrid's environments add to its common rules: when an episode ends, and what it is worth.

Each class stands for the ``step`` of the package's environments that it is registered for, and reads like it,
for N environments at a time. An environment that only makes layouts needs none; one of your own that has a
``step`` is covered by a subclass of :class:`Rules` in its attribute ``tensor_rules``.
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

if TYPE_CHECKING:
    from neoteny.envs.grid.board import Board

Outcome = tuple[Tensor, Tensor]
"""Rewards, (N,) float64, and whether episodes terminate, (N,) bool."""


class Rules:
    """The common rules.

    Args:
        env: one environment of the task, from which constants are read.
    """

    def __init__(self, env: Any) -> None:
        pass

    def data(self, env: Any) -> list[int]:
        """Whole numbers that an episode carries, always as many, from an environment that was just reset."""
        return []

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Step all environments; ``board`` then holds where they are."""
        return board.move(action)

    def observe(self, place: Tensor) -> Tensor | None:
        """What is observed instead of the agent's view, (N, ...), if it is, from the agents' places, (N,)."""
        return None


class PickUp(Rules):
    """The episode ends when one object is picked up: data 0, its code."""

    def data(self, env: Any) -> list[int]:
        """There must be no other that looks like it, since the package means this very one."""
        code = code_of(env.obj)
        things = [thing for cell in env.grid.grid if cell for thing in (cell, cell.contains) if thing]
        if [code_of(thing) for thing in things].count(code) != 1:
            raise UncoveredError(
                f"several objects look like the one to pick up, a {env.obj.color} {env.obj.type}"
            )
        return [code]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """The reward is for picking it up, not for going on to carry it."""
        reward, terminated = super().step(board, action)
        won = (action == Actions.pickup) & (board.carried == board.data[0])
        return torch.where(won, board.success_reward, reward), terminated | won


class Fetch(Rules):
    """The episode ends with the first object that is picked up: data 0, the code of the right one."""

    def data(self, env: Any) -> list[int]:
        """Any that looks like it is as good."""
        return [code_of({"key": Key, "ball": Ball}[env.targetType](env.targetColor))]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Only the right one has a reward."""
        reward, terminated = super().step(board, action)
        fetched = board.carried != EMPTY
        right = board.success_reward * (board.carried == board.data[0])
        return torch.where(fetched, right, reward), terminated | fetched


class GoTo(Rules):
    """The agent says "done" beside a cell: data 0. Toggling anything ends the episode too."""

    def data(self, env: Any) -> list[int]:
        """Where the door or the object was at first."""
        return [cell_of(env, env.target_pos)]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Beside is above, below, left or right."""
        reward, terminated = super().step(board, action)
        done = action == Actions.done
        columns, rows = board.distance(board.cell, board.data[0])
        won = done & (columns + rows == 1)
        return torch.where(won, board.success_reward, reward), terminated | done | (action == Actions.toggle)


class PutNear(Rules):
    """One object is dropped near a cell where another was: data 0, the code of the first, and 1, the cell."""

    def data(self, env: Any) -> list[int]:
        """No two objects of a layout look the same."""
        kind = {"key": Key, "ball": Ball, "box": Box}[env.move_type]
        return [code_of(kind(env.moveColor)), cell_of(env, env.target_pos)]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """The episode ends with a wrong object in hand, or after any try to drop."""
        drops = (action == Actions.drop) & (board.carried != EMPTY)
        reward, terminated = super().step(board, action)
        wrong = (action == Actions.pickup) & (board.carried != EMPTY) & (board.carried != board.data[0])
        columns, rows = board.distance(board.front, board.data[1])
        won = drops & (board.carried == EMPTY) & (columns <= 1) & (rows <= 1)
        return torch.where(won, board.success_reward, reward), terminated | wrong | drops


class Memory(Rules):
    """Two cells end the episode: data 0 is the right one, 1 the wrong one. Nothing can be picked up."""

    def data(self, env: Any) -> list[int]:
        """In front of the two objects at the end of the hallway."""
        return [cell_of(env, env.success_pos), cell_of(env, env.failure_pos)]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Being there counts, however one came."""
        action = action.masked_fill(action == Actions.pickup, Actions.toggle)
        reward, terminated = super().step(board, action)
        won, lost = board.cell == board.data[0], board.cell == board.data[1]
        reward = torch.where(won, board.success_reward, reward).masked_fill(lost, 0.0)
        return reward, terminated | won | lost


class Unlock(Rules):
    """A door is opened: data 0, its cell."""

    def data(self, env: Any) -> list[int]:
        """Doors do not move."""
        return [cell_of(env, env.door.cur_pos)]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Toggling anything while it is open will do."""
        reward, terminated = super().step(board, action)
        won = (action == Actions.toggle) & board.is_open(board.data[0])
        return torch.where(won, board.success_reward, reward), terminated | won


class RedBlueDoors(Rules):
    """The red door is opened before the blue one: data 0 and 1, their cells."""

    def data(self, env: Any) -> list[int]:
        """The environment does not say where they are."""
        return [
            cell_of(env, divmod(env.grid.grid.index(door), env.width)[::-1])
            for door in (env.red_door, env.blue_door)
        ]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """The blue one first, or both at once, ends the episode without a reward."""
        red_before, blue_before = board.is_open(board.data[0]), board.is_open(board.data[1])
        reward, terminated = super().step(board, action)
        red, blue = board.is_open(board.data[0]), board.is_open(board.data[1])
        won = blue & red_before
        lost = (blue & ~red_before) | (~blue & red & blue_before)
        reward = torch.where(won, board.success_reward, reward).masked_fill(lost, 0.0)
        return reward, terminated | won | lost


class DynamicObstacles(Rules):
    """Balls move to a random free cell around them before each step: data, their cells.

    They move as in distribution they do in the package, from random numbers that are a function of seed,
    environment, episode and step.
    """

    TRIES = 101
    """The package draws so many of the nine cells around a ball, and lets it stay if none was free."""

    def data(self, env: Any) -> list[int]:
        """In the order in which they move."""
        return [cell_of(env, obstacle.cur_pos) for obstacle in env.obstacles]

    def step(self, board: Board, action: Tensor) -> Outcome:
        """Going forward where there was anything but a goal costs 1, even if it has just moved away."""
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
        # The cell whose turn it is among the free ones; none of nine if it stays.
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
"""By the method that an environment has: whatever class inherits it is covered too."""


def rules_of(env: MiniGridEnv) -> Rules:
    """The rules of an environment; UncoveredError if its steps, observations or rewards are its own."""
    own = getattr(env, "tensor_rules", None)
    if own is not None:
        return own(env)
    kind = type(env)
    if kind.step not in RULES:
        raise UncoveredError(f"{kind.__name__} has a step of its own")
    for name in ("reset", "gen_obs", "gen_obs_grid", "_reward", "get_view_exts", "front_pos", "dir_vec"):
        if getattr(kind, name) is not getattr(MiniGridEnv, name):
            raise UncoveredError(f"{kind.__name__} has a {name} of its own")
    return RULES[kind.step](env)


def cell_of(env: MiniGridEnv, place: Any) -> int:
    """The number of the cell at (x, y)."""
    return int(place[0]) * env.height + int(place[1])
