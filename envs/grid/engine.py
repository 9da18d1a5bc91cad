"""MiniGrid on tensors: N environments stepped at once, on the device of the agent that learns from them.

Layouts come from the package's own generators, the rules from its own objects
(:mod:`neoteny.envs.grid.tables`, :mod:`neoteny.envs.grid.rules`). A step is some lookups for all environments
together, without a branch that depends on data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit, TransformAction
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FlatObsWrapper, FullyObsWrapper, ImgObsWrapper, OneHotPartialObsWrapper
from numpy.typing import NDArray
from torch import Tensor

from neoteny.envs.engine import Spaces, TaskFunction, UncoveredError, check_spaces, episode_seed
from neoteny.envs.grid import tables
from neoteny.envs.grid.rules import Rules, cell_of, rules_of
from neoteny.envs.grid.tables import AGENT, CODES, EMPTY, WALL, code_of
from neoteny.envs.schedule import Schedule

TEXT = 96
"""Characters of a mission, as in the package's flat observation."""

LARGEST_VIEW = 9
"""Cells along a side of the view; the table of what is visible grows with four to the power of it."""


class FixedLayout(gym.Wrapper):
    """Every episode starts from the layout that ``layout`` seeds, whatever seed the reset is given."""

    def __init__(self, env: gym.Env, layout: int) -> None:
        super().__init__(env)
        self.layout = layout

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode in the layout."""
        return self.env.reset(seed=self.layout, options=options)


class GridTask:
    """One task, as its environment of the package and the wrappers around it say.

    Args:
        env: a MiniGrid environment in wrappers that choose the image, the whole grid, one-hot codes or the
            flat vector with the mission, rearrange what is observed, give actions other meanings, fix the
            layout or limit the length of episodes.

    Raises:
        UncoveredError: it is none, or does something else.
    """

    def __init__(self, env: gym.Env) -> None:
        layers, space = [], env.observation_space
        while isinstance(env, gym.Wrapper):
            layers.append(env)
            env = env.env
        if not isinstance(env, MiniGridEnv):
            raise UncoveredError(f"{type(env).__name__} is no MiniGrid environment")
        if env.agent_view_size > LARGEST_VIEW:
            raise UncoveredError(f"its view is {env.agent_view_size} cells wide")
        self.env: Any = env
        self.rules: Rules = rules_of(env)
        self.limit = env.max_steps
        self.layout: int | None = None
        self.whole = self.onehot = self.text = False
        self.actions = list(range(env.action_space.n))  # type: ignore[attr-defined]
        self.order: np.ndarray | None = None
        chosen = type(self.rules).observe is not Rules.observe
        rearranged: list[Callable[[np.ndarray], np.ndarray]] = []
        plain = gym.ObservationWrapper.reset, gym.ObservationWrapper.step
        for layer in reversed(layers):
            match layer:
                case OrderEnforcing() | PassiveEnvChecker():
                    pass
                case TimeLimit():
                    self.limit = min(self.limit, layer._max_episode_steps)
                case FixedLayout():
                    self.layout = layer.layout
                case TransformAction():
                    meanings = range(layer.action_space.n)  # type: ignore[attr-defined]
                    self.actions = [self.actions[int(layer.func(action))] for action in meanings]
                case FullyObsWrapper():
                    self.whole = True
                case OneHotPartialObsWrapper() if not self.whole:
                    self.onehot = True
                case ImgObsWrapper():
                    chosen = True
                case FlatObsWrapper() if layer.maxStrLen == TEXT:
                    self.text = chosen = True
                case gym.ObservationWrapper() if chosen and (type(layer).reset, type(layer).step) == plain:
                    rearranged.append(layer.observation)
                case _:
                    raise UncoveredError(f"{type(layer).__name__} does what no table holds")
        if not chosen:
            raise UncoveredError("its observations are no array")
        assert space.shape is not None
        self.shape = space.shape
        if rearranged:
            inner = next(layer for layer in layers if isinstance(layer, ImgObsWrapper | FlatObsWrapper))
            self.order = _order(rearranged, inner.observation_space)

    def draw(self, seed: int) -> tuple[np.ndarray, list[int]]:
        """One layout from the package's generator.

        Returns:
            Codes of the cells, a wall for all that is beyond them, and the mission's characters, uint8; the
            agent's place, what it carries, and what the rules need.
        """
        env = self.env
        env.gen_obs = lambda: None  # which takes longer than most layouts
        env.reset(seed=seed)
        del env.gen_obs
        codes = [EMPTY if thing is None else code_of(thing) for thing in env.grid.grid]
        cells = np.array(codes, np.uint8).reshape(env.height, env.width).T.ravel()
        mission = env.mission.lower().encode("ascii", "replace")
        if len(mission) > TEXT:
            raise UncoveredError(f"a mission of {len(mission)} characters")
        row = np.concatenate(
            (cells, np.array([WALL], np.uint8), np.frombuffer(mission.ljust(TEXT, b"\0"), np.uint8))
        )
        place = 4 * cell_of(env, env.agent_pos) + int(env.agent_dir)
        return row, [place, EMPTY, *self.rules.data(env)]


def _order(rearranged: list[Callable[[np.ndarray], np.ndarray]], space: gym.Space) -> np.ndarray:
    """Which entry of an observation each entry of the outermost one is; else UncoveredError."""
    assert space.shape is not None

    def outer(observation: np.ndarray) -> np.ndarray:
        for function in rearranged:
            observation = function(observation)
        return observation

    try:
        # What comes out where the entries are their own numbers, a byte at a time.
        number = np.arange(math.prod(space.shape)).reshape(space.shape)
        low, high = (outer((number >> shift).astype(np.uint8)).astype(int) for shift in (0, 8))
        order = low + (high << 8)
        trial = np.random.default_rng(0).integers(0, 256, space.shape, np.uint8)
        fine = np.array_equal(outer(trial), trial.ravel()[order]) and outer(trial).dtype == np.uint8
    except Exception as error:
        raise UncoveredError(f"its observations are changed in a way that no table holds: {error}") from error
    if not fine:
        raise UncoveredError("its observations are not only rearranged")
    return order.ravel()


class Bank:
    """Layouts of a task, from which episodes start; they are renewed while the task is on.

    Args:
        task: what is laid out.
        seed: (slot, generation) -> seed of a layout.
        size: B, a power of two; one will do for a task with a fixed layout.
        device: where they are kept.
        ticks: how many of its layouts have been renewed.
    """

    def __init__(
        self, task: GridTask, seed: Callable[[int, int], int], size: int, device: torch.device, ticks: int = 0
    ) -> None:
        self.task, self.seed, self.ticks = task, seed, ticks
        self.size = 1 if task.layout is not None else size
        # The next one to be renewed is the one whose turn is longest ago.
        drawn = [self._draw(ticks + number) for number in range(self.size)]
        turn = np.argsort([(ticks + number) % self.size for number in range(self.size)])
        cells, data = np.stack([row for row, _ in drawn])[turn], np.array([ints for _, ints in drawn])[turn]
        self.cells = torch.as_tensor(cells, device=device)
        """(B, cells and mission), uint8."""
        self.data = torch.as_tensor(data.T.copy(), device=device)
        """(number of the layout, steps, place, carried, data of the rules; B), int64."""

    def renew(self, number: int) -> range | tuple[()]:
        """Replace so many layouts, those that are there longest; returns the numbers of renewals."""
        if self.task.layout is not None:
            return ()
        renewals = range(self.ticks, self.ticks + number)
        for renewal in renewals:
            row, data = self._draw(renewal + self.size)
            self.cells[renewal % self.size] = torch.as_tensor(row, device=self.cells.device)
            self.data[:, renewal % self.size] = torch.as_tensor(data, device=self.data.device)
        self.ticks += number
        return renewals

    def seed_of(self, number: int) -> int:
        """The seed of a layout, by how many were drawn before it."""
        if self.task.layout is not None:
            return self.task.layout
        return self.seed(number % self.size, number // self.size)

    def _draw(self, number: int) -> tuple[np.ndarray, list[int]]:
        row, data = self.task.draw(self.seed_of(number))
        return row, [number, 0, *data]


class GridEnvs:
    """N environments of MiniGrid on tensors.

    Environment ``i`` does the same whatever N is: its layouts, and the random motion in them, are functions
    of seed, task, ``i`` and the number of steps and episodes so far.

    Args:
        num_envs: N.
        device: where everything lives.
        layouts, renew_every: as in :class:`neoteny.envs.stream.StreamConfig`.
    """

    exact = True
    """All is a function of seeds and actions."""

    TOGETHER = 16  # layouts that are renewed at a time, since a tensor operation for one costs as much

    def __init__(
        self,
        task: TaskFunction,
        spaces: Spaces,
        num_envs: int,
        device: torch.device | str = "cpu",
        layouts: int = 256,
        renew_every: int = 16,
    ) -> None:
        self.make_task, self.spaces, self.num_envs = task, spaces, num_envs
        self.device, self.layouts, self.renew_every = torch.device(device), layouts, renew_every
        self.clear()
        self.number = torch.arange(num_envs, device=self.device)
        self.rules_table = self._put(tables.rules().reshape(-1, 5))
        self.open = self._put(tables.which(lambda thing: getattr(thing, "is_open", False)))
        self.walkable = self._put(tables.which(lambda thing: thing.type == "goal"))
        self.walkable[EMPTY] = True
        letters = np.zeros((256, 28), np.uint8)
        for place, letter in enumerate(b"abcdefghijklmnopqrstuvwxyz ,"):
            letters[letter, place] = 1
        self.letters = self._put(letters)

    def clear(self) -> None:
        """Go back to before the first episode."""
        self.banks: dict[int, Bank] = {}
        self.episodes: dict[int, Tensor] = {}
        self.steps: dict[int, int] = {}

    def enter(self, schedule: Schedule, step: int) -> None:
        """Go over to the task that is on at ``step`` of the stream; all must be reset then."""
        self.k, self.seed = schedule.task_at(step), schedule.seed
        if not schedule.cycle:  # what was on never comes again
            for kept in (self.banks, self.episodes, self.steps):
                for k in kept.keys() - {self.k}:
                    del kept[k]
        known = self.banks.get(self.k)
        if known is None:
            made = self.make_task(self.k, self.seed)
            check_spaces(made, self.spaces, self.k)
        self.task = task = GridTask(made) if known is None else known.task
        env = task.env
        size, cells = env.agent_view_size, env.width * env.height
        places = tables.places(env.width, env.height, size)
        self.front_of, self.moved = self._put(places.front), self._put(places.moved).flatten()
        self.view_of = self._put(places.view).flatten(1)
        self.rewards = self._put(np.array([1 - 0.9 * (n / env.max_steps) for n in range(task.limit + 1)]))
        self.meaning = self._put(np.array(task.actions))
        self.looks = self._put(tables.onehot_looks() if task.onehot else tables.looks())
        self.order = None if task.order is None else self._put(task.order)
        self.missions = slice(cells + 1, cells + 1 + TEXT)
        if not env.see_through_walls:
            sight = tables.sight(size)
            self.sight, self.visible = self._put(sight.next.ravel()), self._put(sight.visible)
            self.opaque = self._put(tables.which(lambda thing: not thing.see_behind()).astype(np.float32))
            # Row j of a view, numbered i * size + j, is a number with one bit for each column i.
            i, j = np.indices((size, size)).reshape(2, 1, -1)
            self.rows = self._put(np.where(j == np.arange(size)[::-1, None], 1 << i, 0).astype(np.float32))
        bank = self._lay_out()
        self.first = self._observe(bank.cells, *bank.data[2:4])
        self.seen = self.first[:1].repeat(self.num_envs, *(1,) * len(task.shape))
        self.cells = bank.cells[:1].repeat(self.num_envs, 1)
        """Codes of all cells, of all beyond them, and the mission, (N, cells + 1 + TEXT), uint8."""
        self._state = bank.data[:, :1].repeat(1, self.num_envs)
        self.layout, self.count, self.place, self.carried = self._state[:4]
        self.data = self._state[4:]

    def reset(self, done: Tensor | None = None) -> None:
        """Start an episode where ``done``, (N,); everywhere if it is ``None``."""
        bank, episodes = self.banks[self.k], self.episodes[self.k]
        if done is None:
            done = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        episodes += done
        # Every environment goes through the bank in an order of its own, and misses none.
        slot = (self.offset + episodes * self.stride) & (bank.size - 1)
        # Sums and products modulo 256 are exact and, for bytes, several times as fast as torch.where.
        fresh = bank.cells.index_select(0, slot)
        self.cells.add_(fresh.sub_(self.cells).mul_(done[:, None]))
        self._state.copy_(torch.where(done, bank.data.index_select(1, slot), self._state))
        first = self.first.index_select(0, slot)
        self.seen = torch.where(done.view(-1, *(1,) * (first.dim() - 1)), first, self.seen)

    def step(self, actions: Tensor | NDArray[Any]) -> tuple[Tensor, Tensor, Tensor, list[dict[str, Any]]]:
        """Step all, actions (N,); returns rewards, float64, terminated and truncated, (N,), and no infos.

        The observations are then the last of the episodes that ended.
        """
        with torch.inference_mode():  # a sixth faster, if environments are few
            actions = torch.as_tensor(actions, device=self.device)
            self.count += 1
            self.worth = self.rewards.take(self.count)
            reward, terminated = self.task.rules.step(self, self.meaning.take(actions))
            self.seen = self._observe(self.cells, self.place, self.carried)
            truncated = self.count >= self.task.limit
        reward, terminated, truncated = (tensor.clone() for tensor in (reward, terminated, truncated))
        self.steps[self.k] += 1
        if self.steps[self.k] % (self.renew_every * self.TOGETHER) == 0:
            self._renew()
        return reward, terminated, truncated, []

    @property
    def observations(self) -> Tensor:
        """The latest, (N, ...)."""
        return self.seen.clone()

    def state_dict(self) -> dict[str, Any]:
        """Where all environments are; layouts are drawn again from their seeds."""
        return {
            "cells": self.cells.clone(),
            "state": self._state.clone(),
            "observations": self.seen.clone(),
            "episodes": {str(k): episodes.clone() for k, episodes in self.episodes.items()},
            "steps": {str(k): steps for k, steps in self.steps.items()},
        }

    def load_state_dict(self, state: dict[str, Any], schedule: Schedule, step: int) -> None:
        """Go to where others of the same tasks were at ``step`` of the stream, or raise ValueError."""
        self.banks.clear()
        self.episodes = {int(k): episodes.to(self.device) for k, episodes in state["episodes"].items()}
        self.steps = {int(k): steps for k, steps in state["steps"].items()}
        self.enter(schedule, step)
        for name, own in (("cells", self.cells), ("state", self._state), ("observations", self.seen)):
            if own.shape != state[name].shape:
                raise ValueError(f"{name} of shape {tuple(state[name].shape)} are none of task {self.k}")
            own.copy_(state[name])

    def close(self) -> None:
        """Nothing is left open."""

    # What the rules read and do

    def move(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """MiniGrid's own step: turn, go forward, pick up, drop, toggle; returns rewards and terminated."""
        front = self.front[:, None]
        ahead = self.cells.gather(1, front).squeeze(1)
        index = torch.add(ahead, torch.add(self.carried, action, alpha=CODES), alpha=CODES)
        after, carried, turn, won, ended = self.rules_table.index_select(0, index).unbind(1)
        self.cells.scatter_(1, front, after[:, None].to(torch.uint8))
        self.carried.copy_(carried)
        self.place.copy_(self.moved.take(torch.add(turn, self.place, alpha=4)))
        return self.worth * won, ended.bool()

    @property
    def cell(self) -> Tensor:
        """Where the agents are, (N,)."""
        return self.place >> 2

    @property
    def front(self) -> Tensor:
        """The cell in front of the agents, (N,)."""
        return self.front_of.take(self.place)

    def code(self, cell: Tensor) -> Tensor:
        """What is in a cell of each, (N,)."""
        return self.cells.gather(1, cell[:, None]).squeeze(1).long()

    def is_open(self, cell: Tensor) -> Tensor:
        """Whether there is an open door in a cell of each, (N,)."""
        return self.open.take(self.code(cell))

    def is_free_or_goal(self, cell: Tensor) -> Tensor:
        """Whether there is nothing, or a goal, in a cell of each, (N,)."""
        return self.walkable.take(self.code(cell))

    def apart(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """By how many columns and rows two cells are apart, (N,)."""
        height = self.task.env.height
        columns = one.div(height, rounding_mode="floor") - other.div(height, rounding_mode="floor")
        return columns.abs(), (one % height - other % height).abs()

    def around(self, cell: Tensor) -> Tensor:
        """A cell of each, which is not at the edge, and the eight around it, (N, 9)."""
        near = torch.arange(-1, 2, device=self.device)
        return cell[:, None] + (near[:, None] * self.task.env.height + near).flatten()

    def random(self, draw: int) -> Tensor:
        """Numbers in [0, 1), (N,) float64: of seed, task, environment, episode, step and ``draw`` alone."""
        bits = _mix(self.key + self.episodes[self.k])
        bits = _mix(bits + self.count)
        return (_mix(bits + draw) & ((1 << 53) - 1)) / (1 << 53)

    # How it is kept

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def _lay_out(self) -> Bank:
        """The bank of the task that is on, made if it was not on before."""
        self.steps.setdefault(self.k, 0)
        self.episodes.setdefault(self.k, torch.full((self.num_envs,), -1, device=self.device))
        seeds = np.random.SeedSequence([self.seed, self.k])
        self.key = _mix(self.number + int(seeds.generate_state(1, np.uint64)[0] >> 1))
        self.offset, self.stride = _mix(self.key), _mix(self.key + 1) | 1
        if self.k not in self.banks:
            seed = functools.partial(episode_seed, self.seed, self.k)
            renewed = self.steps[self.k] // (self.renew_every * self.TOGETHER) * self.TOGETHER
            self.banks[self.k] = Bank(self.task, seed, self.layouts, self.device, renewed)
        return self.banks[self.k]

    def _renew(self) -> None:
        bank = self.banks[self.k]
        slots = sorted({renewal % bank.size for renewal in bank.renew(self.TOGETHER)})
        if slots:
            self.first[slots] = self._observe(bank.cells[slots], *bank.data[2:4, slots])

    def _observe(self, cells: Tensor, place: Tensor, carried: Tensor) -> Tensor:
        """What agents see, (n, ...), of cells, (n, all), from their places and with what they carry, (n,)."""
        task = self.task
        if (own := task.rules.observe(place)) is not None:
            return own
        codes = self._whole(cells, place) if task.whole else self._view(cells, place, carried)
        seen = self.looks.index_select(0, codes.int().flatten()).view(len(codes), -1)
        if task.text:
            letters = cells[:, self.missions].int()
            seen = torch.cat((seen, self.letters.index_select(0, letters.flatten()).view(len(codes), -1)), 1)
        if self.order is not None:
            seen = seen.index_select(1, self.order)
        return seen.view(len(codes), *task.shape)

    def _whole(self, cells: Tensor, place: Tensor) -> Tensor:
        """Codes of the whole grid, with the agents, (n, cells)."""
        codes = cells[:, : self.missions.start - 1].clone()
        return codes.scatter_(1, place[:, None] >> 2, (AGENT + place % 4)[:, None].to(torch.uint8))

    def _view(self, cells: Tensor, place: Tensor, carried: Tensor) -> Tensor:
        """Codes of what is visible to the agents, (n, size * size)."""
        size = self.task.env.agent_view_size
        codes = cells.gather(1, self.view_of.index_select(0, place))
        if not self.task.env.see_through_walls:
            opaque = self.opaque.index_select(0, codes.int().flatten()).view(len(codes), -1)
            states, state = [], torch.zeros_like(place)
            for blocked in (self.rows @ opaque.T).long().unbind():
                state = self.sight.index_select(0, torch.add(blocked, state, alpha=1 << size))
                states.append(state)
            visible = self.visible.index_select(0, torch.cat(states[::-1])).view(size, len(codes), size)
            codes.mul_(visible.permute(1, 2, 0).reshape(len(codes), -1))  # zero is what is not seen
        codes[:, size // 2 * size + size - 1] = carried.to(torch.uint8)
        return codes


def check_bank(layouts: int, renew_every: int) -> None:
    """Raise ValueError unless ``layouts`` is a power of two and ``renew_every`` positive."""
    if layouts < 1 or layouts & (layouts - 1):
        raise ValueError(f"--stream.layouts must be a power of two, not {layouts}")
    if renew_every < 1:
        raise ValueError(f"--stream.renew-every must be at least 1, not {renew_every}")


def _mix(bits: Tensor) -> Tensor:
    """Scramble int64: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        bits = (bits ^ (bits >> shift & ((1 << 64 - shift) - 1))) * factor
    return bits ^ (bits >> 31 & ((1 << 33) - 1))
