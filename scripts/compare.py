"""Compare optimizers over finished runs: one table, paired differences and one figure a stream.

python scripts/compare.py runs --figure results/comparison.png
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.stats
import seaborn as sns
import tyro
from matplotlib.ticker import EngFormatter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Column -> the tag whose last value, or the score whose value, it shows.
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
    """Where to draw the curves (PNG, SVG or PDF); with several streams or agents, their names are put in."""


def read_runs(folders: tuple[Path, ...]) -> pd.DataFrame:
    """All scalars of all finished runs: columns stream, agent, optimizer, seed, tag, step, value."""
    frames = []
    for summary in sorted({path for folder in folders for path in folder.glob("**/summary.json")}):
        stream, agent, optimizer, seed = summary.parent.parts[-4:]
        events = EventAccumulator(str(summary.parent), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            points = [(event.step, event.value) for event in events.Scalars(tag)]
            frame = pd.DataFrame(points, columns=["step", "value"])
            names = {"stream": stream, "agent": agent, "optimizer": optimizer, "seed": int(seed[1:])}
            frames.append(frame.assign(**names, tag=tag))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def mean_interval(values: np.ndarray) -> str:
    """Mean and 95 % confidence interval over seeds (Student's t); the mean alone for one seed."""
    mean = float(np.mean(values))
    if len(values) < 2 or not math.isfinite(mean):
        return f"{mean:.2f}"
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return f"{mean:.2f} ± {half:.2f}"


def table(runs: pd.DataFrame) -> str:
    """One row an optimizer, as Markdown."""
    rows = []
    for optimizer, group in runs.groupby("optimizer"):
        cells = [str(optimizer), str(group["seed"].nunique())]
        for tag in COLUMNS.values():
            last = group[group["tag"] == tag].sort_values("step").groupby("seed")["value"].last()
            cells.append(mean_interval(last.to_numpy()) if len(last) else "-")
        rows.append(cells)
    header = ["optimizer", "seeds", *COLUMNS]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in (header, *rows)]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(f"| {line} |".replace("-|-", " | ") for line in lines)


def differences(runs: pd.DataFrame) -> list[str]:
    """Mean and late return of each optimizer less those of the first, paired by seed."""
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


def draw(runs: pd.DataFrame, path: Path, title: str) -> None:
    """Curves of all optimizers over one another: mean and 95 % interval over seeds."""
    matplotlib.use("agg")
    sns.set_theme(style="whitegrid", context="paper")
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.2), constrained_layout=True)
    order = sorted(runs["optimizer"].unique())
    for axis, (tag, label) in zip(axes.flat, PANELS.items()):
        points = runs[(runs["tag"] == tag) & np.isfinite(runs["value"])].copy()
        if tag.startswith("charts/"):
            width = max(1, int(points["step"].max() // 80))
            points["step"] = points["step"] // width * width
            points = points.groupby(["optimizer", "seed", "step"], as_index=False)["value"].mean()
        several = points["seed"].nunique() > 1
        sns.lineplot(
            points, x="step", y="value", hue="optimizer", hue_order=order, ax=axis,
            errorbar=("ci", 95) if several else None, seed=0, legend=tag == "isometry/log10_cond/max",
        )  # fmt: skip
        axis.set(title=label, ylabel="", xlabel="visit" if tag.startswith("task/") else "environment steps")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(args: Compare) -> int:
    """Print the tables, draw the figures; returns 2 if there is no finished run."""
    runs = read_runs(args.folders)
    if runs.empty:
        print(f"no finished run below {', '.join(map(str, args.folders))}")
        return 2
    for (stream, agent), group in runs.groupby(["stream", "agent"]):
        print(f"\n{agent.upper()} on {stream}\n", table(group), "", *differences(group), sep="\n")
        if args.figure:
            several = len(runs[["stream", "agent"]].drop_duplicates()) > 1
            stem = f"{args.figure.stem}-{stream}-{agent}"
            path = args.figure.with_stem(stem) if several else args.figure
            draw(group, path, f"{agent.upper()} on {stream}, seeds: {group['seed'].nunique()}")
            print(f"figure: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Compare)))
