"""What the games share: actions, rules, random draws, and the board on which observations are drawn.

Times are counted in steps, x to the right and y downwards, both from 0 to 9. A tensor of shape (N,) has a
number for each environment, one of shape (k, N) has k of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from neoteny.envs.grid.board import mix

SIZE = 10
"""Cells along each side of the board."""

NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)
"""Actions, as the package numbers them."""

RuleSet = Literal["package", "gymnax-0.0.9"]


class Rules(NamedTuple):
    """Which rules a game follows."""

    of: RuleSet = "package"
    ramping: bool = True  # whether the game becomes more difficult

    @property
    def gymnax(self) -> bool:
        """Whether they are those of gymnax 0.0.9."""
        return self.of == "gymnax-0.0.9"


class Draws:
    """Random numbers that are functions of an episode's seed, the number of its step and their own number.

    Args:
        episodes: the mixed seeds of the running episodes, (N,), int64.
        count: steps made in them, (N,).
        numbers: how many random numbers there are.
    """

    def __init__(self, episodes: Tensor, count: Tensor, numbers: int) -> None:
        bits = mix(episodes + count) + torch.arange(numbers, device=count.device)[:, None]
        self.uniform = (mix(bits) & (1 << 53) - 1).double().mul_(2.0**-53)
        """Uniform in [0, 1), (numbers, N), float64."""

    def __call__(self, number: int) -> Tensor:
        """Uniform in [0, 1), (N,), float64."""
        return self.uniform[number]


STICKY = 0
"""Number of the draw that decides whether the last action is repeated; those of the games begin at 1."""


class Step(NamedTuple):
    """The result of a step."""

    state: Any
    rewards: Tensor  # (N,)
    terminated: Tensor  # (N,)


class Game(Protocol):
    """The rules of a game, as functions of tensors: a module."""

    @property
    def CHANNELS(self) -> tuple[str, ...]:
        """What each channel of an observation shows."""

    @property
    def ACTIONS(self) -> tuple[int, ...]:
        """The actions that differ from each other, the package's minimal set."""

    @property
    def DRAWS(self) -> int:
        """How many random numbers a step has, that for sticky actions included."""

    @property
    def DRAWN(self) -> tuple[str, ...]:
        """The fields of the first state of an episode that depend on random numbers."""

    @property
    def GYMNAX_LIMIT(self) -> int | None:
        """Steps of an episode in gymnax 0.0.9; ``None`` for a game that is not played by its rules."""

    def begin(self, draws: Draws, rules: Rules) -> Any:
        """The states in which episodes begin: a named tuple of tensors, (N,) or (k, N)."""

    def step(self, state: Any, action: Tensor, draws: Draws, rules: Rules) -> Step:
        """The step of all environments that the actions, (N,), lead to.

        A tensor of the new state may be that of the same field of the old one, but of no other.
        """

    def show(self, state: Any, board: Board) -> None:
        """Draw what the agent sees."""


