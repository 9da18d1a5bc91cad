"""Atari streams: one game after the other.

All games use the full set of eighteen actions, so that all tasks have the same spaces. Actions are sticky
with probability 0.25 per emulated frame (Machado et al., 2018, "Revisiting the Arcade Learning Environment").
Episodes end when the game is over, not at the loss of a life. Observations are the last four frames,
(4, 84, 84), uint8, zeros before the first. Rewards are not clipped. Periods count agent steps, each of four
frames unless a stream says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym

from neoteny.envs.atari.game import make_game
from neoteny.envs.registry import stream

GAMES = ("Breakout", "Pong", "SpaceInvaders")
CORA = ("SpaceInvaders", "Krull", "BeamRider", "Hero", "StarGunner", "MsPacman")
SWITCHING = ("Alien", "Atlantis", "Boxing", "Breakout", "Centipede")
UPPER_BOUND = ("Atlantis", "BattleZone", "Centipede", "Defender", "Krull", "MsPacman", "Qbert", "UpNDown")


@stream("atari", period=250_000, names=GAMES)
def atari(k: int, seed: int, games: Sequence[str] = GAMES) -> gym.Env:
    """Any games in cycles, ``--stream.games``; by default Breakout, Pong and SpaceInvaders. Ours."""
    return make_game(games[k])


@stream("atari-cora-small", period=100_000, names=CORA)
@stream("atari-cora", period=12_500_000, names=CORA)
def atari_cora(k: int, seed: int) -> gym.Env:
    """SpaceInvaders, Krull, BeamRider, Hero, StarGunner, MsPacman, in cycles.

    Powers et al. (2022), "CORA: Benchmarks, Baselines, and Metrics as a Platform for Continual Reinforcement
    Learning Agents": 50,000,000 frames of each game in each of five cycles, with all actions. Episodes last
    at most 108,000 frames here. The small period is ours.
    """
    return make_game(CORA[k])


@stream("atari-switching-small", period=100_000, names=SWITCHING)
@stream("atari-switching", period=5_000_000, names=SWITCHING)
def atari_switching(k: int, seed: int) -> gym.Env:
    """Alien, Atlantis, Boxing, Breakout, Centipede, in cycles.

    Abbas et al. (2023), "Loss of Plasticity in Continual Deep Reinforcement Learning", vary the games and how
    long each lasts; these five, for 20,000,000 frames each, are what others quote. The small period is ours.
    """
    return make_game(SWITCHING[k])


@stream("atari-upper-bound-small", period=40_000, names=UPPER_BOUND)
@stream("atari-upper-bound", period=400_000, names=UPPER_BOUND)
def atari_upper_bound(k: int, seed: int) -> gym.Env:
    """Atlantis, BattleZone, Centipede, Defender, Krull, MsPacman, Qbert, UpNDown, in cycles, a frame a step.

    The sequence of Carmack's talk at Upper Bound 2025: three cycles of 400,000 frames of each game, with all
    actions, scored by the last cycle. There a physical console's pace is kept, here none is. The small period
    is ours.
    """
    return make_game(UPPER_BOUND[k], frame_skip=1)
