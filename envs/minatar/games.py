"""N games of MinAtar at once: what they are, their state, and their steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, cast, get_args

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from neoteny.envs.grid.board import mix
from neoteny.envs.minatar import asterix, breakout, freeway, seaquest, space_invaders
from neoteny.envs.minatar.board import SIZE, STICKY, Board, Draws, Game, Rules, RuleSet, replace

GAMES: dict[str, Game] = {
    "Breakout": breakout,
    "Asterix": asterix,
    "SpaceInvaders": space_invaders,
    "Freeway": freeway,
    "Seaquest": seaquest,
}


@dataclasses.dataclass(frozen=True)
class Definition:
    """What determines a game of MinAtar.

    Args:
        game: one of ``GAMES``.
        rules: the package's, version 1.0.15, or those of gymnax 0.0.9, whose differences are listed in
            docs/streams.md.
        sticky: how likely an action is replaced by the last one, by default 0.1, by gymnax's rules 0.
        minimal: whether only actions that differ are offered, else all six. By default gymnax's rules do.
        ramping: whether the game becomes more difficult.
        places: for each channel of the game, which of the observation's it is; by default the same.
        channels: of an observation, by default those of the game; more are empty.

    Raises:
        ValueError: there is no such game, it has no such rules, or the channels do not fit.
    """

    game: str
    rules: RuleSet = "package"
    sticky: float | None = None
    minimal: bool | None = None
    ramping: bool = True
    places: tuple[int, ...] | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.game not in GAMES:
            raise ValueError(f"there is no MinAtar game {self.game!r}; there are {', '.join(GAMES)}")
        if self.rules not in get_args(RuleSet):
            raise ValueError(f"the rules of MinAtar are {' or '.join(get_args(RuleSet))}, not {self.rules!r}")
        is_gymnax, own = self.rules == "gymnax-0.0.9", len(self.module.CHANNELS)
        if is_gymnax and self.module.GYMNAX_LIMIT is None:
            raise ValueError(f"gymnax 0.0.9 has no {self.game}")
        default = {
            "sticky": 0.0 if is_gymnax else 0.1, "minimal": is_gymnax, "places": tuple(range(own)),
            "channels": own if self.places is None else max(own, 1 + max(self.places)),
        }  # fmt: skip
        for name, value in default.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        places, channels = cast(tuple[int, ...], self.places), cast(int, self.channels)
        if len(set(places)) != own or len(places) != own or not 0 <= min(places) <= max(places) < channels:
            raise ValueError(f"{places} are not the places of {own} channels among {channels}")
        if not 0 <= cast(float, self.sticky) <= 1:
            raise ValueError(f"the probability of a sticky action is from 0 to 1, not {self.sticky}")

    @property
    def module(self) -> Game:
        """The rules of the game."""
        return GAMES[self.game]

    @property
    def actions(self) -> tuple[int, ...]:
        """The game's action for each action of the agent."""
        return self.module.ACTIONS if self.minimal else tuple(range(6))

    @property
    def limit(self) -> int | None:
        """Steps after which an episode is truncated."""
        return self.module.GYMNAX_LIMIT if self.rules == "gymnax-0.0.9" else None

    @property
    def space(self) -> Box:
        """Of one observation, (10, 10, C), bool."""
        return Box(0, 1, (SIZE, SIZE, cast(int, self.channels)), np.bool_)  # type: ignore[arg-type]


def check_minatar_games(games: Sequence[str]) -> None:
    """Raise ValueError if there is no such game."""
    for game in games:
        Definition(game)