class Board:
    """The observations of N environments while they are drawn.

    A step of few environments takes as long as calling its tensor operations: all cells are set at once.

    Args:
        num_envs: N.
        places: for each channel of the game, which of the observation's it is.
        channels: of an observation, C.
        device: of the observations.
    """

    def __init__(self, num_envs: int, places: Sequence[int], channels: int, device: torch.device) -> None:
        self.places, self.channels = list(places), channels
        self.place_of = torch.tensor(self.places, device=device)
        """The same on the device."""
        self.shape = num_envs, SIZE, SIZE, channels
        self.size = num_envs * SIZE * SIZE * channels
        self.first = torch.arange(0, self.size, SIZE * SIZE * channels, device=device)
        """Of each environment's entries, (N,)."""
        self.everywhere = torch.ones((1, num_envs), dtype=torch.bool, device=device)
        patterns = torch.arange(1 << SIZE, device=device)[:, None] >> torch.arange(SIZE, device=device)
        self.patterns = (patterns & 1).bool()
        """The cells of each row of bits, (1024, 10)."""
        self.tables: dict[tuple[tuple[int, ...], ...], Tensor] = {}

    def clear(self) -> Board:
        """Begin to draw; returns itself."""
        # The last entry takes what is not on the board.
        self.entries = torch.zeros(self.size + 1, dtype=torch.bool, device=self.first.device)
        self.marks: list[Tensor] = []
        self.where: list[Tensor] = []
        return self

    def mark(self, channel: int, x: Tensor, y: Tensor | int, where: Tensor | None = None) -> None:
        """Set cells of a channel, (N,) or (k, N), where a condition is true."""
        self.mark_places(self.place_of[channel], x, y, where)

    def mark_places(self, place: Tensor, x: Tensor, y: Tensor | int, where: Tensor | None = None) -> None:
        """Set cells of channels given by their places, a number, (N,) or (k, N)."""
        cell = torch.add(x, y, alpha=SIZE).long()
        self.marks.append(torch.add(place, cell, alpha=self.channels).view(-1, self.shape[0]))
        there = self.everywhere if where is None else where
        self.where.append(there.expand_as(self.marks[-1]))

    def fill(self, channel: int, rows: Tensor, top: int = 0) -> None:
        """Set the rows of a channel from ``top`` on, (k, N): bit x is column x."""
        cells = self.patterns.index_select(0, rows.T.flatten()).view(self.shape[0], len(rows), SIZE)
        planes = self.entries[:-1].view(self.shape)
        planes[:, top : top + len(rows), :, self.places[channel]] = cells

    def paint(self, rows: Tensor, kind: Tensor, channels: tuple[tuple[int, ...], ...]) -> None:
        """Set all rows of several channels on an empty board.

        Args:
            rows: (10, N), of which bit x is column x.
            kind: (N,), which of ``channels`` they are set in.
            channels: those of each kind.
        """
        table = self._table(channels)
        numbers = (rows + kind * len(self.patterns)).T.flatten()
        torch.index_select(table, 0, numbers, out=self.entries[:-1].view(-1, table.shape[1]))

    def _table(self, channels: tuple[tuple[int, ...], ...]) -> Tensor:
        """The entries of each row of bits of each kind, (kinds * 1024, 10 * C)."""
        if channels not in self.tables:
            tables = self.patterns.new_zeros((len(channels), *self.patterns.shape, self.channels))
            for table, set_in in zip(tables, channels):
                for channel in set_in:
                    table[..., self.places[channel]] = self.patterns
            self.tables[channels] = tables.view(-1, SIZE * self.channels)
        return self.tables[channels]

    def observations(self) -> Tensor:
        """What was drawn, (N, 10, 10, C), bool."""
        entries = torch.where(torch.cat(self.where), torch.cat(self.marks) + self.first, self.size)
        self.entries.index_fill_(0, entries.flatten(), True)
        return self.entries[:-1].view(self.shape)


def towards(action: Tensor, less: int, more: int) -> Tensor:
    """-1 for one action, 1 for another, else 0, (N,), int8."""
    return as_int8(action == more) - as_int8(action == less)


def as_int8(flags: Tensor) -> Tensor:
    """Flags as numbers, 0 and 1."""
    if torch.compiler.is_compiling():  # for a GPU flags cannot be compiled as numbers of the same memory
        return flags.to(torch.int8)
    return flags.view(torch.int8)


def replace(old: Tensor, where: Tensor, new: Tensor | int) -> Tensor:
    """``new`` where a condition is true, else ``old``; many times as fast on a CPU as ``torch.where``.

    Args:
        old: whole numbers or flags, (k, N).
        where: bool, (k, N) or (N,).
        new: of the same type, (k, N) or (N,); a number may be an ``int``.
    """
    if old.dtype == torch.bool:
        return old & ~where | new & where
    return old + (new - old) * (as_int8(where) if old.dtype == torch.int8 else where)
