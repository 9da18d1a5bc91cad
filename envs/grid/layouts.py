"""Layouts of a MiniGrid task, from the package's own generators."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from neoteny.envs.engine import UncoveredError
from neoteny.envs.grid.task import GridTask
from neoteny.envs.repeatable import later, remembered, shared_state
from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import TaskFunction
from neoteny.envs.transfer import to_device

REPEATED = 16
"""Layouts that are drawn to see whether the last of them is the same when drawn first."""

TRIES = 100
"""Seeds after which a task is given up of which the tables hold no layout."""


class LayoutPool:
    """A pool of B layouts of a task, from which episodes start; renewed while the agent is on the task.

    A layout that the tables do not hold is drawn again, from another seed.

    Args:
        task: the task.
        seed: number of a layout, counted in the order of drawing -> its seed.
        size: B, a power of two; 1 is used for a task with a fixed layout.
        device: device of the layouts.
        ticks: number of renewals so far.
    """

    def __init__(
        self, task: GridTask, seed: Callable[[int], int], size: int, device: torch.device, ticks: int = 0
    ) -> None:
        self.task, self.seed, self.ticks = task, seed, ticks
        self.redrawn: dict[int, int] = {}
        """Seeds of the layouts that were drawn again, by number."""
        self.next: list[tuple[np.ndarray, list[int]]] = []
        """Layouts of the next renewals, on the host."""
        self.size = 1 if task.layout is not None else size
        # Slots are renewed in turn, so slot i holds the newest layout whose number is i modulo the size.
        drawn = [self._draw(ticks + number) for number in range(self.size)]
        turn = np.argsort([(ticks + number) % self.size for number in range(self.size)])
        cells, data = np.stack([row for row, _ in drawn])[turn], np.array([ints for _, ints in drawn])[turn]
        self.cells = torch.as_tensor(cells, device=device)
        """(B, cells and mission), uint8."""
        self.data = torch.as_tensor(data.T.copy(), device=device)
        """(number of the layout, steps, place, carried, data of the rules; B), int64."""

    def draw_next(self) -> None:
        """Draw a layout of the next renewal, on the host alone."""
        if self.task.layout is None:
            self.next.append(self._draw(self.ticks + len(self.next) + self.size))

    def renew(self, number: int) -> Tensor | None:
        """Replace the ``number`` oldest layouts, at most all; returns their places, if there were any.

        Those that :meth:`draw_next` has not drawn yet are drawn now.
        """
        if self.task.layout is not None:
            return None
        while len(self.next) < number:
            self.draw_next()
        rows, data = (np.stack(each)[-self.size :] for each in zip(*self.next))
        places = np.arange(self.ticks, self.ticks + number)[-self.size :] % self.size
        self.ticks, self.next = self.ticks + number, []
        device = self.cells.device
        at = to_device(torch.from_numpy(places), device)
        self.cells.index_copy_(0, at, to_device(torch.from_numpy(rows), device))
        self.data.index_copy_(1, at, to_device(torch.from_numpy(data.T.copy()), device))
        return at

    def seed_of(self, number: int) -> int:
        """The seed of layout ``number``, counted in the order of drawing."""
        if self.task.layout is not None:
            return self.task.layout
        return self.redrawn[number] if number in self.redrawn else self.seed(number)

    def _draw(self, number: int) -> tuple[np.ndarray, list[int]]:
        for attempt in range(TRIES):
            try:
                row, data = self.task.draw(self.seed_of(number))
            except UncoveredError as reason:
                if self.task.layout is not None or attempt == TRIES - 1:
                    raise
                self._draw_again(number, attempt, reason)
            else:
                break
        return row, [number, 0, *data]

    def _draw_again(self, number: int, attempt: int, reason: UncoveredError) -> None:
        """Choose another seed for layout ``number``; the first time, say so."""
        if not self.redrawn:
            print(
                f"layout {number} of {type(self.task.env).__name__} is drawn again, and so is each like it: "
                f"{reason}; --stream.engine single steps all layouts",
                file=sys.stderr,
                flush=True,
            )
        seed = np.random.SeedSequence([self.seed(number), attempt]).generate_state(1)[0]
        self.redrawn[number] = int(seed >> 1)  # 31 bits


def unrepeatable_layouts(make: TaskFunction, schedule: Schedule, visit: int) -> str:
    """Why layouts of a visit's task may not be functions of their seeds; empty if they seem to be."""
    k = schedule.task_of(visit)
    with shared_state() as shared:
        old, fresh = make(k, schedule.seed), make(k, schedule.seed)
        watched = shared.watch(old)
        task = GridTask(old)
        seed, first, again = 0, None, None
        for each in range(REPEATED) if task.layout is None else (task.layout, task.layout):
            with contextlib.suppress(UncoveredError):  # a pool leaves it out
                seed, first = each, task.draw(each)
        if first is not None:
            with later():
                again = GridTask(fresh).draw(seed)
        reason = shared.changed() or watched() or remembered(old, fresh)
        if first and again and not (np.array_equal(first[0], again[0]) and first[1] == again[1]):
            reason = reason or "a layout was another when it was drawn again"
        old.close()
        fresh.close()
    return reason