class Games:
    """N running games, each a function of the seeds of its episodes, its actions and its first last action.

    Args:
        definition: of all games.
        num_envs: N.
        device: of all tensors.
    """

    def __init__(self, definition: Definition, num_envs: int, device: torch.device) -> None:
        self.definition, self.num_envs, self.device = definition, num_envs, device
        self.game, self.rules = definition.module, Rules(definition.rules, definition.ramping)
        self.board = Board(num_envs, definition.places or (), definition.channels or 0, device)
        self.meaning = torch.tensor(definition.actions, device=device)
        self.seeds = torch.zeros(num_envs, dtype=torch.int64, device=device)
        """Of the running episodes, (N,)."""
        self.count = torch.zeros_like(self.seeds)
        """Steps made in them, (N,)."""
        self.last_action = torch.zeros_like(self.seeds)
        """Of the game, (N,); an episode begins with that of the one before it."""
        self.mixed = torch.zeros_like(self.seeds)
        """The seeds as random numbers are made from them, (N,)."""
        self.state, self.memory = packed(self.game.begin(self._draws(), self.rules))
        self.fields = [tensor for _, tensor in leaves(self.state)]
        self.first = [memory[:, :1].clone() for memory in self.memory]
        """The memory of the state in which episodes begin, but for what is drawn."""
        self.never = torch.zeros(num_envs, dtype=torch.bool, device=device)

    def reset(self, done: Tensor, seeds: Tensor) -> None:
        """Begin new episodes with ``seeds``, (N,), where ``done``, (N,), is true."""
        self.seeds.copy_(torch.where(done, seeds, self.seeds))
        self.mix_seeds()
        self.count.masked_fill_(done, 0)
        for memory, first in zip(self.memory, self.first):
            memory.copy_(replace(memory, done, first))
        if self.game.DRAWN:
            new = self.game.begin(self._draws(), self.rules)
            for old, drawn in ((getattr(self.state, name), getattr(new, name)) for name in self.game.DRAWN):
                old.copy_(replace(old, done, drawn))

    def mix_seeds(self) -> None:
        """Follow new seeds."""
        self.mixed.copy_(mix(self.seeds))

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step all, actions (N,); returns rewards, (N,) float64, terminated and truncated, (N,)."""
        self.count += 1
        draws = self._draws()
        action = self.meaning.take(actions)
        if self.definition.sticky:
            action = torch.where(draws(STICKY) < self.definition.sticky, self.last_action, action)
            self.last_action.copy_(action)
        after = self.game.step(self.state, action, draws, self.rules)
        torch._foreach_copy_(self.fields, [tensor for _, tensor in leaves(after.state)])
        limit = self.definition.limit
        truncated = self.never if limit is None else self.count >= limit
        return after.rewards.double(), after.terminated, truncated

    def observe(self) -> Tensor:
        """What the agents see, (N, 10, 10, C), bool."""
        board = self.board.clear()
        self.game.show(self.state, board)
        return board.observations()

    def _draws(self) -> Draws:
        return Draws(self.mixed, self.count, self.game.DRAWS)


def leaves(state: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state, with their names."""
    for name, value in state._asdict().items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        else:
            yield from leaves(value, f"{prefix}{name}.")


def packed(state: Any) -> tuple[Any, list[Tensor]]:
    """A copy of a state whose tensors are rows of few, so that new episodes begin with few operations.

    Returns:
        The state, and its memory: (R, N) of bytes and (R, N) of words, int8 and int64.
    """
    tensors = [tensor for _, tensor in leaves(state)]
    copies, memory = list(tensors), []
    for kind in (torch.int8, torch.int64):
        chosen = [i for i, tensor in enumerate(tensors) if tensor.itemsize == kind.itemsize]
        rows = [tensors[i].view(kind).view(-1, tensors[i].shape[-1]) for i in chosen]
        if rows:
            memory.append(torch.cat(rows))
            for i, part in zip(chosen, memory[-1].split([len(row) for row in rows])):
                copies[i] = part.view(tensors[i].dtype).view(tensors[i].shape)
    return _rebuilt(state, iter(copies)), memory


def _rebuilt(state: Any, tensors: Iterator[Tensor]) -> Any:
    """A state like another one, with other tensors."""
    return type(state)(*(next(tensors) if isinstance(x, Tensor) else _rebuilt(x, tensors) for x in state))
