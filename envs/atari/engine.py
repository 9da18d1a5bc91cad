"""Atari games on ale-py's vector environment: all emulators of a game stepped at once, in threads.

What a task's single environment is made of says how to make the vector environment that does the same, bit
for bit, and faster: see :func:`neoteny.envs.atari.game.vector_options`.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import MultiDiscrete
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from neoteny.envs.atari.game import ale, emulator_seed, vector_options
from neoteny.envs.engine import Spaces, TaskFunction, check_spaces, episode_seed
from neoteny.envs.schedule import Schedule
from neoteny.envs.single.episodes import Episode, EpisodeLog

RESEED_AFTER = 5_000
"""Steps since an emulator was seeded after which the next end of an episode seeds it again."""


class Emulators:
    """N emulators of one game, and what it takes to bring them back.

    An emulator is a function of its seed, of the actions since and of when episodes were started among them.
    All this is in the log, where what follows one seeding stands as one episode; its ``lifelong`` holds after
    how many steps the emulator was reset without a seed.

    Args:
        make: makes the vector environment.
        num_envs: N.
        actions: how many there are.
        seed: (environment, number of the seeding) -> seed of a single environment.
    """

    def __init__(
        self, make: Callable[[], Any], num_envs: int, actions: int, seed: Callable[[int, int], int]
    ) -> None:
        self.make, self.seed = make, seed
        self.vector: Any = None
        self.leaving: threading.Thread | None = None
        self.log = EpisodeLog(MultiDiscrete([actions] * num_envs, dtype=np.uint8))
        self.seedings = np.zeros(num_envs, np.int64)
        """Numbers of the next seedings."""
        self.checksum: int | None = None

    def start(self) -> None:
        """Make the vector environment if there is none, and play the log in it, as it came out before."""
        if self.vector is not None:
            self.wait()
            return
        self.vector = self.make()
        self.observations = self.vector.reset()[0]
        lives = self.log.running()
        if lives:
            self._play(lives)
            if zlib.crc32(self.observations) != self.checksum:
                raise ValueError(
                    "an Atari game is no function of seeds and actions, or of another version of ale-py: its "
                    "replay went elsewhere; --stream.no-replay starts new episodes instead"
                )

    @property
    def fresh(self) -> bool:
        """Whether no step was made since all were reset."""
        rows = self.log.rows
        return all(life is not None and life[0] + ([0] + life[3])[-1] == rows for life in self.log.starts)

    def reset(self, mask: NDArray[np.bool_], step: int) -> None:
        """Start episodes where ``mask``, (N,), at ``step`` of the stream."""
        self._reset(mask, self._seeds(mask, step))

    def leave(self, step: int) -> None:
        """Start episodes everywhere, for when the game comes again; meanwhile others can be played."""
        mask = np.ones(len(self.seedings), dtype=bool)
        self.leaving = threading.Thread(target=self._reset, args=(mask, self._seeds(mask, step)))
        self.leaving.start()

    def wait(self) -> None:
        """Until all have left."""
        if self.leaving is not None:
            self.leaving.join()
            self.leaving = None

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Step all; returns rewards, terminated and truncated, (N,)."""
        self.observations, *ends, _ = self.vector.step(actions.astype(np.int64))
        self.log.append(actions)
        return tuple(ends)

    def state_dict(self) -> dict[str, Any]:
        """All that the emulators depend on."""
        self.wait()
        return {
            "lives": [dataclasses.asdict(life) for life in self.log.running()],
            "seedings": self.seedings.copy(),
            "checksum": self.checksum if self.vector is None else zlib.crc32(self.observations),
        }

    def load_state_dict(self, state: dict[str, Any], replay: bool) -> None:
        """Be what others were once started; without ``replay`` keep only which seeds are next."""
        self.seedings = state["seedings"].copy()
        self.checksum = state["checksum"]
        if replay and state["lives"]:
            self.log.load([Episode(**life) for life in state["lives"]])

    def close(self) -> None:
        """Close the vector environment."""
        self.wait()
        if self.vector is not None:
            self.vector.close()

    def _seeds(self, mask: NDArray[np.bool_], step: int) -> NDArray[np.int64]:
        """Enter resets into the log; returns seeds for those that need one, and -1, (N,)."""
        seeds = np.full(len(mask), -1)
        for env in np.flatnonzero(mask).tolist():
            life = self.log.starts[env]
            if life is None or self.log.rows - life[0] >= RESEED_AFTER:
                # ale-py's vector environment takes seeds of 31 bits; half of those of a single one have 32.
                numbers = itertools.count(int(self.seedings[env]))
                number = next(i for i in numbers if emulator_seed(self.seed(env, i)) < 2**31)
                self.seedings[env] = number + 1
                seed = self.seed(env, number)
                self.log.begin(env, step, seed, [])
                seeds[env] = emulator_seed(seed)
            else:
                life[3].append(self.log.rows - life[0])
        return seeds

    def _reset(self, mask: NDArray[np.bool_], seeds: NDArray[np.int64]) -> None:
        self.observations = self.vector.reset(seed=seeds[mask], options={"reset_mask": mask})[0]

    def _play(self, lives: Sequence[Episode]) -> None:
        """Play all again side by side, so that they end together."""
        rows = max(len(life.actions) for life in lives)
        actions = np.zeros((rows, len(lives)), np.int64)  # what comes before its seeding does not matter
        resets: dict[int, dict[int, int]] = defaultdict(dict)
        for env, life in enumerate(lives):
            begin = rows - len(life.actions)
            actions[begin:, env] = life.actions
            resets[begin][env] = emulator_seed(life.seed)
            for offset in life.lifelong:
                resets[begin + offset][env] = -1
        for row in tqdm(range(rows + 1), desc="playing again", unit="step", delay=2, leave=False):
            if row in resets:
                seeds = np.array([resets[row].get(env, -2) for env in range(len(lives))])
                self._reset(seeds != -2, seeds)
            if row < rows:
                self.observations = self.vector.step(actions[row])[0]


