"""The MiniGrid environment NineRooms, which is ours, and its rules on tensors."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Goal, Wall
from minigrid.minigrid_env import MiniGridEnv

from neoteny.envs.grid.board import Board
from neoteny.envs.grid.rules import Outcome, Rules


class NineRoomsRules(Rules):
    """The rules of :class:`NineRooms` on tensors."""

    def __init__(self, env: NineRooms) -> None:
        super().__init__(env)
        way = torch.zeros(env.walls.shape, dtype=torch.float64)
        for (x, y), length in env.way.items():
            way[x, y] = length
        self.way = way.flatten()

    def step(self, board: Board, action: torch.Tensor) -> Outcome:
        """A cost proportional to the remaining shortest path, and 3 at the goal."""
        self.way = self.way.to(action.device)
        _, terminated = super().step(board, action)
        return 3.0 * terminated - 0.01 * self.way.take(board.cell), terminated

    def observe(self, place: torch.Tensor) -> torch.Tensor:
        """One-hot direction and cell of the agents, (N, 4 * cells) float32."""
        cells = self.way.numel()
        return F.one_hot(place % 4 * cells + place // 4, 4 * cells).float()


class NineRooms(MiniGridEnv):
    """Three by three rooms; the agent starts in the middle one and must find a goal that it cannot see.

    Doors join all neighbouring rooms but the middle one and those at its left and right. Each step costs 0.01
    per cell of the shortest path to the goal; the goal gives 3. Episodes last at most 100 steps. The
    observation is one-hot over all directions and cells.

    Args:
        goal: x and y of its cell.
        room: cells along a side of a room, odd.
    """

    tensor_rules = NineRoomsRules

    def __init__(self, goal: tuple[int, int], room: int) -> None:
        side, middle = room + 1, (room + 1) // 2
        self.walls = np.zeros((3 * side + 1, 3 * side + 1), bool)
        self.walls[::side] = self.walls[:, ::side] = True
        self.walls[middle::side, (side, 2 * side)] = False  # doors up and down
        self.walls[side : 3 * side : side, (middle, middle + 2 * side)] = False  # and sideways
        self.goal = goal
        self.way = {goal: 0}
        for x, y in (cells := [goal]):  # breadth-first search: the list grows while it is read
            for cell in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                if not self.walls[cell] and cell not in self.way:
                    self.way[cell] = self.way[x, y] + 1
                    cells.append(cell)
        super().__init__(MissionSpace(lambda: "find it"), grid_size=len(self.walls))
        self.observation_space = gym.spaces.Box(0, 1, (4 * self.walls.size,), np.float32)

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        for x, y in np.argwhere(self.walls).tolist():
            self.grid.set(x, y, Wall())
        self.put_obj(Goal(), *self.goal)
        self.agent_pos, self.agent_dir = (width // 2, height // 2), self._rand_int(0, 4)

    def gen_obs(self) -> np.ndarray:
        """One-hot direction and cell of the agent, (4 * cells,) float32."""
        place = np.zeros((4, *self.walls.shape), np.float32)
        place[self.agent_dir, *self.agent_pos] = 1.0
        return place.ravel()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the grid, with the rewards of this environment."""
        observation, _, terminated, truncated, info = super().step(action)
        x, y = self.agent_pos
        return observation, 3.0 * terminated - 0.01 * self.way[x, y], terminated, truncated, info
