"""The figure of a comparison: returns, plasticity gap and diagnostics of each arm over the run."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neoteny.configs.grid import note_of
from neoteny.runners.intervals import curve_interval, iqm_interval
from neoteny.runners.results import Points, curves
from neoteny.runners.scores import Array, plasticity_gap
from neoteny.scripts.comparison_tables import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Styles = Mapping[str, dict[str, Any]]
"""Name of an arm -> ``color`` and ``linestyle`` of its curve."""

Line = dict[float | None, Array]
"""Values of a flag, None for an arm that does not have it -> the score of each seed, (S,)."""

ONLINE = {
    "charts/online_accuracy": "online accuracy",
    "charts/online_negative_mse": "negative mean squared error, online",
}
RETURNS = {
    "charts/episodic_return": "return",
    **ONLINE,
    "task/return_auc": "return over each visit",
}
DIAGNOSTICS = {
    "plasticity/dormant_0.025/max": "dormant units (0.025), worst layer",
    "isometry/log10_cond/max": "log10 condition number, worst hidden layer",
}
ISOMETRY = {
    "isometry/sigma_max/max": "sigma max",
    "isometry/mean_squared_sigma/mean": "mean squared sigma",
    "isometry/sigma_min/min": "sigma min",
    **DIAGNOSTICS,
    "isometry/ntk_participation_rank/*": "NTK participation rank",
}
GAPS = {
    "base": "gap in area, base: to a fresh agent with Adam",
    "own": "gap in area, own: to a fresh agent of the arm",
}
SCORES = {"mean over the run": "score/return_auc", "late third": "score/late_third"}
COLORS, LINES = 10, ("-", "--", ":", "-.")  # the eleventh arm has the first colour, dashed
SWITCHES = 60  # with more switches none are drawn, since the lines would hide the plot
FEW_SEEDS = 4  # up to so many, the curves of the seeds are drawn instead of intervals, which would be huge
MOST_INTERVALS = 6  # with more arms no intervals are drawn, since they would hide the curves


def draw(arms: Sequence[Arm], path: Path, title: str, isometry: bool = False) -> None:
    """Plot the arms of a comparison: interquartile means over seeds, with each seed or 95 % intervals.

    With more than six arms only the means are drawn. A curve has a gap where the value of any seed is not
    finite.

    Args:
        arms: of one agent on one stream.
        path: of the figure, without its suffix; it is written as PNG and as SVG.
        title: of the figure.
        isometry: show the measures of isometry instead of the returns over each visit and the gap.
    """
    styles = _styles([arm.name for arm in arms])
    panels = panels_of(arms, isometry)

    unit = "samples" if panels.keys() & ONLINE.values() else "environment steps"

    def draw_panel(axis: Axes, label: str) -> None:
        by_visit = label.endswith("over each visit") or label.startswith("gap")
        _draw_panel(axis, panels[label], styles, "visit" if by_visit else unit, _switches(arms))

    _draw_figure(list(panels), draw_panel, styles, path, title)


def draw_along(arms: Sequence[Arm], flag: str, path: Path, title: str) -> None:
    """Plot scores, and diagnostics at the end, against the values of a flag.

    A line has the interquartile means over seeds with 95 % intervals; points are seeds. An arm that does not
    have the flag is a level line. The axis is logarithmic if all values are above 0.

    Args:
        arms: of one agent on one stream.
        flag: name of the flag, whose values are numbers.
        path: of the figure, without its suffix; it is written as PNG and as SVG.
        title: of the figure.
    """
    panels = panels_along(arms, flag)
    styles = _styles(list(dict.fromkeys(name for panel in panels.values() for name in panel)))

    def draw_panel(axis: Axes, label: str) -> None:
        for name, line in panels[label].items():
            _draw_line(axis, line, styles[name])
        values = [value for line in panels[label].values() for value in line if value is not None]
        axis.set_xscale("log" if min(values, default=0) > 0 else "linear")
        axis.set_xlabel(flag)

    _draw_figure(list(panels), draw_panel, styles, path, title)


def panels_along(arms: Sequence[Arm], flag: str) -> dict[str, dict[str, Line]]:
    """The panels of a figure along a flag: title -> arm without the flag -> its line.

    Values of the flag with which a seed was not measured, or is not finite, are left out.
    """
    panels: dict[str, dict[str, Line]] = {}
    for arm in sorted(arms, key=lambda arm: arm.results[0].flags.get(flag) or 0.0):
        value = arm.results[0].flags.get(flag)
        name = arm.name.replace(f"-{note_of(flag, value, ())}", "").replace(f" {flag}={value}", "")
        found = {label: list(arm.scores(tag).values()) for label, tag in SCORES.items()}
        for tag, label in DIAGNOSTICS.items():
            found[f"{label}, at the end"] = [float(values[-1]) for _, values in arm.points(tag)]
        for label, seeds in found.items():
            if len(seeds) == len(arm.results) and np.isfinite(seeds).all():
                panels.setdefault(label, {}).setdefault(name, {})[value] = np.array(seeds)
    return panels


def _styles(names: Sequence[str]) -> Styles:
    """A colour and a kind of line for each name."""
    return {
        name: {"color": f"C{number % COLORS}", "linestyle": LINES[number // COLORS % len(LINES)]}
        for number, name in enumerate(names)
    }


def _draw_figure(
    labels: Sequence[str], draw_panel: Callable[[Axes, str], None], styles: Styles, path: Path, title: str
) -> None:
    """Write a figure with a panel for each label and a legend, as PNG and as SVG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    columns = 2 if len(labels) < 5 else 3
    lines = max(1, -(-len(labels) // columns))
    settings: Any = {"svg.hashsalt": "neoteny", "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(settings):
        figure, axes = plt.subplots(lines, columns, figsize=(4.3 * columns, 3.1 * lines + 0.5), squeeze=False)
        figure.set_layout_engine("constrained")
        for axis, label in zip(axes.flat, labels):
            axis.set_title(label, fontsize="medium")
            draw_panel(axis, label)
        for axis in axes.flat[len(labels) :]:
            axis.set_axis_off()
        _add_legend(figure, styles)
        figure.suptitle(title)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(f"{path}.png", dpi=130)
        figure.savefig(f"{path}.svg", metadata={"Date": None})
        plt.close(figure)


def _draw_line(axis: Axes, line: Line, style: dict[str, Any]) -> None:
    """Draw what an arm reaches with each value of a flag, seeds (S,), or without the flag."""
    if None in line:
        axis.axhline(iqm_interval(line[None])[0], **style)
    points = {value: seeds for value, seeds in line.items() if value is not None}
    if points:
        middle, low, high = np.array([iqm_interval(seeds) for seeds in points.values()]).T
        axis.plot(list(points), middle, **style)
        axis.fill_between(list(points), low, high, color=style["color"], alpha=0.18, linewidth=0)
    for value, seeds in points.items():
        axis.plot([value] * len(seeds), seeds, ".", color=style["color"], alpha=0.45)


def panels_of(arms: Sequence[Arm], isometry: bool = False) -> dict[str, dict[str, Points]]:
    """The panels of a figure: title -> arm -> x (X,), and the curves of its seeds (S, X)."""
    panels = {}
    first = {"charts/episodic_return": "return"} if isometry else RETURNS
    for tag, label in first.items():
        panels[label] = {arm.name: found for arm in arms if (found := curves(arm.results, tag))}
    for label in ONLINE.values():
        if panels.get(label):
            score = label.removeprefix("online ").removesuffix(", online")
            panels[f"{score} over each visit"] = panels.pop("return over each visit")
    for kind, label in ({} if isometry else GAPS).items():
        panels[label] = {arm.name: found for arm in arms if (found := _gaps(arm, kind))}
    for tag, label in (ISOMETRY if isometry else DIAGNOSTICS).items():
        panels[label] = {arm.name: found for arm in arms if (found := curves(arm.results, tag))}
    return {label: panel for label, panel in panels.items() if panel}


def _gaps(arm: Arm, kind: str) -> Points | None:
    """The plasticity gap of each visit, for all seeds with references."""
    gaps = [
        plasticity_gap(result.visits, result.fresh[kind], "return_auc")
        for result in arm.results
        if kind in result.fresh
    ]
    visits = min(map(len, gaps), default=0)
    return (np.arange(visits, dtype=float), np.stack([gap[:visits] for gap in gaps])) if visits else None


def _switches(arms: Sequence[Arm]) -> list[int]:
    """Steps of the switches, if they are the same in all runs and not too many."""
    found = {tuple(visit["start"] for visit in result.visits[1:]) for arm in arms for result in arm.results}
    return list(*found) if len(found) == 1 and len(min(found)) <= SWITCHES else []


def _add_legend(figure: Figure, styles: Styles) -> None:
    """Name the arms below the panels, in as many columns as fit."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=textwrap.fill(name, 80), **style) for name, style in styles.items()]
    for columns in range(min(4, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
        if columns == 1 or legend.get_window_extent().width < figure.bbox.width:
            break
        legend.remove()


def _draw_panel(
    axis: Axes, panel: dict[str, Points], styles: Styles, unit: str, switches: Sequence[int]
) -> None:
    """Draw the curves of a panel, name of the arm -> x (X,) in a unit, and seeds (S, X)."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for name, (x, seeds) in panel.items():
        color, marker = styles[name]["color"], "." if len(x) < 3 else None
        seeds = np.where(np.isfinite(seeds).all(0), seeds, np.nan)
        middle, low, high = _interval(seeds)
        axis.plot(x, middle, **styles[name], linewidth=1.8, marker=marker, zorder=3)
        if len(styles) > MOST_INTERVALS:
            continue
        if len(seeds) <= FEW_SEEDS:
            axis.plot(x, seeds.T, color=color, linewidth=0.7, alpha=0.45, zorder=2)
        else:
            axis.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0, zorder=1)
            axis.plot(x, np.stack((low, high), 1), color=color, linewidth=0.6, alpha=0.6, zorder=2)
    if unit == "visit":
        axis.set_xlabel(unit)
        if "gap" in axis.get_title():
            axis.axhline(0, color="black", linewidth=0.8, zorder=0)
    else:
        axis.set_xlabel(f"{unit} (thin lines: switches)" if switches else unit)
        for step in switches:
            axis.axvline(step, color="0.85", linewidth=0.6, zorder=0)
    axis.xaxis.set(major_locator=MaxNLocator(integer=True, nbins=6), major_formatter=EngFormatter(sep=""))


def _interval(seeds: Array) -> tuple[Array, Array, Array]:
    """Interquartile mean of curves (S, X), and its interval where all are finite; else NaN."""
    known = np.isfinite(seeds).all(0)
    found = np.full((3, seeds.shape[1]), np.nan)
    if known.any():
        found[:, known] = curve_interval(seeds[:, known])
    return found[0], found[1], found[2]
