"""MiniGrid on tensors: N environments stepped at once, on the agent's device.

Layouts come from the minigrid package's generators, the rules from its objects
(:mod:`neoteny.envs.grid.tables`, :mod:`neoteny.envs.grid.rules`). A step is a few table lookups for all
environments at once, without a branch that depends on data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import NDArray
from torch import Tensor

from neoteny.envs.engine import StepResult, UncoveredError, without_gradients
from neoteny.envs.grid.board import Board, View, mix
from neoteny.envs.grid.layouts import LayoutPool, unrepeatable_layouts
from neoteny.envs.grid.proof import AGAIN, NoGlobalDraws, check_code, check_layouts, play
from neoteny.envs.grid.task import GridTask, observation_spec
from neoteny.envs.observations import ObservationSpec
from neoteny.envs.repeatable import first_reason
from neoteny.envs.schedule import Schedule
from neoteny.envs.seeds import episode_seed
from neoteny.envs.tasks import Spaces, TaskEnv, TaskFunction, check_spaces, make_task_env

RENEW_EVERY = 16
"""Steps of all sub-environments after which one layout of a pool is replaced by a new one."""

TOGETHER = 16
"""Layouts that are renewed at once, since a tensor operation for one costs as much as for all of them."""


MOST_LAYOUTS = 2**16
"""Drawing them takes a minute, at the start and at each switch."""


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """MiniGrid as tensors on the agent's device."""

    name: ClassVar[str] = "grid"
    gradual: ClassVar[bool] = False
    on_cpu: ClassVar[bool] = True
    otherwise: ClassVar[str] = "MiniGrid's own package steps this stream, many times slower than tensors"

    layouts: int = 256
    """Size of each task's pool of layouts, from which episodes start; a power of two."""

    def recognizes(self, env: gym.Env) -> bool:
        """Whether it is a MiniGrid environment."""
        return isinstance(env.unwrapped, MiniGridEnv)

    def covers(self, task: TaskFunction, k: int, seed: int) -> None:
        """Raise UncoveredError unless tables and rules reproduce the task; what is a user's is tried."""
        env = task(k, seed)
        try:
            definition = GridTask(env)
            if definition.users:
                self._prove(functools.partial(task, k, seed), definition, k, seed)
            else:
                definition.draw(0)
        except UncoveredError:
            raise
        except Exception as error:
            raise UncoveredError(f"{type(error).__name__}: {error}") from error
        finally:
            env.close()

    def unrepeatable(self, task: TaskFunction, spaces: Spaces, schedule: Schedule) -> str:
        """Why layouts of the same seed may differ; empty if they do not."""
        return first_reason(schedule, lambda visit: unrepeatable_layouts(task, schedule, visit))

    def observation_spec(self, env: gym.Env) -> ObservationSpec | None:
        """MiniGrid's codes, or what the package's wrappers turn them into."""
        return observation_spec(env)

    def check(self, num_envs: int) -> None:
        """Raise ValueError unless ``layouts`` is a power of two, and not too large to be drawn."""
        if not 1 <= self.layouts <= MOST_LAYOUTS or self.layouts & (self.layouts - 1):
            allowed = f"a power of two up to {MOST_LAYOUTS:,}"
            raise ValueError(f"--stream.grid.layouts must be {allowed}, not {self.layouts}")

    def make(
        self, task: TaskFunction, spaces: Spaces, num_envs: int, device: torch.device | str | None
    ) -> GridEngine:
        """An engine for N sub-environments, on the agent's device."""
        return GridEngine(task, spaces, num_envs, device or "cpu", self.layouts)

    def _prove(self, make: Callable[[], gym.Env], task: GridTask, k: int, seed: int) -> None:
        """Raise UncoveredError unless a user's task is found to do the same on tensors as in the package."""
        if task.layout is not None:
            seeds = [task.layout]
        else:
            seeds = [episode_seed(seed, k, 0, number) for number in range(self.layouts)]
        check_code(task.env)
        with NoGlobalDraws():
            check_layouts(make, seeds)
            env = make()
            spaces = env.observation_space, env.action_space
            engine = GridEngine(lambda k, seed: env, spaces, 4, layouts=min(self.layouts, AGAIN))
            engine.enter(Schedule(tasks=(k,), seed=seed), 0)
            play(engine, make)


