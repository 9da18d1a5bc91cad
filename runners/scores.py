"""Continual-learning scores of a run, from the episodes of each visit to a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neoteny.envs.atari.scores import human_normalized

EPISODES_AT_END = 20


@dataclasses.dataclass
class Visit:
    """One stay at a task: its start, its returns so far, and the task's fingerprint.

    The memory it needs does not grow with the number of episodes.
    """

    task: int
    start: int  # step of the run at which it began
    level: float | None = None  # return to recover, if any: see level_to_recover
    fingerprint: Any = None
    end: int = 0  # step of the run at which it ended
    episodes: int = 0  # number of ended episodes
    steps: int = 0  # their total length
    weighted_return: float = 0.0  # sum over episodes of return times length
    last_returns: list[float] = dataclasses.field(default_factory=list)  # of the last 20 episodes
    recovered_at: int | None = None  # step of the run at which the level was first reached
    game: str | None = None  # name of the task, if it is an Atari game

    def add(self, returns: NDArray[Any], lengths: NDArray[Any], steps: NDArray[Any]) -> None:
        """Add episodes, (E,) each, in the order in which they ended: at these steps of the run."""
        known = np.concatenate((self.last_returns, returns))
        if self.level is not None and self.recovered_at is None and len(known) >= EPISODES_AT_END:
            windows = np.lib.stride_tricks.sliding_window_view(known, EPISODES_AT_END)
            # Summed in the order of the episodes, as in return_at_end, so that equal means are equal.
            at_level = sum(windows.T, np.zeros(len(windows))) / EPISODES_AT_END >= self.level
            ended = len(known) - len(windows) - len(self.last_returns) + np.flatnonzero(at_level)
            ended = ended[ended >= 0]  # the window before these episodes did not reach the level
            self.recovered_at = int(steps[ended[0]]) if len(ended) else None
        self.episodes += len(returns)
        self.steps += int(lengths.sum())
        self.weighted_return = float(np.cumsum([self.weighted_return, *(returns * lengths)])[-1])
        self.last_returns = known[-EPISODES_AT_END:].tolist()

    @property
    def return_at_end(self) -> float:
        """Mean return of the last 20 episodes; NaN if none ended."""
        if not self.last_returns:
            return float("nan")
        return float(np.cumsum(self.last_returns)[-1]) / len(self.last_returns)

    @property
    def human_normalized(self) -> float:
        """Human-normalized ``return_at_end``: 0 random, 1 human; NaN if the task is not an Atari game."""
        return human_normalized(self.game, self.return_at_end) if self.game else float("nan")

    @property
    def return_auc(self) -> float:
        """Area under the return curve per step: episodes weighted by their steps; NaN if none ended."""
        return self.weighted_return / self.steps if self.steps else float("nan")

    @property
    def recovered(self) -> bool:
        """Whether the level was reached."""
        return self.recovered_at is not None

    @property
    def recovery_steps(self) -> float:
        """Steps from the start until the mean return of the last 20 episodes was not below the level.

        The first 20 episodes must have ended. If the level was not reached, all of the visit's steps: a
        lower bound (censored). NaN if there was nothing to recover.
        """
        if self.level is None:
            return float("nan")
        return (self.end if self.recovered_at is None else self.recovered_at) - self.start


def level_to_recover(visits: Sequence[Visit], task: int) -> float | None:
    """The return that a new visit to ``task`` must reach to be as good as before.

    It is the ``return_at_end`` of the last earlier visit to the same task or, if there was none, of the visit
    before; ``None`` if no episode has ended yet.
    """
    known = [visit for visit in visits if visit.episodes]
    same = [visit for visit in known if visit.task == task]
    return (same or known)[-1].return_at_end if known else None


def early_and_late(visits: Sequence[Visit]) -> tuple[list[Visit], list[Visit]]:
    """Select the visits that compare the agent's performance early and late in the run.

    If every task was visited at least twice: the first and the last visit to each task. Otherwise the first
    and the last quarter of all visits, at least one each, which are to different tasks.
    """
    last = {visit.task: visit for visit in visits}
    first = {task: next(visit for visit in visits if visit.task == task) for task in last}
    if visits and all(first[task] is not last[task] for task in last):
        return list(first.values()), list(last.values())
    quarter = max(1, len(visits) // 4)
    return list(visits[:quarter]), list(visits[-quarter:])


def run_scores(visits: Sequence[Visit]) -> dict[str, float]:
    """The ``score/`` tags of a run; NaN where no episode ended.

    Returns:
        ``score/return_auc`` and ``score/return_at_end``, means over all visits;
        ``score/early_return`` and ``score/late_return``, means of ``return_auc`` over :func:`early_and_late`;
        ``score/recovery_steps``, the mean over all visits that had something to recover,
        and ``score/recovered``, the share of those that did (1 unless some are censored).
    """
    early, late = early_and_late(visits)
    return {
        "score/return_auc": _mean([visit.return_auc for visit in visits]),
        "score/return_at_end": _mean([visit.return_at_end for visit in visits]),
        "score/early_return": _mean([visit.return_auc for visit in early]),
        "score/late_return": _mean([visit.return_auc for visit in late]),
        "score/recovery_steps": _mean([visit.recovery_steps for visit in visits]),
        "score/recovered": _mean([float(visit.recovered) for visit in visits if visit.level is not None]),
    }


EVALUATION_SCORES = tuple(
    f"score/{name}"
    for name in ("average_performance", "forgetting", "backward_transfer", "zero_shot_transfer")
)
"""The tags of :func:`evaluation_scores`."""


def evaluation_scores(returns: NDArray[np.float64], tasks: Sequence[int]) -> dict[str, float]:
    """The ``score/`` tags that need evaluations on all tasks.

    Average performance, forgetting and backward transfer are those of Wolczyk et al. (Continual World, 2021)
    and Lopez-Paz and Ranzato (2017), where tasks recur: a task is left at the end of its *last* visit. The
    task of the final visit has had no time to be forgotten: its difference is zero by construction, and it
    counts in neither. Zero-shot transfer is that of Powers et al. (CORA, 2022), in units of return.

    Args:
        returns: mean return on each of K tasks, (V + 1, K): before training, then at the end of each visit.
        tasks: column of the task of each visit, (V,).

    Returns:
        ``score/average_performance``, the mean over all tasks at the end of the run;
        ``score/forgetting``, the return on a task when it was left less that at the end, a mean over tasks;
        ``score/backward_transfer``, its negative;
        ``score/zero_shot_transfer``, the change of the return on a task during a visit to another, before
        the first visit to it, a mean over all such pairs of a visit and a task.
        What cannot be measured is absent.
    """
    at_end = returns[-1]
    scores = {"score/average_performance": float(at_end.mean())}
    left = {task: visit for visit, task in enumerate(tasks, start=1) if task != tasks[-1]}
    if left:
        lost = float(np.mean([returns[visit, task] - at_end[task] for task, visit in left.items()]))
        scores |= {"score/forgetting": lost, "score/backward_transfer": 0.0 - lost}
    changes = [
        returns[visit, task] - returns[visit - 1, task]
        for visit in range(1, len(returns))
        for task in range(returns.shape[1])
        if task not in tasks[:visit]
    ]
    if changes:
        scores["score/zero_shot_transfer"] = float(np.mean(changes))
    return scores


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
