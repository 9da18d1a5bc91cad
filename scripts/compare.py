"""Compare optimizers over finished runs: a table, paired differences and a figure per stream and agent.

python scripts/compare.py runs --figure results/comparison.png
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import tyro

from neoteny.configs.cli import launch_script, script_args
from neoteny.runners.disk.events import read_points
from neoteny.runners.disk.exit_codes import ExitCode, bad_input, stop

with bad_input():  # the extra "analysis"
    import matplotlib
    import matplotlib.pyplot as plt
    import pandas as pd
    import scipy.stats
    import seaborn as sns
    from matplotlib.ticker import EngFormatter, MaxNLocator

# Column -> the tag whose last value it shows.
COLUMNS = {
    "mean return": "score/return_auc",
    "early return": "score/early_return",
    "late return": "score/late_return",
    "dormant units": "plasticity/dormant_0.025/max",
    "dead units": "plasticity/dead/max",
    "log10 cond": "isometry/log10_cond/max",
    "sigma max": "isometry/sigma_max/max",
}
PANELS = {
    "charts/episodic_return": "return",
    "task/return_auc": "return over each task",
    "plasticity/dormant_0.025/max": "dormant units (0.025), worst layer",
    "isometry/log10_cond/max": "log10 condition number, worst hidden layer",
}


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare optimizers over finished runs."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that hold runs, at any depth."""
    figure: Path | None = None
    """File for the figure (PNG, SVG or PDF); several streams or agents get a file each, named after them."""


def read_runs(folders: tuple[Path, ...]) -> pd.DataFrame:
    """All scalars of all finished runs: columns stream, agent, optimizer, seed, tag, step, value."""
    frames = []
    for summary in sorted({path for folder in folders for path in folder.glob("**/summary.json")}):
        stream, agent, optimizer, seed = summary.parent.parts[-4:]
        names = {"stream": stream, "agent": agent, "optimizer": optimizer, "seed": int(seed[1:])}
        for tag, points in read_points(summary.parent).items():
            if isinstance(points[0][1], float):
                frames.append(pd.DataFrame(points, columns=["step", "value"]).assign(**names, tag=tag))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def with_tag(runs: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """The points of all tags that match a glob pattern, such as ``plasticity/dead/*`` for all layers."""
    return runs[runs["tag"].isin([tag for tag in runs["tag"].unique() if fnmatchcase(tag, pattern)])]


def comparisons(runs: pd.DataFrame, figure: Path | None) -> Iterator[tuple[str, pd.DataFrame, Path | None]]:
    """For each stream and agent: a title, its runs, and the path of its figure."""
    groups = runs.groupby(["stream", "agent"])
    for (stream, agent), group in groups:
        stem = f"{figure.stem}-{stream}-{agent}" if figure else ""
        path = figure.with_stem(stem) if figure and len(groups) > 1 else figure
        yield f"{agent.upper()} on {stream}", group, path


def mean_interval(values: np.ndarray, form: str = ".2f") -> str:
    """Mean and 95 % confidence interval over seeds (Student's t); the mean alone for one seed."""
    mean = float(np.mean(values))
    if len(values) < 2 or not math.isfinite(mean):
        return f"{mean:{form}}"
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return f"{mean:{form}} ± {half:{form}}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in plain text too."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in (header, *rows)]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def table(runs: pd.DataFrame) -> str:
    """A Markdown table with a row per optimizer."""
    rows = []
    for optimizer, group in runs.groupby("optimizer"):
        cells = [str(optimizer), str(group["seed"].nunique())]
        for tag in COLUMNS.values():
            last = group[group["tag"] == tag].sort_values("step").groupby("seed")["value"].last()
            cells.append(mean_interval(last.to_numpy()) if len(last) else "-")
        rows.append(cells)
    return markdown(["optimizer", "seeds", *COLUMNS], rows)


