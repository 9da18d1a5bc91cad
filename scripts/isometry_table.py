"""Table and figure, per stream, of which isometry measures each optimizer preserved over finished runs.

python scripts/isometry_table.py runs --figure isometry.png
"""

from __future__ import annotations

import dataclasses

import numpy as np

from neoteny.configs.cli import launch_script
from neoteny.runners.disk.exit_codes import ExitCode, stop
from neoteny.scripts.compare import (
    Compare,
    comparisons,
    draw,
    markdown,
    mean_interval,
    pd,
    read_runs,
    with_tag,
)

# Row -> the tag that it shows, or a pattern of tags, whose mean it shows.
ROWS = {
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
    "plasticity lost": "plasticity/lost",
    "mean return": "score/return_auc",
    "late return": "score/late_return",
}
SPECTRUM = ("sigma max", "mean squared sigma", "sigma min")
DRAWN = (*SPECTRUM, "log10 cond", "dormant units", "NTK participation rank")
PANELS = {"charts/episodic_return": "return", **{ROWS[row]: row for row in DRAWN}}

HELD = 1.5
"""A measure is held if it always stayed within this factor of its first value."""


@dataclasses.dataclass(frozen=True)
class IsometryTable(Compare):
    """Show which isometry measures each optimizer preserved over finished runs."""


def table(runs: pd.DataFrame) -> str:
    """A Markdown table with a column per optimizer: means over the last quarter of the run, first values."""
    groups = [(str(optimizer), group) for optimizer, group in runs.groupby("optimizer")]
    rows = [["seeds", *(str(group["seed"].nunique()) for _, group in groups)]]
    for row, pattern in ROWS.items():
        form = ".2f" if pattern.startswith("score/") else ".3g"
        rows.append([row, *(_cell(with_tag(group, pattern), form) for _, group in groups)])
    return markdown(["", *(optimizer for optimizer, _ in groups)], rows)


def held(runs: pd.DataFrame) -> list[str]:
    """Lines with which of the largest, mean squared and smallest singular value each optimizer held."""
    lines = []
    for optimizer, group in runs.groupby("optimizer"):
        measured = {row: with_tag(group, ROWS[row]) for row in SPECTRUM}
        moved = {row: _farthest(points) for row, points in measured.items() if len(points)}
        if moved:
            kept = ", ".join(row for row, factor in moved.items() if factor <= HELD) or "none"
            factors = ", ".join(f"{row} {factor:.3g}" for row, factor in moved.items())
            lines.append(f"* {optimizer}: {kept} (farthest, as a factor: {factors})")
    title = f"Held within a factor of {HELD} of the first measurement, throughout and on every seed:"
    return [title, "", *lines] if lines else []


def _cell(points: pd.DataFrame, form: str) -> str:
    """Mean and interval over seeds; if some are not finite, their number instead."""
    if points.empty:
        return "-"
    seeds = [seed for _, seed in points.groupby("seed")]
    # A numpy mean, since that of pandas skips nan.
    ends = np.array(
        [seed["value"][seed["step"] >= 0.75 * seed["step"].max()].to_numpy().mean() for seed in seeds]
    )
    counts = {"inf": np.isinf(ends).sum(), "nan": np.isnan(ends).sum()}
    broken = ", ".join(f"{kind} ({count} of {len(ends)})" for kind, count in counts.items() if count)
    if points["step"].nunique() == 1:
        return broken or mean_interval(ends, form)
    starts = [seed["value"][seed["step"] == seed["step"].min()].to_numpy().mean() for seed in seeds]
    return f"{broken or mean_interval(ends, form)} (from {np.mean(starts):{form}})"


def _farthest(points: pd.DataFrame) -> float:
    """The largest factor, over steps and seeds, between a value and its seed's first; nan if any value is."""
    factors = []
    for _, seed in points.sort_values("step").groupby("seed"):
        values = seed["value"].to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = values / values[0]
            factors.append(np.maximum(ratios, 1 / ratios).max())
    return float(np.max(factors))


def main(args: IsometryTable) -> int:
    """Print the tables, draw the figures; exits with code 2 if there is no finished run."""
    runs = read_runs(args.folders)
    if runs.empty:
        stop(ExitCode.BAD_INPUT, f"no finished run below {', '.join(map(str, args.folders)) or 'no folder'}")
    for title, group, path in comparisons(runs, args.figure):
        print(f"\n{title}\n", table(group), "", *held(group), sep="\n")
        if path:
            draw(group, path, title, PANELS)
            print(f"figure: {path}")
    return 0


if __name__ == "__main__":
    launch_script(main, IsometryTable)
