"""Atari games on ale-py's vector environment: all emulators of a game stepped at once, in threads.

The wrappers of a task's single environment determine the options of the faster vector environment that does
the same, bit for bit: see :func:`neoteny.envs.atari.game.vector_options`.
"""

from __future__ import annotations

import contextlib
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
from neoteny.envs.atari.proof import play
from neoteny.envs.engine import StepResult
from neoteny.envs.observations import ObservationSpec
from neoteny.envs.schedule import Schedule
from neoteny.envs.seeds import episode_seed
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction, check_spaces, is_shipped, make_task_env

RESEED_AFTER = 5_000
"""Steps since an emulator's last seeding after which its next reset uses a new seed."""


@dataclasses.dataclass(frozen=True)
class AtariConfig:
    """Atari games on ale-py's vector environment."""

    name: ClassVar[str] = "atari"
    gradual: ClassVar[bool] = False
    on_cpu: ClassVar[bool] = True
    otherwise: ClassVar[str] = "the games of this stream are stepped one by one"

    replay: bool = dataclasses.field(default=True, metadata={"resumable": True})
    """On resume, replay the games from their last seeding for bit-identical results; else start new
    episodes."""

    def recognizes(self, env: gym.Env) -> bool:
        """Whether it is an Atari game, in any wrappers."""
        return is_game(env)

    def covers(self, task: TaskFunction, k: int, seed: int) -> None:
        """Raise UncoveredError unless ale-py's vector environment does the same; a user's game is played."""
        env = task(k, seed)
        with contextlib.closing(env):
            options = vector_options(env)
            if not is_shipped(task):
                play(env, options)

    def unrepeatable(self, task: TaskFunction, spaces: Spaces, schedule: Schedule) -> str:
        """Nothing: an emulator's state is a function of its seed and actions."""
        return ""

    def observation_spec(self, env: gym.Env) -> ObservationSpec | None:
        """``None``: the space says all."""
        return None

    def check(self, num_envs: int) -> None:
        """Any number of environments is accepted."""

    def make(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, device: torch.device | str | None
    ) -> AtariEngine:
        """An engine for N sub-environments."""
        is_cuda = torch.device(device or "cpu").type == "cuda"
        return AtariEngine(task, spaces, num_envs, self.replay, pinned=is_cuda)


@dataclasses.dataclass
class Segment:
    """The history of an emulator since it was seeded, without its actions."""

    seed: int
    """Seed with which a single environment would be reset."""
    resets: list[int]
    """Steps since the seeding at which it was reset without a seed."""


