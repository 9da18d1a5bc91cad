"""Visits of a run to its tasks, and the scores of each."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neoteny.envs.audit import Fingerprint
from neoteny.runners.scores import Visit


class Episodes:
    """Visits to tasks, and the scores of the episodes in each.

    The score of an episode is its return, weighted by its length in steps. To a supervised learner a
    minibatch is an episode, with its accuracy and its number of samples.

    Of visits that have ended only the tasks and their starts are kept; their rows go to a journal.

    Args:
        chart: name of the chart of scores.
        recurring: whether tasks recur, so that what was reached in each has to be remembered.
    """

    def __init__(self, chart: str = "episodic_return", recurring: bool = True) -> None:
        self.chart, self.recurring = chart, recurring
        self.visit: Visit | None = None
        """The current visit."""
        self.tasks, self.starts = array("q"), array("q")
        """Task and first step of each visit, the current one too."""
        self._levels: dict[int, float] = {}  # return at the end of the last visit to each task
        self._level: float | None = None  # of the last visit
        self._waiting: list[tuple[int, Tensor]] = []  # step, and the episodes that ended then
        self._room = 64  # rows of the next reading
        self._latest: list[tuple[NDArray[Any], NDArray[Any], str | None]] = []  # since the last chart

    @property
    def task(self) -> int | None:
        """Task of the current visit; ``None`` before the first."""
        return self.visit.task if self.visit else None

    @property
    def step(self) -> int:
        """End of the current visit so far, in steps of the run."""
        return self.visit.end if self.visit else 0

    def begin_visit(
        self, task: int, start: int, fingerprint: Fingerprint | None = None, game: str | None = None
    ) -> None:
        """Begin a visit to a task at a step of the run; later episodes belong to it."""
        self.collect()
        if self.visit is not None and self.visit.episodes:
            self._reached(self.visit.task, self.visit.return_at_end)
        self.visit = Visit(task, start, self.level(task), fingerprint, end=start, game=game)
        self._visited(task, start)

    def level(self, task: int) -> float | None:
        """The return that a new visit to a task must reach to be as good as before.

        It is the ``return_at_end`` of the last earlier visit to the same task or, if there was none, of the
        visit before; ``None`` if no episode has ended yet.
        """
        return self._levels.get(task, self._level)

    def _reached(self, task: int, level: float) -> None:
        self._level = level
        if self.recurring:
            self._levels[task] = level

    def _visited(self, task: int, start: int) -> None:
        self.tasks.append(task)
        self.starts.append(start)

    def record(self, step: int, ended: Tensor | None) -> None:
        """Record the episodes that ended at a step.

        Args:
            step: of the run.
            ended: (3, N), as in :class:`neoteny.envs.Step`; on a GPU it stays there until :meth:`collect`.
        """
        assert self.visit is not None
        self.visit.end = step
        if ended is not None:
            self._waiting.append((step, ended.clone()))

    def score(self, values: Sequence[float], length: int, step: int) -> None:
        """Add the scores of episodes of ``length``, one after the other; the last ended at ``step``."""
        steps = step - length * np.arange(len(values))[::-1]
        self._add(np.asarray(values, float), np.full(len(values), length), steps)

    def recorded(self) -> Tensor:
        """What :meth:`collect` reads of the recorded episodes, in a vector, so that it is read with others.

        How many episodes ended is not known before it is read: their number is followed by a row each, for as
        many as there is room for.
        """
        if not self._waiting:
            return torch.zeros(1, dtype=torch.float64)
        made = torch.stack([row for _, row in self._waiting])
        ended = made[:, 0] != 0
        row, env = ended.nonzero_static(size=self._room, fill_value=0).unbind(1)
        rows = torch.cat((row[:, None].double(), made[row, 1:, env]), 1)
        return torch.cat((ended.sum()[None], rows.flatten()))

    def collect(self, numbers: NDArray[Any] | None = None) -> None:
        """Add recorded episodes to the current visit; ``numbers`` are those of :meth:`recorded`, if read."""
        if not self._waiting:
            return
        numbers = self.recorded().cpu().numpy() if numbers is None else numbers
        count = int(numbers[0])
        if count > self._room:
            self._room = count
            self.collect()
            return
        self._room = max(64, 2 * count)
        row, returns, lengths = numbers[1:].reshape(-1, 3)[:count].T
        steps = np.array([step for step, _ in self._waiting])
        self._waiting.clear()
        self._add(returns, lengths.astype(int), steps[row.astype(int)])

    def _add(self, values: NDArray[Any], lengths: NDArray[Any], steps: NDArray[Any]) -> None:
        if not len(values):
            return
        visit = self.visit
        assert visit is not None
        visit.end = max(visit.end, int(steps[-1]))
        visit.add(values, lengths, steps)
        self._latest.append((values, lengths, visit.game))

    def charts(self) -> dict[str, float]:
        """Means over the episodes since the last call, also per game; empty if no episode ended."""
        self.collect()
        if not self._latest:
            return {}
        values, lengths, games = zip(*self._latest)
        charts = {f"charts/{self.chart}": float(np.concatenate(values).mean())}
        if self.chart == "episodic_return":
            charts["charts/episodic_length"] = float(np.concatenate(lengths).mean())
        for game in filter(None, dict.fromkeys(games)):
            of_game = [row[0] for row in self._latest if row[2] == game]
            charts[f"game/{game}"] = float(np.concatenate(of_game).mean())
        self._latest.clear()
        return charts

    def row(self) -> dict[str, Any]:
        """The scores of the current visit, and the fingerprint of its task, for the journal."""
        assert self.visit is not None
        known = self.visit.fingerprint
        return self.visit.row() | ({"fingerprint": dataclasses.asdict(known)} if known else {})

    def last_scores(self) -> dict[str, float]:
        """The ``task/`` tags of the current visit so far, without values that are not finite."""
        row = self.row()
        tags = ("return_at_end", "return_auc", "human_normalized", "recovery_steps", "recovered")
        return {f"task/{tag}": row[tag] for tag in tags if row.get(tag) is not None and np.isfinite(row[tag])}

    def state(self) -> dict[str, Any] | None:
        """The current visit, for a checkpoint."""
        return None if self.visit is None else dataclasses.asdict(self.visit)

    def restore(self, ended: Iterable[Mapping[str, Any]], current: Mapping[str, Any] | None) -> None:
        """Restore the visits that have ended, from their rows, and the current one of a checkpoint."""
        for row in ended:
            self._visited(row["task"], row["start"])
            if row["episodes"]:
                self._reached(row["task"], row["return_at_end"])
        if current is not None:
            self.visit = visit_of(current)
            self._visited(self.visit.task, self.visit.start)


def visit_of(state: Mapping[str, Any]) -> Visit:
    """A visit of a checkpoint."""
    return Visit(**{**state, "fingerprint": state["fingerprint"] and Fingerprint(**state["fingerprint"])})
