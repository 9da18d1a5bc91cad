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
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import MultiDiscrete
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from neoteny.envs.action_log import ActionLog
from neoteny.envs.atari.game import ale, emulator_seed, is_game, vector_options
from neoteny.envs.engine import StepResult
from neoteny.envs.observations import ObservationSpec
from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction, check_spaces, episode_seed

RESEED_AFTER = 5_000
"""Steps since an emulator was seeded after which the next end of an episode seeds it again."""


@dataclasses.dataclass(frozen=True)
class AtariConfig:
    """Atari games on ale-py's vector environment."""

    name: ClassVar[str] = "atari"
    gradual: ClassVar[bool] = False
    otherwise: ClassVar[str] = "the games of this stream are stepped one by one"

    replay: bool = dataclasses.field(default=True, metadata={"resumable": True})
    """When a stopped run goes on, replay its games from their last seeding, for the same bits; else start
    new ones."""

    def recognizes(self, env: gym.Env) -> bool:
        """Atari games, in any wrappers."""
        return is_game(env)

    def covers(self, env: gym.Env) -> None:
        """Raise UncoveredError unless ale-py's vector environment does what the environment does."""
        vector_options(env)

    def observation_spec(self, env: gym.Env) -> ObservationSpec | None:
        """Nothing that the space does not say."""
        return None

    def check(self, num_envs: int) -> None:
        """Any number of environments will do."""

    def make(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, device: torch.device | str | None
    ) -> AtariEngine:
        """An engine for N sub-environments."""
        return AtariEngine(task, spaces, num_envs, self.replay)


@dataclasses.dataclass
class Segment:
    """What an emulator did since it was seeded, but for its actions."""

    seed: int
    """Of a single environment."""
    resets: list[int]
    """After how many steps it was reset without a seed."""