def differences(runs: pd.DataFrame) -> list[str]:
    """Differences in mean and late return between each optimizer and the first, paired by seed."""
    lines = []
    for column in ("mean return", "late return"):
        scores = runs[runs["tag"] == COLUMNS[column]].pivot(index="seed", columns="optimizer", values="value")
        reference, *others = scores.columns
        for optimizer in others:
            paired = (scores[optimizer] - scores[reference]).dropna().to_numpy()
            if len(paired):
                above = f"{(paired > 0).sum()} of {len(paired)} seeds above 0"
                lines.append(f"* {column}, {optimizer} - {reference}: {mean_interval(paired)} ({above})")
    return lines


def draw(runs: pd.DataFrame, path: Path, title: str, panels: Mapping[str, str] = PANELS) -> None:
    """Plot the curves of all optimizers: mean and 95 % interval over seeds.

    Where the value of any seed is not finite, the curve has a gap.

    Args:
        runs: of one agent on one stream.
        path: of the figure.
        title: of the figure.
        panels: glob pattern of the tags to average -> title of the panel; panels without data are left out.
    """
    matplotlib.use("agg")
    sns.set_theme(style="whitegrid", context="paper")
    order = sorted(runs["optimizer"].unique())
    colors = sns.color_palette(n_colors=len(order))
    measured = {label: points for tag, label in panels.items() if len(points := with_tag(runs, tag))}
    columns = -(-len(measured) // 2)
    size = (5 * columns if columns < 3 else 3.6 * columns, 6.2)
    figure, axes = plt.subplots(2, columns, figsize=size, layout="constrained", squeeze=False)
    for axis, (label, points) in zip(axes.flat, measured.items()):
        kind = points["tag"].iloc[0].partition("/")[0]
        if kind == "charts":
            width = max(1, int(points["step"].max() // 80))
            points = points.assign(step=points["step"] // width * width)
        curves = [_mean_and_half(points[points["optimizer"] == optimizer]) for optimizer in order]
        for optimizer, color, (mean, _) in zip(order, colors, curves):
            axis.plot(mean.index, mean, color=color, label=optimizer)
        axis.margins(y=0.25)
        axis.set_ylim(axis.get_ylim())  # scaled to the means: intervals over two or three seeds are too wide
        for color, (mean, half) in zip(colors, curves):
            axis.fill_between(mean.index, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
        axis.set(title=label, xlabel="visit" if kind == "task" else "environment steps")
        axis.xaxis.set(major_locator=MaxNLocator(integer=True), major_formatter=EngFormatter(sep=""))
    for axis in axes.flat[len(measured) :]:
        axis.set_axis_off()
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels())
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _mean_and_half(points: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Mean over seeds at each step, and half its 95 % interval (Student's t); nan if a seed is not finite."""
    infinite = points["value"].where(np.isfinite(points["value"]), np.inf)  # pandas skips nan
    seeds = points.assign(value=infinite).pivot_table(index="step", columns="seed", values="value")
    seeds[np.isinf(seeds).any(axis=1)] = np.nan
    half = seeds.sem(axis=1) * scipy.stats.t.ppf(0.975, seeds.count(axis=1) - 1)
    return seeds.mean(axis=1), half


def main(args: Compare) -> int:
    """Print the tables, draw the figures; exits with code 2 if there is no finished run."""
    runs = read_runs(args.folders)
    if runs.empty:
        stop(ExitCode.BAD_INPUT, f"no finished run below {', '.join(map(str, args.folders)) or 'no folder'}")
    for title, group, path in comparisons(runs, args.figure):
        print(f"\n{title}\n", table(group), "", *differences(group), sep="\n")
        if path:
            draw(group, path, f"{title}, seeds: {group['seed'].nunique()}")
            print(f"figure: {path}")
    return 0


def run(words: Sequence[str]) -> int:
    """Compare with the words of a command line; returns the exit code."""
    return main(script_args(Compare, words))


if __name__ == "__main__":
    launch_script(main, Compare)