class GridEngine:
    """N environments of MiniGrid on tensors.

    Environment ``i`` does not depend on N: its layouts and random motion are functions of seed, task, ``i``
    and the number of steps and episodes so far.

    Args:
        num_envs: N.
        device: device of all tensors.
        layouts: as in :class:`GridConfig`.
        renew_every: steps of all sub-environments after which one layout is replaced.
    """

    capturable = True
    inexact = ""  # the state is stored, not replayed

    def __init__(
        self,
        task: TaskFunction,
        spaces: Spaces,
        num_envs: int,
        device: torch.device | str = "cpu",
        layouts: int = 256,
        renew_every: int = RENEW_EVERY,
    ) -> None:
        self.make_task, self.spaces, self.num_envs = task, spaces, num_envs
        self.device, self.layouts, self.renew_every = torch.device(device), layouts, renew_every
        self.number = torch.arange(num_envs, device=self.device)
        self.clear()

    def clear(self) -> None:
        """Discard all episodes and tasks, as if just constructed."""
        self.pools: dict[int, LayoutPool] = {}
        self.episodes: dict[int, Tensor] = {}
        self.steps: dict[int, int] = {}

    def enter(self, schedule: Schedule, step: int) -> None:
        """Switch to the task of the stream's ``step``; all environments must be reset afterwards."""
        self.k, self.seed = schedule.task_at(step), schedule.seed
        if not schedule.cycle:  # earlier tasks never recur
            for kept in (self.pools, self.episodes, self.steps):
                for k in kept.keys() - {self.k}:
                    del kept[k]
        self.steps.setdefault(self.k, 0)
        episodes = self.episodes.setdefault(self.k, torch.full((self.num_envs,), -1, device=self.device))
        key = mix(
            self.number
            + int(np.random.SeedSequence([self.seed, self.k]).generate_state(1, np.uint64)[0] >> 1)
        )
        # Each environment visits the layouts of the pool in its own order; an odd stride visits all of them.
        self.offset, self.stride = mix(key), mix(key + 1) | 1
        pool = self.pools.get(self.k) or self._make_pool()
        self.pools[self.k] = pool
        self.task = pool.task
        self.view = View(self.task, self.device)
        self.first = self.view(pool.cells, *pool.data[2:4])
        """First observation of each layout in the pool, (layouts, ...)."""
        cells, state = pool.cells[:1].repeat(self.num_envs, 1), pool.data[:, :1].repeat(1, self.num_envs)
        self.board = Board(self.task, cells, state, episodes, key)
        self.seen = self.first[:1].repeat(self.num_envs, *(1,) * len(self.task.shape))

    def reset(self, done: Tensor | None = None) -> None:
        """Start new episodes where ``done``, (N,), is true; in all environments if it is ``None``."""
        pool, board = self.pools[self.k], self.board
        if done is None:
            done = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        board.episodes += done
        slot = (self.offset + board.episodes * self.stride) & (pool.size - 1)
        # Sums and products modulo 256 are exact and, for bytes, several times as fast as torch.where.
        fresh = pool.cells.index_select(0, slot)
        board.cells.add_(fresh.sub_(board.cells).mul_(done[:, None]))
        board.state.copy_(torch.where(done, pool.data.index_select(1, slot), board.state))
        first = self.first.index_select(0, slot)
        torch.where(done.view(-1, *(1,) * (first.dim() - 1)), first, self.seen, out=self.seen)

    def begin_step(self) -> None:
        """Count a step; if it is time, draw a layout, or renew those from which later episodes start."""
        self.steps[self.k] += 1
        if self.device.type == "cuda" and self.steps[self.k] % self.renew_every == 0:
            self.pools[self.k].draw_next()  # one at a time, while the GPU is busy
        if self.steps[self.k] % (self.renew_every * TOGETHER) == 0:
            self._renew()

    def step(self, actions: Tensor | NDArray[Any]) -> StepResult:
        """Step all environments, actions (N,); observations of ended episodes are their final ones."""
        board = self.board
        with without_gradients():
            results = board.step(torch.as_tensor(actions, device=self.device))
            self.seen.copy_(self.view(board.cells, board.place, board.carried))
        reward, terminated, truncated = (tensor.clone() for tensor in results)
        return reward, terminated, truncated, ()

    @property
    def observations(self) -> Tensor:
        """The latest observations, (N, ...)."""
        return self.seen.clone()

    def single_env(self, schedule: Schedule, step: int) -> TaskEnv:
        """The minigrid package's environment of the current task."""
        return make_task_env(self.make_task, self.spaces, schedule, step)

    def state_dict(self) -> dict[str, Any]:
        """The state of all environments; layouts are not saved but drawn again from their seeds."""
        return {
            "cells": self.board.cells.clone(),
            "state": self.board.state.clone(),
            "observations": self.seen.clone(),
            "episodes": {str(k): episodes.clone() for k, episodes in self.episodes.items()},
            "steps": {str(k): steps for k, steps in self.steps.items()},
        }

    def load_state_dict(self, state: dict[str, Any], schedule: Schedule, step: int, returns: Tensor) -> None:
        """Restore a state that was saved at ``step`` of a stream with the same tasks.

        Raises:
            ValueError: the tensors have other shapes than the task's.
        """
        self.pools.clear()
        self.episodes = {
            int(k): episodes.to(self.device, copy=True) for k, episodes in state["episodes"].items()
        }
        self.steps = {int(k): steps for k, steps in state["steps"].items()}
        self.enter(schedule, step)
        own = {"cells": self.board.cells, "state": self.board.state, "observations": self.seen}
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} of shape {tuple(state[name].shape)} do not fit task {self.k}")
            tensor.copy_(state[name])

    def close(self) -> None:
        """Nothing to close."""

    def _make_pool(self) -> LayoutPool:
        """The pool of the current task, after the renewals so far."""
        env = self.make_task(self.k, self.seed)
        check_spaces(env, self.spaces, self.k)
        seed = functools.partial(episode_seed, self.seed, self.k, 0)
        renewed = self.steps[self.k] // (self.renew_every * TOGETHER) * TOGETHER
        return LayoutPool(GridTask(env), seed, self.layouts, self.device, renewed)

    def _renew(self) -> None:
        pool = self.pools[self.k]
        if (at := pool.renew(TOGETHER)) is not None:
            first = self.view(pool.cells.index_select(0, at), *pool.data[2:4].index_select(1, at))
            self.first.index_copy_(0, at, first)
