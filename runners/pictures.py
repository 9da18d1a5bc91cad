"""Two plots of a run from its event files: the spectra of its weights, and its dormant units."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from neoteny.runners.disk.events import read_points

if TYPE_CHECKING:  # matplotlib is optional, and imported only when a plot is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPECTRA, DORMANT = "spectra/", "plasticity/dormant_0.025/"

COLUMNS = 300  # most measurements that are drawn, evenly spaced
BINS = 60  # number of bins of singular values, equal on the logarithmic axis
SMALLEST = 1e-3  # smaller singular values are drawn at this value
SWITCHES = 60  # with more switches none are drawn, since the lines would hide the plot

Points = dict[str, list[tuple[int, Any]]]


def draw_pictures(folder: Path, switches: Sequence[int]) -> dict[str, bytes]:
    """Draw the plots of a run whose task changed at the environment steps ``switches``.

    Returns:
        PNG by name: ``spectra``, the singular values of each hidden layer, and ``dormant``, the dormant units
        (0.025) of each. A layer needs two measurements to be drawn. The same run gives the same bytes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    points = read_points(folder, lambda tag: tag.startswith((SPECTRA, DORMANT)))
    spectra = {layer: row for layer, row in _layers(points, SPECTRA).items() if not layer.endswith(".head")}
    dormant = _layers(points, DORMANT)
    pictures = {}
    if spectra:
        pictures["spectra"] = _draw_spectra(spectra, switches)
    if dormant:
        pictures["dormant"] = _draw_dormant(dormant, switches)
    return pictures


def _layers(points: Points, prefix: str) -> Points:
    """Measurements by layer, for layers with at least two of them, thinned to ``COLUMNS``."""
    found = {
        tag.removeprefix(prefix): row
        for tag, row in points.items()
        if tag.startswith(prefix) and "." in tag.removeprefix(prefix) and len(row) > 1
    }
    return {
        layer: [row[i] for i in np.linspace(0, len(row) - 1, min(len(row), COLUMNS)).round().astype(int)]
        for layer, row in found.items()
    }


def _draw_spectra(spectra: Points, switches: Sequence[int]) -> bytes:
    """A heat map of singular values over time for each layer; one column of heat maps per network part."""
    from matplotlib.ticker import LogLocator

    parts: dict[str, list[str]] = {}
    for layer in spectra:
        parts.setdefault(layer.partition(".")[0], []).append(layer)
    rows = max(map(len, parts.values()))
    sigmas = np.concatenate([sigma for row in spectra.values() for _, sigma in row])
    low, high = min(0.5, max(SMALLEST, 0.9 * sigmas.min())), max(2.0, 1.1 * sigmas.max())
    bins = np.geomspace(low, high, BINS + 1)
    figure, axes, scale = _figure(rows, len(parts), height=1.7, left=0.8, right=0.2)
    for axis in axes.flat:
        axis.set_axis_off()
    for layers, column in zip(parts.values(), axes.T):
        for axis, layer in zip(column, layers):
            steps, values = zip(*spectra[layer])
            counts = [np.histogram(np.maximum(sigma, low), bins)[0] / len(sigma) for sigma in values]
            shares = np.ma.masked_equal(np.transpose(counts), 0)
            mesh = axis.pcolormesh(
                _edges(steps), bins, shares, cmap="viridis_r", norm="log", vmin=0.01, vmax=1
            )
            axis.axhline(1, color="black", linewidth=0.6, linestyle=":")
            axis.set_axis_on()
            axis.set(title=layer, yscale="log")
            axis.yaxis.set(major_locator=LogLocator(subs=(1, 3)), major_formatter="{x:g}")
            axis.minorticks_off()
            _draw_switches(axis, switches)
        axis.tick_params(labelbottom=True)  # also if other columns have more rows
        axis.set_xlabel("environment steps")
    figure.supylabel("singular value", fontsize="medium")
    # Not in powers of ten, for whose fonts Matplotlib warns where its cache of fonts is an old one.
    figure.colorbar(mesh, cax=scale, label="share of singular values", format="{x:g}")
    return _png(figure)


def _draw_dormant(dormant: Points, switches: Sequence[int]) -> bytes:
    """One heat map with a row per layer: its share of dormant units over time; the final one on the right."""
    figure, axes, scale = _figure(1, 1, height=0.4 * len(dormant), left=1.3, right=0.6)
    axis = axes[0, 0]
    for row, measured in enumerate(dormant.values()):
        steps, shares = zip(*measured)
        mesh = axis.pcolormesh(
            _edges(steps), (row - 0.5, row + 0.5), [shares], cmap="magma_r", vmin=0, vmax=1
        )
        text = f"{shares[-1]:.2f}"
        axis.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), va="center")
    axis.set_yticks(range(len(dormant)), dormant)
    axis.invert_yaxis()
    axis.set(title="dormant units (0.025), on the right at the end", xlabel="environment steps")
    _draw_switches(axis, switches)
    figure.colorbar(mesh, cax=scale, label="share of units")
    return _png(figure)


def _edges(steps: Sequence[int]) -> np.ndarray:
    """Edges (n + 1,) of the heat map's columns: halfway between measurements (n,), and both ends."""
    middles = (np.asarray(steps[1:]) + steps[:-1]) / 2
    return np.concatenate([steps[:1], middles, steps[-1:]])


def _draw_switches(axis: Axes, switches: Sequence[int]) -> None:
    """Draw a thin line at each switch, unless there are too many; label steps with k and M."""
    from matplotlib.ticker import EngFormatter

    first, last = axis.get_xlim()
    inside = [step for step in switches if first < step < last]
    if len(inside) <= SWITCHES:
        low, high = axis.get_ylim()
        axis.vlines(inside, low, high, color="black", alpha=0.4, linewidth=0.5)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _figure(
    rows: int, columns: int, height: float, left: float, right: float
) -> tuple[Figure, np.ndarray, Axes]:
    """Make a figure without pyplot and its windows, with an explicit layout, which is much faster.

    Its axes are four inches wide and ``height`` inches high, with ``left`` inches for labels and ``right``
    inches to the colour bar. Returns the figure, its axes (rows, columns) and the axis of the colour bar.
    """
    from matplotlib.figure import Figure

    gap, top, bottom = 0.4, 0.35, 0.55
    wide = left + columns * (4 + gap) - gap + right + 1.0
    high = top + rows * (height + gap) - gap + bottom
    figure = Figure(figsize=(wide, high), dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    figure.subplots_adjust(
        left / wide,
        bottom / high,
        1 - (right + 1.0) / wide,
        1 - top / high,
        wspace=gap / 4,
        hspace=gap / height,
    )
    scale = figure.add_axes((1 - 0.95 / wide, bottom / high, 0.2 / wide, 1 - (top + bottom) / high))
    return figure, axes, scale


def _png(figure: Figure) -> bytes:
    """The figure as an RGB PNG without metadata, so that the bytes are reproducible."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    png = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(png, "PNG")
    return png.getvalue()
