"""The tables of a comparison: returns, fresh agents, diagnostics, isometry, paired differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from neoteny.runners.intervals import Array, improvement, iqm_interval, mean_interval, seeds_for
from neoteny.runners.results import Points, Result, average
from neoteny.runners.scores import area_per_task

# Column -> the score that it shows.
RETURNS = {
    "mean return": "score/return_auc",
    "human-normalized": "score/human_normalized",
    "early third": "score/early_third",
    "middle third": "score/middle_third",
    "late third": "score/late_third",
    "slope per visit": "score/slope",
    "recovered": "score/recovered",
    "recovery steps": "score/recovery_steps",
    "average performance": "score/average_performance",
    "forgetting": "score/forgetting",
    "zero-shot transfer": "score/zero_shot_transfer",
}
FRESH = {
    "gap at end, {}": "score/plasticity_gap_at_end/{}",
    "gap in area, {}": "score/plasticity_gap_auc/{}",
    "its slope per visit, {}": "score/plasticity_gap_slope/{}",
    "forward transfer, {}": "score/forward_transfer/{}",
}
KINDS = {
    "base": "a fresh agent with Adam and no method, the same for all arms",
    "own": "a fresh agent with the arm's own optimizer and methods",
}
DIAGNOSTICS = {
    "dormant units": "plasticity/dormant_0.025/max",
    "dead units": "plasticity/dead/max",
    "log10 cond": "isometry/log10_cond/max",
    "sigma max": "isometry/sigma_max/max",
}
# Row -> the tag that it shows, or a pattern of tags, whose mean it shows.
ISOMETRY = {
    "sigma max": "isometry/sigma_max/max",
    "mean squared sigma": "isometry/mean_squared_sigma/mean",
    "sigma min": "isometry/sigma_min/min",
    "log10 cond": "isometry/log10_cond/max",
    "feature effective rank": "plasticity/feature_effective_rank/*",
    "dormant units": "plasticity/dormant_0.025/max",
    "dead units": "plasticity/dead/max",
    "NTK log10 cond": "isometry/ntk_log10_cond/*",
    "NTK rank": "isometry/ntk_rank/*",
    "NTK participation rank": "isometry/ntk_participation_rank/*",
    "NTK isotropy gap": "isometry/ntk_isotropy_gap/*",
    "Jacobian distance": "isometry/jacobian_distance/*.input_output/median",
    "Jacobian log10 cond": "isometry/jacobian_log10_cond/*.input_output/median",
    "Jacobian rank": "isometry/jacobian_rank/*.input_output/median",
    "plasticity lost": "plasticity/lost",
    "validation accuracy": "charts/validation_accuracy",  # of supervised agents
}
SPECTRUM = ("sigma max", "mean squared sigma", "sigma min")

MOST_TASKS = 6  # with more tasks there is no table with a column for each

HELD = 1.5
"""A measure is held if it always stayed within this factor of its first value."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """The runs that differ in nothing but their seed."""

    name: str
    results: Sequence[Result]

    def scores(self, tag: str) -> dict[int, float]:
        """A score of each seed for which it was measured."""
        found = {result.seed: result.scores.get(tag) for result in self.results}
        return {seed: value for seed, value in found.items() if value is not None}

    def points(self, pattern: str) -> list[Points]:
        """The points of each seed, means over the tags that match a glob pattern; without empty ones."""
        return [points for result in self.results if (points := average(result.points, pattern))]


def plus_minus(values: Array, form: str = ".2f") -> str:
    """Mean and 95 % interval over seeds (Student's t); the mean alone for one seed."""
    mean, low, _ = mean_interval(values)
    return f"{mean:{form}}" + ("" if math.isnan(low) else f" ± {mean - low:{form}}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in plain text too."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in (header, *rows)]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def score_tables(arms: Sequence[Arm]) -> Iterator[str]:
    """Interquartile means of scores with their intervals; returns, then the scores against fresh agents."""
    yield "Interquartile means over seeds with 95 % bootstrap intervals:"
    yield table(arms, {name: _iqm_cell(tag) for name, tag in RETURNS.items()})
    visited = [area_per_task(result.visits) for arm in arms for result in arm.results]
    tasks = sorted({task for areas in visited for task in areas})
    if 1 < len(tasks) <= MOST_TASKS:
        yield "The same for the return over all visits to each task:"
        yield table(arms, {f"task {task}": _area_cell(task) for task in tasks})
    kinds = [kind for kind in KINDS if any(kind in run.fresh for arm in arms for run in arm.results)]
    for kind in kinds:
        columns = {name.format(kind): _iqm_cell(tag.format(kind)) for name, tag in FRESH.items()}
        yield f"Plasticity gap: {KINDS[kind]}, less the continual agent; positive where plasticity was lost:"
        yield table(arms, columns)
    diagnostics = {name: _last_cell(tag) for name, tag in DIAGNOSTICS.items()}
    if any(arm.points(tag) for arm in arms for tag in DIAGNOSTICS.values()):
        yield "The worst hidden layer at the end, means over seeds (± Student's t):"
        yield table(arms, diagnostics)


def table(arms: Sequence[Arm], columns: Mapping[str, Callable[[Arm], str]]) -> str:
    """A row per arm; columns in which no arm has a value are left out."""
    cells = {name: [cell(arm) for arm in arms] for name, cell in columns.items()}
    shown = {name: column for name, column in cells.items() if set(column) != {"-"}}
    rows = [
        [arm.name, str(len(arm.results)), *(column[i] for column in shown.values())]
        for i, arm in enumerate(arms)
    ]
    return markdown(["arm", "seeds", *shown], rows)


def _iqm_cell(tag: str) -> Callable[[Arm], str]:
    return lambda arm: _with_interval(list(arm.scores(tag).values()), len(arm.results))


def _area_cell(task: int) -> Callable[[Arm], str]:
    def cell(arm: Arm) -> str:
        areas = [area_per_task(result.visits).get(task, math.nan) for result in arm.results]
        return _with_interval([area for area in areas if not math.isnan(area)], len(arm.results))

    return cell


def _with_interval(values: Sequence[float], seeds: int) -> str:
    """Interquartile mean and interval of a score, with the number of values if some seeds have none."""
    if not values:
        return "-"
    middle, low, high = iqm_interval(np.array(values))
    only = "" if len(values) == seeds else f", {len(values)} seeds"
    shown, interval = number(middle), f"{number(low)} to {number(high)}"
    return shown if len(values) == 1 else f"{shown} ({interval}{only})"


def number(value: float) -> str:
    """A number with four digits, or all before the point: 0.2514, 1,285."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _last_cell(tag: str) -> Callable[[Arm], str]:
    def cell(arm: Arm) -> str:
        values = np.array([values[-1] for _, values in arm.points(tag)])
        return plus_minus(values) if len(values) else "-"

    return cell


def differences(arms: Sequence[Arm], baseline: Arm) -> Iterator[str]:
    """Lines with the differences between each arm and the baseline, paired by seed.

    An improvement is a higher return, or a smaller gap.
    """
    shown = {
        "mean return": "score/return_auc",
        "late third": "score/late_third",
        "gap in area, base": "score/plasticity_gap_auc/base",
    }
    for column, tag in shown.items():
        for arm in arms:
            ours, theirs = arm.scores(tag), baseline.scores(tag)
            paired = paired_by_seed(ours, theirs)
            if arm is baseline or not len(paired):
                continue
            values = [[np.array(list(scores.values()))] for scores in (ours, theirs)]
            above = f"{(paired > 0).sum()} of {len(paired)} seeds above 0"
            better, low, high = improvement(*(values if "gap" not in tag else values[::-1]))
            yield (
                f"* {column}, {arm.name} - {baseline.name}: {plus_minus(paired)} ({above}; "
                f"probability of improvement {better:.2f}, {low:.2f} to {high:.2f})"
            )


def paired_by_seed(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Array:
    """Differences for the seeds that both have."""
    return np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def stop_rule(arms: Sequence[Arm], baseline: Arm, looks: int = 6, group: int = 5) -> Iterator[str]:
    """Lines with how many more seeds would settle the difference in mean return to the baseline.

    AdaStop (Mathieu et al., 2023) tests after every ``group`` seeds, at most ``looks`` times, whether arms
    differ, with a probability of at most 5 % that it ever errs. It decides or wants more seeds; how many is
    guessed by a paired t test.
    """
    from adastop import MultipleAgentsComparator

    tag, others = "score/return_auc", [arm for arm in arms if arm is not baseline]
    if not others:
        return
    scores = {arm.name: list(arm.scores(tag).values()) for arm in (baseline, *others)}
    pairs = np.array([(0, i) for i in range(1, len(scores))])
    # Version 0.1.3 compares absolute differences with a quantile of signed ones, so that it errs twice as
    # often as its alpha says.
    test = MultipleAgentsComparator(n=group, K=looks, comparisons=pairs, alpha=0.025, seed=0)
    complete = min(looks, min(map(len, scores.values())) // group)
    for look in range(1, complete + 1):
        if not test.is_finished:
            seen = {name: np.array(values[: look * group]) for name, values in scores.items()}
            test.partial_compare(seen, verbose=False)
    words = {"larger": "below", "smaller": "above", "equal": "not found to differ from"}
    for pair, arm in zip(pairs, others):
        decision = test.decisions[str(pair)] if complete else "continue"
        settled = decision in words
        verdict = words[decision] if settled else "not yet settled beside"
        yield (
            f"* AdaStop after {complete * group} seeds of at most {looks * group}: "
            f"{arm.name} is {verdict} {baseline.name}"
        )
        paired = paired_by_seed(arm.scores(tag), baseline.scores(tag))
        if not settled and len(paired) > 1:
            seeds = seeds_for(paired)
            more = f"{max(0, seeds - len(paired))} more seeds" if seeds else "more than 10,000 seeds"
            yield (
                f"  a difference as large as now, {plus_minus(paired)}, is found with probability 0.8 by "
                f"{more} (paired t test at 5 %)"
            )


def isometry_table(arms: Sequence[Arm]) -> str:
    """A column per arm: means over the last quarter of the run, with first values in brackets."""
    rows = [["seeds", *(str(len(arm.results)) for arm in arms)]]
    for row, pattern in ISOMETRY.items():
        rows.append([row, *(_isometry_cell(arm.points(pattern)) for arm in arms)])
    for row in ("mean return", "late third"):
        rows.append([row, *(_iqm_cell(RETURNS[row])(arm) for arm in arms)])
    return markdown(["", *(arm.name for arm in arms)], rows)


def held(arms: Sequence[Arm]) -> Iterator[str]:
    """Lines with which of the largest, mean squared and smallest singular value each arm held."""
    for arm in arms:
        measured = {row: arm.points(ISOMETRY[row]) for row in SPECTRUM}
        # A numpy maximum, since that of Python may pass over nan.
        moved = {row: np.max([*map(_farthest, seeds)]) for row, seeds in measured.items() if seeds}
        if moved:
            kept = ", ".join(row for row, factor in moved.items() if factor <= HELD) or "none"
            factors = ", ".join(f"{row} {factor:.3g}" for row, factor in moved.items())
            yield f"* {arm.name}: {kept} (farthest, as a factor: {factors})"


def _isometry_cell(seeds: Sequence[Points], form: str = ".3g") -> str:
    """Mean and interval over seeds; if some are not finite, their number instead."""
    if not seeds:
        return "-"
    ends = np.array([values[steps >= 0.75 * steps.max()].mean() for steps, values in seeds])
    counts = {"inf": np.isinf(ends).sum(), "nan": np.isnan(ends).sum()}
    broken = ", ".join(f"{kind} ({count} of {len(ends)})" for kind, count in counts.items() if count)
    cell = broken or plus_minus(ends, form)
    if all(len(steps) == 1 for steps, _ in seeds):
        return cell
    return f"{cell} (from {np.mean([values[0] for _, values in seeds]):{form}})"


def _farthest(points: Points) -> float:
    """The largest factor between a value and the first one; NaN if any value is."""
    values = points[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = values / values[0]
        return float(np.maximum(ratios, 1 / ratios).max())
