"""Runs for TensorBoard with the curves of an arm over its seeds: one line per arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.tensorboard.summary import custom_scalars

from neoteny.runners.board import is_charted, pooled_charts, pooled_tags
from neoteny.runners.disk.events import EventWriter, event_files
from neoteny.runners.intervals import curve_interval
from neoteny.runners.results import Result, curves


def write_pooled(folder: Path, results: Sequence[Result]) -> None:
    """Write the interquartile means over seeds of all curves, with their 95 % intervals.

    They replace those that the folder has. The mean has the tag of the seeds, so that the same charts show
    it; the interval has ``pooled/<tag>/low`` and ``/high``. Points at which the value of any seed is not
    finite are left out.

    Args:
        folder: of the pooled run.
        results: the runs of an arm.
    """
    tags = sorted({tag for result in results for tag in result.points if is_charted(tag)})
    found = {tag: points for tag in tags if (points := curves(results, tag))}
    folder.mkdir(parents=True, exist_ok=True)
    old = event_files(folder)
    number = 1 + max((int(path.suffix[1:]) for path in old), default=0)
    writer = EventWriter(folder, number, purge_step=0)  # a TensorBoard that is open forgets the old points
    writer.add(custom_scalars(pooled_charts(found)))
    for tag, (steps, seeds) in found.items():
        known = np.isfinite(seeds).all(0)
        if known.any():
            for step, *values in zip(steps[known], *curve_interval(seeds[:, known])):
                writer.metrics(dict(zip(pooled_tags(tag), map(float, values))), int(step))
    writer.close()
    for path in old:
        path.unlink()
