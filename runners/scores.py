"""Continual-learning scores of a run, from the episodes of each visit to a task."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neoteny.envs.atari.scores import human_normalized

EPISODES_AT_END = 20
PAIRS = 5_000_000  # of points whose slopes are computed at most

Array = NDArray[np.float64]
Row = Mapping[str, Any]
"""The scores of a visit, as in ``summary.json``; what was not measured is absent, ``None`` or NaN."""


@dataclasses.dataclass
class Visit:
    """One stay at a task: its start, its returns so far, and the task's fingerprint.

    The memory it needs does not grow with the number of episodes.
    """

    task: int
    start: int  # step of the run at which it began
    level: float | None = None  # return to recover, if any, see Episodes.level
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

    def row(self) -> dict[str, Any]:
        """Its scores, as in ``summary.json``."""
        names = ["task", "start", "end", "episodes", "return_at_end", "return_auc"]
        names += ["recovery_steps", "recovered", *(["game", "human_normalized"] if self.game else [])]
        nothing_to_recover = {"recovery_steps": None, "recovered": None} if self.level is None else {}
        return {name: getattr(self, name) for name in names} | nothing_to_recover

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


def early_and_late(visits: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Select the visits that compare the agent's performance early and late in the run.

    If every task was visited at least twice: the first and the last visit to each task. Otherwise the first
    and the last quarter of all visits, at least one each, which are to different tasks.
    """
    last = {visit["task"]: visit for visit in visits}
    first: dict[int, Row] = {}
    for visit in visits:
        first.setdefault(visit["task"], visit)
    if visits and all(first[task] is not last[task] for task in last):
        return list(first.values()), list(last.values())
    quarter = max(1, len(visits) // 4)
    return list(visits[:quarter]), list(visits[-quarter:])


def run_scores(visits: Sequence[Row]) -> dict[str, float]:
    """The ``score/`` tags of a run; NaN where there was nothing to measure.

    Args:
        visits: their scores, as in ``summary.json``.

    Returns:
        ``score/return_auc`` and ``score/return_at_end``, means over all visits;
        ``score/early_return`` and ``score/late_return``, means of ``return_auc`` over :func:`early_and_late`;
        ``score/recovery_steps``, the mean over all visits that had something to recover,
        ``score/recovered``, the share of those that did (the rest is the rate of censoring), and
        ``score/performance_recovery``.
    """
    early, late = early_and_late(visits)
    return {
        "score/return_auc": mean(column(visits, "return_auc")),
        "score/return_at_end": mean(column(visits, "return_at_end")),
        "score/early_return": mean(column(early, "return_auc")),
        "score/late_return": mean(column(late, "return_auc")),
        "score/recovery_steps": mean(column(visits, "recovery_steps")),
        "score/recovered": mean(column(visits, "recovered")),
        "score/performance_recovery": performance_recovery(visits),
    }


def comparison_scores(visits: Sequence[Row]) -> dict[str, float]:
    """The ``score/`` tags that comparisons add: thirds, slope, and the mean human-normalized score.

    The thirds are means of ``return_auc`` over parts of a run; the slope is that from visit to visit. Where
    tasks differ in difficulty, the thirds of one run may differ for that reason alone: compare them between
    runs on the same tasks, or look at the slope, which compares each task only with itself if any recurs.
    """
    returns = column(visits, "return_auc")
    early, middle, late = thirds(returns)
    return {
        "score/early_third": early,
        "score/middle_third": middle,
        "score/late_third": late,
        "score/slope": slope(visits, returns),
        "score/human_normalized": mean(column(visits, "human_normalized")),
    }


def slope(visits: Sequence[Row], values: Array) -> float:
    """How much a value (V,) changes from visit to visit: its Theil-Sen slope.

    If any task recurs, only visits to the same task are compared.
    """
    tasks = column(visits, "task")
    groups = tasks if len(set(tasks)) < len(tasks) else np.zeros(len(tasks))
    return theil_sen(np.arange(len(values)), values, groups)


def thirds(values: Array) -> tuple[float, float, float]:
    """Means of the first, middle and last third of values (V,); NaN if there are fewer than three.

    The first and the last third have equally many values.
    """
    if len(values) < 3:
        return float("nan"), float("nan"), float("nan")
    size = round(len(values) / 3)
    return mean(values[:size]), mean(values[size:-size]), mean(values[-size:])


def theil_sen(times: NDArray[Any], values: Array, groups: Array) -> float:
    """Median slope over all pairs of points, all (V,), of the same group; NaN if there is no pair.

    This is the estimator of Theil and Sen, with groups as the seasons of Hirsch, Slack and Smith (1982).
    Values that are NaN are left out. Of thousands of points as many as make ``PAIRS`` pairs are taken, evenly
    spaced in each group.
    """
    known = ~np.isnan(values)
    times, values, groups = times[known], values[known], groups[known]
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    most = max(2, int((2 * PAIRS / len(members)) ** 0.5))
    slopes = [np.empty(0)]
    for group in members:
        if len(group) > most:
            group = group[np.linspace(0, len(group) - 1, most).round().astype(int)]
        one, two = group[np.array(np.triu_indices(len(group), 1))]
        one, two = np.array([one, two])[:, times[one] != times[two]]
        slopes.append((values[two] - values[one]) / (times[two] - times[one]))
    together = np.concatenate(slopes)
    return float(np.median(together)) if len(together) else float("nan")


def performance_recovery(visits: Sequence[Row]) -> float:
    """How much faster each return to a task recovers than the one before, in steps (l2metrics).

    Minus the Theil-Sen slope of the recovery times over the returns to a task, pairs of the same task only.
    Visits that did not recover count as long as they lasted, which hides what happens beyond: see
    ``score/recovered``. NaN if no task was returned to twice.
    """
    tasks = [visit["task"] for visit in visits]
    seen: collections.Counter[int] = collections.Counter()
    recurrence = np.zeros(len(tasks))
    for i, task in enumerate(tasks):
        recurrence[i] = seen[task]
        seen[task] += 1
    times = np.where(recurrence > 0, column(visits, "recovery_steps"), np.nan)
    return 0.0 - theil_sen(recurrence, times, column(visits, "task"))


def plasticity_gap(visits: Sequence[Row], fresh: Mapping[int, Row], measure: str) -> Array:
    """What a fresh agent reaches on the task of each visit less what the continual agent does, (V,).

    Positive where plasticity was lost, or where earlier tasks are in the way (negative transfer); negative
    where they help. It is neither clipped nor scaled. NaN without a reference, or where no episode ended.

    Args:
        visits: of the continual agent.
        fresh: the only visit of a fresh agent that learned a task for as many steps, for each task.
        measure: ``return_at_end`` or ``return_auc``.
    """
    reference = column([fresh.get(visit["task"], {}) for visit in visits], measure)
    return reference - column(visits, measure)


def forward_transfer(area: Array, fresh: Array, perfect: Array | float = 1.0) -> Array:
    """Forward transfer to each task, (K,): the share of what a fresh agent lacks that is gained.

    (AUC - AUC_fresh) / (perfect - AUC_fresh), as in Continual World (Wolczyk et al., 2021). The denominator
    has the fresh agent's area, not the continual agent's. Undefined, NaN, where the fresh agent is perfect.

    Args:
        area: the continual agent's areas under the return curve in its first visits, (K,).
        fresh: those of a fresh agent.
        perfect: the area that counts as perfect, which is 1 where returns are shares of successes.
    """
    room = np.asarray(perfect - fresh, dtype=float)
    return np.divide(area - fresh, room, out=np.full(room.shape, np.nan), where=room > 0)


def reference_scores(visits: Sequence[Row], fresh: Mapping[int, Row]) -> dict[str, float]:
    """Scores of a run against fresh agents, means over visits; those without a reference are left out.

    In forward transfer, over the first visit to each task, the fresh agent's return at its end counts as
    perfect: on the scale from a random policy to it, and on any shift of that scale, the transfer is the
    same. Tasks on which a fresh agent does not improve are left out.
    """
    seen: dict[int, Row] = {}
    for visit in visits:
        seen.setdefault(visit["task"], visit)
    rows = [fresh.get(task, {}) for task in seen]
    area, final = column(rows, "return_auc"), column(rows, "return_at_end")
    first = column(list(seen.values()), "return_auc")
    gap_at_end, gap_auc = (plasticity_gap(visits, fresh, name) for name in ("return_at_end", "return_auc"))
    return {
        "score/plasticity_gap_at_end": mean(gap_at_end),
        "score/plasticity_gap_auc": mean(gap_auc),
        "score/plasticity_gap_slope": slope(visits, gap_auc),
        "score/forward_transfer": mean(forward_transfer(first, area, final)),
    }


def area_per_task(visits: Sequence[Row]) -> dict[int, float]:
    """Mean of ``return_auc`` over the visits to each task; NaN where no episode ended."""
    tasks = dict.fromkeys(visit["task"] for visit in visits)
    of_task = {task: [visit for visit in visits if visit["task"] == task] for task in tasks}
    return {task: mean(column(rows, "return_auc")) for task, rows in of_task.items()}


def column(visits: Sequence[Row], name: str) -> Array:
    """A score of each visit, (V,); NaN where it was not measured."""
    return np.array(
        [float("nan") if (value := visit.get(name)) is None else value for visit in visits], float
    )


def mean(values: Array) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


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
