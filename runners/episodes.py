"""Visits of a run to its tasks, and the scores of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neoteny.envs.audit import Fingerprint
from neoteny.runners.scores import Visit, level_to_recover


class Episodes:
    """Visits to tasks, and the scores of the episodes in each.

    The score of an episode is its return, weighted by its length in steps. To a supervised learner a
    minibatch is an episode, with its accuracy and its number of samples.

    Args:
        chart: name of the chart of scores.
    """

    def __init__(self, chart: str = "episodic_return") -> None:
        self.chart = chart
        self.visits: list[Visit] = []
        self._waiting: list[tuple[int, Tensor]] = []  # step, and the episodes that ended then
        self._latest: list[tuple[NDArray[Any], NDArray[Any], str | None]] = []  # since the last chart

    @property
    def task(self) -> int | None:
        """Task of the current visit; ``None`` before the first."""
        return self.visits[-1].task if self.visits else None

    @property
    def step(self) -> int:
        """End of the current visit so far, in steps of the run."""
        return self.visits[-1].end if self.visits else 0

    def begin_visit(
        self, task: int, start: int, fingerprint: Fingerprint | None = None, game: str | None = None
    ) -> None:
        """Begin a visit to a task at a step of the run; later episodes belong to it."""
        self.collect()
        level = level_to_recover(self.visits, task)
        self.visits.append(Visit(task, start, level, fingerprint, end=start, game=game))

    def record(self, step: int, ended: Tensor | None) -> None:
        """Record the episodes that ended at a step.

        Args:
            step: of the run.
            ended: (3, N), as in :class:`neoteny.envs.Step`; on a GPU it stays there until :meth:`collect`.
        """
        self.visits[-1].end = step
        if ended is not None:
            self._waiting.append((step, ended.clone()))

    def score(self, values: Sequence[float], length: int, step: int) -> None:
        """Add the scores of episodes of ``length``, one after the other; the last ended at ``step``."""
        steps = step - length * np.arange(len(values))[::-1]
        self._add(np.asarray(values, float), np.full(len(values), length), steps)

    def collect(self) -> None:
        """Add recorded episodes to the current visit."""
        if self._waiting:
            steps, rows = zip(*self._waiting)
            self._waiting.clear()
            made = torch.stack(rows)
            row, env = made[:, 0].nonzero().unbind(1)
            # A single array, since each read from a GPU takes time.
            numbers = torch.cat((row[:, None].double(), made[row, 1:, env]), 1).cpu().numpy()
            self._add(numbers[:, 1], numbers[:, 2].astype(int), np.array(steps)[numbers[:, 0].astype(int)])

    def _add(self, values: NDArray[Any], lengths: NDArray[Any], steps: NDArray[Any]) -> None:
        if not len(values):
            return
        visit = self.visits[-1]
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

    def tasks(self) -> dict[str, Any]:
        """Task, start and fingerprint of each visit, for ``stream.json``."""
        names = ("task", "start", "fingerprint")
        rows = [{name: row[name] for name in names if row[name] is not None} for row in self.state()]
        return {"visits": rows}

    def rows(self) -> list[dict[str, Any]]:
        """Scores of each visit, for ``summary.json``."""
        return [_row(visit) for visit in self.visits]

    def last_scores(self) -> dict[str, float]:
        """The ``task/`` tags of the current visit so far, without values that are not finite."""
        row = _row(self.visits[-1])
        tags = ("return_at_end", "return_auc", "human_normalized", "recovery_steps", "recovered")
        return {f"task/{tag}": row[tag] for tag in tags if row.get(tag) is not None and np.isfinite(row[tag])}

    def state(self) -> list[dict[str, Any]]:
        """All visits, for a checkpoint."""
        return [dataclasses.asdict(visit) for visit in self.visits]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Restore the visits of a checkpoint."""
        self.visits = [
            Visit(**{**row, "fingerprint": row["fingerprint"] and Fingerprint(**row["fingerprint"])})
            for row in state
        ]


def _row(visit: Visit) -> dict[str, Any]:
    names = ["task", "start", "end", "episodes", "return_at_end", "return_auc", "recovery_steps", "recovered"]
    names += ["game", "human_normalized"] if visit.game else []
    nothing_to_recover = {"recovery_steps": None, "recovered": None} if visit.level is None else {}
    return {name: getattr(visit, name) for name in names} | nothing_to_recover
