"""The state of N MiniGrid environments on tensors, its common step, and the agents' observations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neoteny.envs.grid import tables
from neoteny.envs.grid.tables import AGENT, CODES, EMPTY
from neoteny.envs.grid.task import TEXT, GridTask


class Board:
    """The state of N environments of one task, and the common rules.

    Args:
        task: the task of all environments.
        cells: codes of all cells, one code for everything outside the grid, and the characters of the
            mission, (N, cells + 1 + TEXT), uint8.
        state: number of the layout, steps, place, carried code and data of the rules, (4 + data, N), int64.
        episodes: numbers of the running episodes, (N,).
        key: keys of the random numbers, (N,).
    """

    def __init__(self, task: GridTask, cells: Tensor, state: Tensor, episodes: Tensor, key: Tensor) -> None:
        self.task, self.cells, self.state, self.episodes, self.key = task, cells, state, episodes, key
        self.device = cells.device
        self.layout, self.count, self.place, self.carried = state[:4]
        self.data = state[4:]
        env = task.env
        places = tables.places(env.width, env.height, env.agent_view_size)
        self._front, self._moved = self._put(places.front), self._put(places.moved).flatten()
        self._rules = self._put(tables.rules().reshape(-1, 5))
        self._open = self._put(tables.which(lambda thing: getattr(thing, "is_open", False)))
        self._walkable = self._put(tables.which(lambda thing: thing.type == "goal"))
        self._walkable[EMPTY] = True
        self._rewards = self._put(np.array([1 - 0.9 * (n / env.max_steps) for n in range(task.limit + 1)]))
        self._meaning = self._put(np.array(task.actions))
        self.success_reward = torch.zeros(len(cells), dtype=torch.float64, device=self.device)
        """Reward for success at this step, (N,) float64."""

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step all, actions (N,); returns rewards, (N,) float64, terminated and truncated, (N,)."""
        self.count += 1
        self.success_reward = self._rewards.take(self.count)
        reward, terminated = self.task.rules.step(self, self._meaning.take(actions))
        return reward, terminated, self.count >= self.task.limit

    def move(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """MiniGrid's common step: turn, forward, pick up, drop, toggle; returns rewards, terminated, (N,)."""
        front = self.front[:, None]
        ahead = self.cells.gather(1, front).squeeze(1)
        index = torch.add(ahead, torch.add(self.carried, action, alpha=CODES), alpha=CODES)
        after, carried, turn, won, ended = self._rules.index_select(0, index).unbind(1)
        self.cells.scatter_(1, front, after[:, None].to(torch.uint8))
        self.carried.copy_(carried)
        self.place.copy_(self._moved.take(torch.add(turn, self.place, alpha=4)))
        return self.success_reward * won, ended.bool()

    @property
    def cell(self) -> Tensor:
        """The cells of the agents, (N,)."""
        return self.place >> 2

    @property
    def front(self) -> Tensor:
        """The cells in front of the agents, (N,)."""
        return self._front.take(self.place)

    def code(self, cell: Tensor) -> Tensor:
        """The code in one cell of each environment, (N,)."""
        return self.cells.gather(1, cell[:, None]).squeeze(1).long()

    def is_open(self, cell: Tensor) -> Tensor:
        """Whether one cell of each environment holds an open door, (N,)."""
        return self._open.take(self.code(cell))

    def is_free_or_goal(self, cell: Tensor) -> Tensor:
        """Whether one cell of each environment is empty or a goal, (N,)."""
        return self._walkable.take(self.code(cell))

    def distance(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Distance between two cells in columns and in rows, (N,) each."""
        height = self.task.env.height
        columns = one.div(height, rounding_mode="floor") - other.div(height, rounding_mode="floor")
        return columns.abs(), (one % height - other % height).abs()

    def around(self, cell: Tensor) -> Tensor:
        """One cell of each environment, not at the edge, and its eight neighbours, (N, 9)."""
        near = torch.arange(-1, 2, device=self.device)
        return cell[:, None] + (near[:, None] * self.task.env.height + near).flatten()

    def random(self, draw: int) -> Tensor:
        """Random float64 in [0, 1), (N,), from seed, task, environment, episode, step and ``draw``."""
        bits = mix(self.key + self.episodes)
        bits = mix(bits + self.count)
        return (mix(bits + draw) & ((1 << 53) - 1)).double() * 2.0**-53

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)


class View:
    """Computes the observations of a task.

    Args:
        device: device of the cells.
    """

    def __init__(self, task: GridTask, device: torch.device) -> None:
        self.task, self.device = task, device
        env = task.env
        self.size, self.cells = env.agent_view_size, env.width * env.height
        self.missions = slice(self.cells + 1, self.cells + 1 + TEXT)
        self.view_of = self._put(tables.places(env.width, env.height, self.size).view).flatten(1)
        self.encoding = self._put(tables.onehot_encoding() if task.onehot else tables.encoding())
        self.order = None if task.order is None else self._put(task.order)
        letters = np.zeros((256, 28), np.uint8)
        for place, letter in enumerate(b"abcdefghijklmnopqrstuvwxyz ,"):
            letters[letter, place] = 1
        self.letters = self._put(letters)
        if not env.see_through_walls:
            sight = tables.sight(self.size)
            self.sight, self.visible = self._put(sight.next.ravel()), self._put(sight.visible)
            self.opaque = self._put(tables.which(lambda thing: not thing.see_behind()).astype(np.float32))
            # Row j of a view, whose cells are numbered i * size + j, as a bit mask with bit i for column i.
            i, j = np.indices((self.size, self.size)).reshape(2, 1, -1)
            bits = np.where(j == np.arange(self.size)[::-1, None], 1 << i, 0)
            self.rows = self._put(bits.astype(np.float32))

    def __call__(self, cells: Tensor, place: Tensor, carried: Tensor) -> Tensor:
        """Observations, (n, ...), from cells, (n, all), places, (n,), and carried codes, (n,)."""
        task = self.task
        if (own := task.rules.observe(place)) is not None:
            return own
        codes = self._whole(cells, place) if task.whole else self._view(cells, place, carried)
        seen = self.encoding.index_select(0, codes.int().flatten()).view(len(codes), -1)
        if task.text:
            letters = cells[:, self.missions].int()
            seen = torch.cat((seen, self.letters.index_select(0, letters.flatten()).view(len(codes), -1)), 1)
        if self.order is not None:
            seen = seen.index_select(1, self.order)
        return seen.view(len(codes), *task.shape)

    def _whole(self, cells: Tensor, place: Tensor) -> Tensor:
        """Codes of the whole grid with the agents drawn in, (n, cells)."""
        codes = cells[:, : self.cells].clone()
        return codes.scatter_(1, place[:, None] >> 2, (AGENT + place % 4)[:, None].to(torch.uint8))

    def _view(self, cells: Tensor, place: Tensor, carried: Tensor) -> Tensor:
        """Codes of the agents' views, 0 where a cell is not visible, (n, size * size)."""
        size = self.size
        codes = cells.gather(1, self.view_of.index_select(0, place))
        if not self.task.env.see_through_walls:
            opaque = self.opaque.index_select(0, codes.int().flatten()).view(len(codes), -1)
            states, state = [], torch.zeros_like(place)
            for blocked in (self.rows @ opaque.T).long().unbind():
                state = self.sight.index_select(0, torch.add(blocked, state, alpha=1 << size))
                states.append(state)
            visible = self.visible.index_select(0, torch.cat(states[::-1])).view(size, len(codes), size)
            codes.mul_(visible.permute(1, 2, 0).reshape(len(codes), -1))  # 0 is UNSEEN
        codes[:, size // 2 * size + size - 1] = carried.to(torch.uint8)
        return codes

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)


def mix(bits: Tensor) -> Tensor:
    """Scramble int64: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        bits = (bits ^ (bits >> shift & ((1 << 64 - shift) - 1))) * factor
    return bits ^ (bits >> 31 & ((1 << 33) - 1))
