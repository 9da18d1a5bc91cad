"""MinAtar streams: one game after the other, with ten channels and six actions in all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from neoteny.envs.minatar.board import RuleSet
from neoteny.envs.minatar.env import MinAtar
from neoteny.envs.minatar.games import GAMES
from neoteny.envs.registry import stream, task_rng

CHANNELS = 10
"""Of every observation, as many as the game with the most channels has; those that a game lacks are empty."""

PAPER = ("Breakout", "Asterix", "SpaceInvaders", "Freeway")
CHAIN = ("SpaceInvaders", "Asterix", "Seaquest")

ENTRY_POINT = "neoteny.envs.minatar.env:MinAtar"
for _game in GAMES:
    gym.register(f"MinAtar-{_game}-v0", entry_point=ENTRY_POINT, kwargs={"game": _game, "minimal": False})
    gym.register(f"MinAtar-{_game}-v1", entry_point=ENTRY_POINT, kwargs={"game": _game, "minimal": True})


def make_game(game: str, rules: RuleSet, **options: Any) -> gym.Env:
    """A game with ten channels and all six actions."""
    return MinAtar(game, rules=rules, minimal=False, channels=CHANNELS, **options)


def named(games: Sequence[str]) -> Callable[..., str]:
    """The function that names the tasks of a stream, which are games of MinAtar in cycles."""

    def name(k: int, seed: int, games: Sequence[str] = games) -> str:
        return f"MinAtar-{games[k]}"

    return name


@stream("minatar", period=500_000, tasks=len(GAMES), names=named(tuple(GAMES)))
def minatar(k: int, seed: int, games: Sequence[str] = tuple(GAMES), rules: RuleSet = "package") -> gym.Env:
    """Any games in cycles, ``--stream.games``; by default all five. Ours."""
    return make_game(games[k], rules)


def game_of_paper(k: int, seed: int) -> str:
    """The game of task k: in each cycle all four in random order."""
    cycle, place = divmod(k, len(PAPER))
    order = np.random.default_rng([seed, cycle, len(PAPER)]).permutation(len(PAPER))
    return PAPER[order[place]]


def name_of_paper(k: int, seed: int) -> str:
    """The name of task k."""
    return f"MinAtar-{game_of_paper(k, seed)}"


@stream("minatar-paper-small", period=150_000, names=name_of_paper)
@stream("minatar-paper", period=15_000_000, names=name_of_paper)
def minatar_paper(k: int, seed: int, rules: RuleSet = "package") -> gym.Env:
    """Breakout, Asterix, SpaceInvaders and Freeway, in random order in each cycle, channels permuted anew.

    Rosseau et al. (2026), "Preserving Plasticity in Continual Learning via Dynamical Isometry": twenty cycles
    with 15,000,000 steps of each game; the channels are permuted whenever a game begins, so that no task ever
    recurs. The paper does not say by which rules it plays: gymnax's are very likely. The small period, a
    hundredth, is ours.
    """
    places = task_rng(seed, k).permutation(CHANNELS)
    game = game_of_paper(k, seed)
    own = len(GAMES[game].CHANNELS)
    return make_game(game, rules, places=tuple(places[:own].tolist()))


@stream("minatar-chain", period=2_000_000, tasks=len(CHAIN), names=named(CHAIN))
def minatar_chain(k: int, seed: int, rules: RuleSet = "package") -> gym.Env:
    """SpaceInvaders, Asterix, Seaquest, in this order.

    Tang et al. (2025), "Mitigating Plasticity Loss in Continual Reinforcement Learning by Reducing Churn"
    (github.com/bluecontra/C-CHAIN): once, with 2,000,000 steps each. There, an episode of Seaquest also ends
    after 1,000 steps without a reward.
    """
    return make_game(CHAIN[k], rules)