class Emulators:
    """N emulators of one game, with a log from which their state is restored by replay.

    An emulator's state is a function of its seed, the actions since and the steps at which it was reset.

    Args:
        make: creates the vector environment.
        num_envs: N.
        actions: number of actions.
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
        """One per emulator; empty before the first seeding."""
        self.seedings = np.zeros(num_envs, np.int64)
        """Number of each emulator's next seeding, (N,)."""
        self.checksum: int | None = None

    def start(self) -> str:
        """Create the vector environment if there is none yet, and replay the log.

        Returns:
            Why all emulators must be reset, because the replay gave other observations than were saved; an
            empty string if it did not.
        """
        if self.vector is not None:
            self.wait()
            return ""
        self.vector = self.make()
        self.observations = self.vector.reset()[0]
        if not self.segments:
            return ""
        self._replay()
        if zlib.crc32(self.observations) == self.checksum:
            return ""
        self.segments = []
        self.actions.clear()
        return (
            "the replay of an Atari game gave other observations than before, so new episodes began: the "
            "game is not a function of seeds and actions, or the version of ale-py is another"
        )

    @property
    def fresh(self) -> bool:
        """Whether no step was made since all emulators were reset."""
        return bool(self.segments) and all(
            [0, *segment.resets][-1] == self.actions.length(env) for env, segment in enumerate(self.segments)
        )

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Start episodes where ``mask``, (N,), is true."""
        self._reset(mask, self._seeds(mask))

    def leave(self) -> None:
        """Reset all emulators in a background thread, ready for the next visit to this game."""
        mask = np.ones(self.num_envs, dtype=bool)
        self.leaving = threading.Thread(target=self._reset, args=(mask, self._seeds(mask)))
        self.leaving.start()

    def wait(self) -> None:
        """Wait until the background reset of :meth:`leave` is over."""
        if self.leaving is not None:
            self.leaving.join()
            self.leaving = None

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Step all emulators; returns rewards, terminated and truncated, (N,)."""
        self.vector.send(actions.astype(np.int64, casting="same_kind"))
        self.actions.append(actions)  # while the emulators run
        self.observations, *ends, _ = self.vector.recv()
        return tuple(ends)

    def state_dict(self) -> dict[str, Any]:
        """Seeds, resets and actions, from which the emulators can be replayed."""
        self.wait()
        segments = [
            {**dataclasses.asdict(segment), "actions": self.actions[env]}
            for env, segment in enumerate(self.segments)
        ]
        checksum = self.checksum if self.vector is None else zlib.crc32(self.observations)
        return {"segments": segments, "seedings": self.seedings.copy(), "checksum": checksum}

    def load_state_dict(self, state: dict[str, Any], replay: bool) -> None:
        """Load a saved log, to be replayed by :meth:`start`; without ``replay`` only the next seeds."""
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
        """Log a reset where ``mask``; returns emulator seeds, (N,), -1 for a reset without a seed."""
        seeds = np.full(len(mask), -1)
        unseeded = not self.segments
        for env in np.flatnonzero(mask).tolist():
            steps = self.actions.length(env)
            if not unseeded and steps < RESEED_AFTER:
                self.segments[env].resets.append(steps)
                continue
            # Of a seed, ale-py's single environment makes one of 32 bits for its emulator, but the vector
            # environment takes 31 bits only: seeds whose emulator's has 32 are skipped.
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
        """Replay all logs in parallel, aligned so that they end at the same step."""
        logged = [self.actions[env] for env in range(self.num_envs)]
        rows = max(map(len, logged))
        actions = np.zeros(
            (rows, self.num_envs), np.int64
        )  # before an emulator's seeding, any action will do
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

    The emulators of recurring tasks are kept, since creating and seeding them takes thirty times as long as a
    reset; at a switch those of the old game are reset in the background. An emulator is seeded at its first
    reset, and again at the first reset 5,000 steps or more after that, so that its log stays short. Results
    do not depend on ``threads``.

    Args:
        num_envs: N.
        replay: replay the games of a loaded state; else start new episodes.
        threads: number of threads that step the emulators; 0 for one per core, at most N.
        pinned: give observations in pinned memory, from which a GPU copies them without being waited for.
    """

    device = torch.device("cpu")
    capturable = False

    def __init__(
        self,
        task: TaskFunction,
        spaces: Spaces,
        num_envs: int,
        replay: bool = True,
        threads: int = 0,
        pinned: bool = False,
    ) -> None:
        self.make_task, self.spaces, self.num_envs = task, spaces, num_envs
        self.replay, self.threads, self.pinned = replay, threads, pinned
        self.games: dict[int, Emulators] = {}
        self.clear()

    @property
    def game(self) -> Emulators:
        """The emulators of the current task."""
        assert self.k is not None
        return self.games[self.k]

    @property
    def observations(self) -> Tensor:
        """The latest observations, (N, ...)."""
        seen = torch.from_numpy(self.game.observations)
        return seen.pin_memory() if self.pinned else seen.clone()

    def clear(self) -> None:
        """Discard all episodes and tasks, as if just constructed."""
        self.close()
        self.games.clear()
        self.k: int | None = None
        self.inexact = ""

    def enter(self, schedule: Schedule, step: int) -> None:
        """Switch to the task of the stream's ``step``; all environments must be reset afterwards."""
        if self.k is not None and schedule.cycle:
            self.game.leave()
        elif self.k is not None:  # it never comes again
            self.clear()
        self.seed, self.k = schedule.seed, schedule.task_at(step)
        if self.k not in self.games:
            self.games[self.k] = self._emulators(self.k)
        self.inexact = self.game.start() or self.inexact

    def reset(self, done: Tensor | None = None) -> None:
        """Start new episodes where ``done``, (N,), is true; in all environments if it is ``None``."""
        mask = np.ones(self.num_envs, dtype=bool) if done is None else done.numpy()
        if not self.game.fresh:
            self.game.reset(mask)

    def begin_step(self) -> None:
        """Nothing to do before a step."""

    def step(self, actions: Tensor | NDArray[Any]) -> StepResult:
        """Step all environments, actions (N,)."""
        array = actions.cpu().numpy() if isinstance(actions, Tensor) else actions
        rewards, terminated, truncated = map(torch.from_numpy, self.game.step(array))
        return rewards.double(), terminated, truncated, ()

    def single_env(self, schedule: Schedule, step: int) -> TaskEnv:
        """A single environment of the current game."""
        return make_task_env(self.make_task, self.spaces, schedule, step)

    def state_dict(self) -> dict[str, Any]:
        """The logs of all games."""
        return {"games": {str(k): game.state_dict() for k, game in self.games.items()}}

    def load_state_dict(self, state: dict[str, Any], schedule: Schedule, step: int, returns: Tensor) -> None:
        """Restore a state that was saved at ``step`` of a stream with the same tasks.

        The current game is replayed now, others when they are next entered. Without ``replay``, or if it
        gives other observations than were saved, new episodes begin.
        """
        self.clear()
        self.seed = schedule.seed
        for k, game in state["games"].items():
            self.games[int(k)] = self._emulators(int(k))
            self.games[int(k)].load_state_dict(game, self.replay)
        self.enter(schedule, step)
        if not self.replay:
            self.inexact = "running episodes were replaced by new ones (--stream.atari.no-replay)"
        if self.inexact:
            self.reset()

    def close(self) -> None:
        """Close the emulators of all games."""
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
