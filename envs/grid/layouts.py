"""Layouts of a MiniGrid task, from the package's own generators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from neoteny.envs.grid.task import GridTask


class LayoutPool:
    """A pool of B layouts of a task, from which episodes start; renewed while the agent is on the task.

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
        self.size = 1 if task.layout is not None else size
        # Slots are renewed in turn, so slot i holds the newest layout whose number is i modulo the size.
        drawn = [self._draw(ticks + number) for number in range(self.size)]
        turn = np.argsort([(ticks + number) % self.size for number in range(self.size)])
        cells, data = np.stack([row for row, _ in drawn])[turn], np.array([ints for _, ints in drawn])[turn]
        self.cells = torch.as_tensor(cells, device=device)
        """(B, cells and mission), uint8."""
        self.data = torch.as_tensor(data.T.copy(), device=device)
        """(number of the layout, steps, place, carried, data of the rules; B), int64."""

    def renew(self, number: int) -> range | tuple[()]:
        """Replace the ``number`` oldest layouts; returns the numbers of the renewals."""
        if self.task.layout is not None:
            return ()
        renewals = range(self.ticks, self.ticks + number)
        for renewal in renewals:
            row, data = self._draw(renewal + self.size)
            self.cells[renewal % self.size] = torch.as_tensor(row, device=self.cells.device)
            self.data[:, renewal % self.size] = torch.as_tensor(data, device=self.data.device)
        self.ticks += number
        return renewals

    def seed_of(self, number: int) -> int:
        """The seed of layout ``number``, counted in the order of drawing."""
        if self.task.layout is not None:
            return self.task.layout
        return self.seed(number)

    def _draw(self, number: int) -> tuple[np.ndarray, list[int]]:
        row, data = self.task.draw(self.seed_of(number))
        return row, [number, 0, *data]
