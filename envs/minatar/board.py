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
        seeds: of the running episodes, (N,), int64.
        count: steps made in them, (N,).
    """

    def __init__(self, seeds: Tensor, count: Tensor) -> None:
        self.bits = mix(mix(seeds) + count)

    def __call__(self, number: int) -> Tensor:
        """Uniform in [0, 1), (N,), float64."""
        return (mix(self.bits + number) & ((1 << 53) - 1)).double().mul_(2.0**-53)


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

    Args:
        num_envs: N.
        places: for each channel of the game, which of the observation's it is.
        channels: of an observation, C.
        device: of the observations.
    """

    def __init__(self, num_envs: int, places: Sequence[int], channels: int, device: torch.device) -> None:
        self.places, self.channels = list(places), channels
        self.place_of = torch.tensor(self.places, device=device)
        """The same on the device, where the channel depends on the state."""
        self.shape = num_envs, SIZE, SIZE, channels
        self.size = num_envs * SIZE * SIZE * channels
        self.first = torch.arange(0, self.size, SIZE * SIZE * channels, device=device)
        """Of each environment's entries, (N,)."""
        patterns = torch.arange(1 << SIZE, device=device)[:, None] >> torch.arange(SIZE, device=device)
        self.patterns = (patterns & 1).bool()
        """The cells of each row of bits, (1024, 10)."""

    def clear(self) -> Board:
        """Begin to draw; returns itself."""
        # The last entry takes what is not on the board.
        self.entries = torch.zeros(self.size + 1, dtype=torch.bool, device=self.first.device)
        return self

    def mark(self, channel: int, x: Tensor, y: Tensor | int, where: Tensor | None = None) -> None:
        """Set cells of a channel, (N,) or (k, N), where a condition is true."""
        self.mark_places(self.places[channel], x, y, where)

    def mark_places(
        self, place: Tensor | int, x: Tensor, y: Tensor | int, where: Tensor | None = None
    ) -> None:
        """Set cells of channels given by their places, (N,) or (k, N)."""
        entry = (y * SIZE + x).long() * self.channels + place + self.first
        if where is not None:
            entry = torch.where(where, entry, self.size)
        self.entries.index_fill_(0, entry.flatten(), True)

    def fill(self, channel: int, rows: Tensor, top: int = 0) -> None:
        """Set the rows of a channel from ``top`` on, (k, N): bit x is column x."""
        cells = self.patterns.index_select(0, rows.T.flatten()).view(self.shape[0], len(rows), SIZE)
        self.planes[:, top : top + len(rows), :, self.places[channel]] = cells

    @property
    def planes(self) -> Tensor:
        """The observations, (N, 10, 10, C), bool."""
        return self.entries[:-1].view(self.shape)


def towards(action: Tensor, less: int, more: int) -> Tensor:
    """-1 for one action, 1 for another, else 0, (N,)."""
    return (action == more).long() - (action == less).long()


def replace(old: Tensor, where: Tensor, new: Tensor | int) -> Tensor:
    """``new`` where a condition is true, else ``old``; many times as fast on a CPU as ``torch.where``.

    Args:
        old: whole numbers or flags, (k, N).
        where: bool, (k, N) or (N,).
        new: of the same type, (k, N) or (N,); a number may be an ``int``.
    """
    if old.dtype == torch.bool:
        return old & ~where | new & where
    return old + (new - old) * (where.view(torch.int8) if old.dtype == torch.int8 else where)