class Emulators:
    """N emulators of one game, and what it takes to bring them back.

    An emulator is a function of its seed, of the actions since and of when episodes were started among them.

    Args:
        make: makes the vector environment.
        num_envs: N.
        actions: how many there are.
        seed: (environment, number of the seeding) -> seed of a single environment.
    """

    def __init__(
        self, make: Callable[[], Any], num_envs: int, actions: int, seed: Callable[[int, int], int]
    ) -> None:
        self.make, self.seed, self.num_envs = make, seed, num_envs
        self.vector: Any = None
        self.leaving: threading.Thread | None = None
        self.actions = ActionLog(MultiDiscrete([actions] * num_envs, dtype=np.uint8))
        self.segments: list[Segment] = []
        """One of each, once they have been seeded."""
        self.seedings = np.zeros(num_envs, np.int64)
        """Numbers of the next seedings."""
        self.checksum: int | None = None

    def start(self) -> None:
        """Make the vector environment if there is none, and replay what is logged, as it came out before."""
        if self.vector is not None:
            self.wait()
            return
        self.vector = self.make()
        self.observations = self.vector.reset()[0]
        if self.segments:
            self._replay()
            if zlib.crc32(self.observations) != self.checksum:
                raise ValueError(
                    "an Atari game is no function of seeds and actions, or of another version of ale-py: its "
                    "replay went elsewhere; --stream.atari.no-replay starts new episodes instead"
                )

    @property
    def fresh(self) -> bool:
        """Whether no step was made since all were reset."""
        return bool(self.segments) and all(
            [0, *segment.resets][-1] == self.actions.length(env) for env, segment in enumerate(self.segments)
        )

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Start episodes where ``mask``, (N,)."""
        self._reset(mask, self._seeds(mask))

    def leave(self) -> None:
        """Start episodes everywhere, for when the game comes again; meanwhile others can be played."""
        mask = np.ones(self.num_envs, dtype=bool)
        self.leaving = threading.Thread(target=self._reset, args=(mask, self._seeds(mask)))
        self.leaving.start()

    def wait(self) -> None:
        """Until all have left."""
        if self.leaving is not None:
            self.leaving.join()
            self.leaving = None

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Step all; returns rewards, terminated and truncated, (N,)."""
        self.observations, *ends, _ = self.vector.step(actions.astype(np.int64))
        self.actions.append(actions)
        return tuple(ends)

    def state_dict(self) -> dict[str, Any]:
        """All that the emulators depend on."""
        self.wait()
        segments = [
            {**dataclasses.asdict(segment), "actions": self.actions[env]}
            for env, segment in enumerate(self.segments)
        ]
        checksum = self.checksum if self.vector is None else zlib.crc32(self.observations)
        return {"segments": segments, "seedings": self.seedings.copy(), "checksum": checksum}

    def load_state_dict(self, state: dict[str, Any], replay: bool) -> None:
        """Be what others were once started; without ``replay`` keep only which seeds are next."""
        self.seedings = state["seedings"].copy()
        self.checksum = state["checksum"]
        if replay and state["segments"]:
            self.segments = [Segment(each["seed"], list(each["resets"])) for each in state["segments"]]
            self.actions.load([each["actions"] for each in state["segments"]])

    def close(self) -> None:
        """Close the vector environment."""
        self.wait()
        if self.vector is not None:
            self.vector.close()

    def _seeds(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Log resets; returns seeds for those that need one, and -1, (N,)."""
        seeds = np.full(len(mask), -1)
        unseeded = not self.segments
        for env in np.flatnonzero(mask).tolist():
            steps = self.actions.length(env)
            if not unseeded and steps < RESEED_AFTER:
                self.segments[env].resets.append(steps)
                continue
            # ale-py's vector environment takes seeds of 31 bits; half of those of a single one have 32.
            numbers = itertools.count(int(self.seedings[env]))
            number = next(i for i in numbers if emulator_seed(self.seed(env, i)) < 2**31)
            self.seedings[env] = number + 1
            segment = Segment(self.seed(env, number), [])
            self.segments[env : env + 1] = [segment]
            self.actions.begin(env)
            seeds[env] = emulator_seed(segment.seed)
        return seeds

    def _reset(self, mask: NDArray[np.bool_], seeds: NDArray[np.int64]) -> None:
        self.observations = self.vector.reset(seed=seeds[mask], options={"reset_mask": mask})[0]

    def _replay(self) -> None:
        """Replay all side by side, so that they end together."""
        logged = [self.actions[env] for env in range(self.num_envs)]
        rows = max(map(len, logged))
        actions = np.zeros((rows, self.num_envs), np.int64)  # what comes before its seeding does not matter
        resets: dict[int, dict[int, int]] = defaultdict(dict)
        for env, segment in enumerate(self.segments):
            begin = rows - len(logged[env])
            actions[begin:, env] = logged[env]
            resets[begin][env] = emulator_seed(segment.seed)
            for offset in segment.resets:
                resets[begin + offset][env] = -1
        for row in tqdm(range(rows + 1), desc="replay", unit="step", delay=2, leave=False):
            if row in resets:
                seeds = np.array([resets[row].get(env, -2) for env in range(self.num_envs)])
                self._reset(seeds != -2, seeds)
            if row < rows:
                self.observations = self.vector.step(actions[row])[0]


class AtariEngine:
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
            self.game.leave()
        elif self.k is not None:  # it never comes again
            self.clear()
        self.seed, self.k = schedule.seed, schedule.task_at(step)
        if self.k not in self.games:
            self.games[self.k] = self._emulators(self.k)
        self.game.start()

    def reset(self, done: Tensor | None = None) -> None:
        """Start an episode where ``done``, (N,); everywhere if it is ``None``."""
        mask = np.ones(self.num_envs, dtype=bool) if done is None else done.numpy()
        if not self.game.fresh:
            self.game.reset(mask)

    def step(self, actions: Tensor | NDArray[Any]) -> StepResult:
        """Step all, actions (N,)."""
        array = actions.cpu().numpy() if isinstance(actions, Tensor) else actions
        rewards, terminated, truncated = map(torch.from_numpy, self.game.step(array))
        return rewards.double(), terminated, truncated, ()

    def single_env(self, schedule: Schedule, step: int) -> TaskEnv:
        """The game that is on, alone."""
        env = TaskEnv(self.make_task, self.spaces, stride=0)
        env.enter(schedule, step)
        return env

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
