"""Continual-learning scores: pure functions of the episodes of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

EPISODES_AT_END = 20


@dataclasses.dataclass
class Visit:
    """One stay at a task: when it began, which episodes ended in it, and what the audit saw of it."""

    task: int
    start: int
    returns: list[float] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)
    """Step of the run at which each episode ended."""
    end: int = 0
    """Step of the run at which the visit ended."""
    fingerprint: Any = None

    @property
    def return_at_end(self) -> float:
        """Mean return of the last 20 episodes; NaN if none ended."""
        return float(np.mean(self.returns[-EPISODES_AT_END:])) if self.returns else float("nan")

    @property
    def return_auc(self) -> float:
        """Area under the return curve per step: episodes weighted by their steps; NaN if none ended."""
        return float(np.average(self.returns, weights=self.lengths)) if self.returns else float("nan")


def early_and_late(visits: Sequence[Visit]) -> tuple[list[Visit], list[Visit]]:
    """The visits to compare when one asks what the agent could do early and what it can do late.

    Where every task came at least twice: the first and the last visit to each, the same tasks on both sides.
    Otherwise the first and the last quarter of the visits, at least one each, of different tasks.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for i, visit in enumerate(visits):
        first.setdefault(visit.task, i)
        last[visit.task] = i
    if visits and all(first[task] < last[task] for task in first):
        return [visits[i] for i in first.values()], [visits[i] for i in last.values()]
    quarter = max(1, len(visits) // 4)
    return list(visits[:quarter]), list(visits[-quarter:])


def recovery(visits: Sequence[Visit]) -> tuple[float, bool]:
    """How many steps the last of the visits took to be as good again as before.

    "As good as before" is the ``return_at_end`` of the last earlier visit to the same task or, if there was
    none, of the visit before. It is reached where the mean return of the visit's last 20 episodes is not
    below it; the first 20 must have ended.

    Returns:
        Steps since the visit began, and whether the level was reached: where it was not, the steps are all
        of the visit's, a lower bound (censored). NaN steps if there was nothing before.
    """
    *earlier, visit = visits
    known = [other for other in earlier if other.returns]
    same = [other for other in known if other.task == visit.task]
    if not known:
        return float("nan"), False
    level = (same or known)[-1].return_at_end
    for i in range(EPISODES_AT_END, len(visit.returns) + 1):
        if np.mean(visit.returns[i - EPISODES_AT_END : i]) >= level:
            return visit.ends[i - 1] - visit.start, True
    return visit.end - visit.start, False


def run_scores(visits: Sequence[Visit]) -> dict[str, float]:
    """The ``score/`` tags of a run; NaN where no episode ended.

    Returns:
        ``score/return_auc`` and ``score/return_at_end``, means over all visits;
        ``score/early_return`` and ``score/late_return``, means of ``return_auc`` over :func:`early_and_late`;
        ``score/recovery_steps``, the mean of :func:`recovery` over all visits that had something to recover,
        and ``score/recovered``, the share of those that did (1 unless some are censored).
    """
    early, late = early_and_late(visits)
    recoveries = [recovery(visits[:i]) for i in range(1, len(visits) + 1)]
    recovered = [float(done) for steps, done in recoveries if not np.isnan(steps)]
    return {
        "score/return_auc": _mean([visit.return_auc for visit in visits]),
        "score/return_at_end": _mean([visit.return_at_end for visit in visits]),
        "score/early_return": _mean([visit.return_auc for visit in early]),
        "score/late_return": _mean([visit.return_auc for visit in late]),
        "score/recovery_steps": _mean([steps for steps, _ in recoveries]),
        "score/recovered": _mean(recovered),
    }


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