class ArcadeEnvs:
    """N environments of Atari games, on ale-py's vector environment.

    The emulators of recurring tasks stay, since making and seeding them takes thirty times as long as to
    reset them, and a game is reset when it is
    left, beside the next one. Emulators are seeded at first, and again at the first end of an episode after
    5,000 steps, a function of counts alone, so that the log of what they did stays short. What comes does not
    depend on ``threads``.

    Args:
        num_envs: N.
        replay: play the games of a loaded state again; else new ones start.
        threads: in which emulators are stepped; 0 for as many as there are cores, at most N.
    """

    device = torch.device("cpu")

    def __init__(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, replay: bool = True, threads: int = 0
    ) -> None:
        self.make_task, self.spaces, self.num_envs = task, spaces, num_envs
        self.replay, self.threads = replay, threads
        self.games: dict[int, Emulators] = {}
        self.clear()

    @property
    def game(self) -> Emulators:
        """What is played now."""
        assert self.k is not None
        return self.games[self.k]

    @property
    def observations(self) -> Tensor:
        """The latest, (N, ...)."""
        return torch.from_numpy(self.game.observations.copy())

    def clear(self) -> None:
        """Go back to before the first episode."""
        self.close()
        self.games.clear()
        self.k: int | None = None
        self.exact = True  # what comes is a function of seeds and actions alone

    def enter(self, schedule: Schedule, step: int) -> None:
        """Go over to the task that is on at ``step`` of the stream; all must be reset then."""
        if self.k is not None and schedule.cycle:
            self.game.leave(step)
        elif self.k is not None:  # it never comes again
            self.clear()
        self.seed, self.k, self.now = schedule.seed, schedule.task_at(step), step
        if self.k not in self.games:
            self.games[self.k] = self._emulators(self.k)
        self.game.start()

    def reset(self, done: Tensor | None = None) -> None:
        """Start an episode where ``done``, (N,); everywhere if it is ``None``."""
        mask = np.ones(self.num_envs, dtype=bool) if done is None else done.numpy()
        if not self.game.fresh:
            self.game.reset(mask, self.now)

    def step(self, actions: NDArray[Any]) -> tuple[Tensor, Tensor, Tensor, list[dict[str, Any]]]:
        """Step all, actions (N,); returns rewards, float64, terminated and truncated, (N,), and no infos."""
        rewards, terminated, truncated = map(torch.from_numpy, self.game.step(actions))
        self.now += self.num_envs
        return rewards.double(), terminated, truncated, []

    def state_dict(self) -> dict[str, Any]:
        """What was done in each game."""
        return {"games": {str(k): game.state_dict() for k, game in self.games.items()}}

    def load_state_dict(self, state: dict[str, Any], schedule: Schedule, step: int) -> None:
        """Go to where others of the same tasks were at ``step`` of the stream.

        The game that is on then is played again now, others when their turn comes; raises ValueError if it
        comes out otherwise. Without ``replay`` new episodes begin, and what comes is not ``exact`` then.
        """
        self.clear()
        self.seed = schedule.seed
        for k, game in state["games"].items():
            self.games[int(k)] = self._emulators(int(k))
            self.games[int(k)].load_state_dict(game, self.replay)
        self.enter(schedule, step)
        if not self.replay:
            self.reset()
        self.exact = self.replay

    def close(self) -> None:
        """Close all."""
        for game in self.games.values():
            game.close()

    def _emulators(self, k: int) -> Emulators:
        seed, actions = self.seed, int(self.spaces[1].n)  # type: ignore[attr-defined]

        def make() -> gym.vector.VectorEnv:
            env = self.make_task(k, seed)
            check_spaces(env, self.spaces, k)
            options = vector_options(env)
            env.close()
            return ale().vector_env.AtariVectorEnv(
                num_envs=self.num_envs, num_threads=self.threads, **options
            )

        return Emulators(make, self.num_envs, actions, lambda env, number: episode_seed(seed, k, env, number))
