"""Schedules: when the task of a stream changes, and which task comes next."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

Order = Literal["cycle", "random"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When the task changes and which task comes next, as pure functions of the step.

    A *visit* is one stay at a task. All options can be combined.

    >>> schedule = Schedule(period=100, tasks=(0, 2), drift_fraction=0.5)
    >>> [schedule.task_at(step) for step in (0, 99, 100, 200)]
    [0, 0, 2, 0]
    >>> [schedule.progress_at(step) for step in (0, 100, 125, 150, 199)]
    [1.0, 0.0, 0.5, 1.0, 1.0]
    >>> print(schedule)
    tasks 0, 2 in cycles, each for 100 steps, the change gradual over the first 50 %

    Args:
        period: environment steps per visit, summed over sub-environments; ``None``: a single endless visit.
        tasks: number of recurring tasks, or their numbers in the order of visits; ``None`` for a new task at
            every visit.
        order: of recurring tasks: the same in every cycle, or drawn anew for each, keeping repetitions.
        jitter: random shift of each switch, at most this share of half a period either way; 0 to less than 1.
            The mean period stays the same.
        drift_fraction: share of each visit, from its start, over which the old task turns gradually into the
            new; 0 for an abrupt switch, 1 for a change over the whole visit.
        seed: of the random order and shifts.
    """

    period: int | None = None
    tasks: int | tuple[int, ...] | None = None
    order: Order = "cycle"
    jitter: float = 0.0
    drift_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.period is not None and self.period < 1:
            raise ValueError(f"the period of a stream must be at least 1 step, not {self.period}")
        if self.tasks is not None and not self.cycle:
            raise ValueError(f"a stream needs at least 1 task, not {self.tasks}")
        if self.cycle and min(self.cycle) < 0:
            raise ValueError(f"tasks are numbered from 0, not {self.tasks}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"the jitter of a stream must be at least 0 and below 1, not {self.jitter}")
        if not 0 <= self.drift_fraction <= 1:
            raise ValueError(
                f"the drift fraction must be at least 0 and at most 1, not {self.drift_fraction}"
            )
        if self.order == "random" and self.tasks is None:
            raise ValueError("tasks that never recur cannot come in random order")

    def __str__(self) -> str:
        """Describe it in one line."""
        if self.period is None:
            return "one task for ever"
        order = {"cycle": "in cycles", "random": "in random order"}[self.order]
        if isinstance(self.tasks, tuple):
            which = f"tasks {', '.join(map(str, self.tasks))} {order}"
        else:
            which = "ever new tasks" if self.tasks is None else f"{self.tasks} tasks {order}"
        jitter = f", give or take {50 * self.jitter:g} % at each end" if self.jitter else ""
        gradual = (
            f", the change gradual over the first {100 * self.drift_fraction:g} %"
            if self.drift_fraction
            else ""
        )
        return f"{which}, each for {self.period:,} steps{jitter}{gradual}"

    @property
    def cycle(self) -> tuple[int, ...]:
        """The recurring tasks in order; empty if every visit is to a new task."""
        return self.tasks if isinstance(self.tasks, tuple) else tuple(range(self.tasks or 0))

    def start_of(self, visit: int) -> int:
        """The step at which visit 0, 1, 2, ... begins."""
        if self.period is None or visit <= 0:
            return 0
        early = self.jitter * (_uniform(self.seed, visit) - 0.5) if self.jitter else 0.0
        return round(self.period * (visit + early))

    def visit_at(self, step: int) -> int:
        """Number of the visit at ``step``, from 0."""
        if self.period is None:
            return 0
        visit = step // self.period
        if not self.jitter:
            return visit
        # Jitter may have ended this visit early, or begin it late.
        return visit + (self.start_of(visit + 1) <= step) - (self.start_of(visit) > step)

    def switched_at(self, step: int) -> int:
        """The step at which the visit at ``step`` began."""
        return self.start_of(self.visit_at(step))

    def task_of(self, visit: int) -> int:
        """Number of the task of visit 0, 1, 2, ..."""
        if self.tasks is None:
            return visit
        cycle, place = divmod(visit, len(self.cycle))
        if self.order == "random":
            place = _permutation(self.seed, cycle, len(self.cycle))[place]
        return self.cycle[place]

    def task_at(self, step: int) -> int:
        """Number of the task at ``step``."""
        return self.task_of(self.visit_at(step))

    def progress_at(self, step: int) -> float:
        """Progress of the gradual change at ``step``: from 0, the old task, to 1, the new one.

        Always 1 in a second consecutive visit to the same task.
        """
        visit = self.visit_at(step)
        if visit == 0 or not self.drift_fraction or self.task_of(visit) == self.task_of(visit - 1):
            return 1.0
        start = self.start_of(visit)
        return min(1.0, (step - start) / (self.drift_fraction * (self.start_of(visit + 1) - start)))


# Cached, since they are used at every step: a draw costs as much as a step of a simple environment.
@functools.lru_cache
def _uniform(seed: int, visit: int) -> float:
    return float(np.random.default_rng([seed, visit]).random())


@functools.lru_cache
def _permutation(seed: int, cycle: int, tasks: int) -> list[int]:
    return np.random.default_rng([seed, cycle]).permutation(tasks).tolist()
