"""The results of runs, read from their folders: arguments, visits, scores and curves, finished or not."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from neoteny.runners.disk.appended import VISITS, read_rows
from neoteny.runners.disk.events import event_files, read_points
from neoteny.runners.disk.files import flatten
from neoteny.runners.disk.folder import is_finished
from neoteny.runners.identity import RENAMED
from neoteny.runners.scores import Array, Row, comparison_scores, reference_scores, run_scores

Points = tuple[Array, Array]
"""Steps (or numbers of visits) and values of a tag, (P,) each."""

POOLED = "pooled"
ASIDE = {"references", "tuning", POOLED}
"""Folders that hold no runs to compare: fresh agents, trials of hyper-parameters, means over seeds."""

PROGRESS = "charts/SPS"  # the tag that every update logs


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run has left so far."""

    folder: Path
    flags: dict[str, Any]
    """Arguments, flattened: ``stream.id``, ``lr``, ..."""
    finished: bool
    progress: float
    """Share of its steps that it has made."""
    visits: list[Row]
    """Scores of its visits, without the one that an unfinished run is in."""
    points: dict[str, Points]
    fresh: dict[str, dict[int, Row]]
    """Kind of reference (``base``, ``own``) -> task -> the visit of a fresh agent."""
    evaluated: dict[str, float] = dataclasses.field(default_factory=dict)
    """Scores of a finished run that its visits do not tell, such as ``score/forgetting``."""

    @property
    def place(self) -> tuple[str, str, str]:
        """Names of the stream, the agent and the variant: optimizer, methods and note."""
        stream, agent, variant, _ = self.folder.parts[-4:]
        return stream, agent, variant

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.flags["seed"])

    @functools.cached_property
    def scores(self) -> dict[str, float]:
        """The ``score/`` tags of its visits, also those against fresh agents; without those not measured."""
        scores = {**self.evaluated, **run_scores(self.visits), **comparison_scores(self.visits)}
        for kind, fresh in self.fresh.items():
            for tag, value in reference_scores(self.visits, fresh).items():
                scores[f"{tag}/{kind}"] = value
        return {tag: value for tag, value in scores.items() if not math.isnan(value)}

    def first_visits(self, number: int) -> Result:
        """The run as it was after its first visits."""
        visits = self.visits[:number]
        end = visits[-1]["end"] if visits else 0
        points = {
            tag: (steps[keep], values[keep])
            for tag, (steps, values) in self.points.items()
            if (keep := steps < number if tag.startswith("task/") else steps <= end).any()
        }
        return dataclasses.replace(self, visits=visits, points=points, evaluated={})


def find_runs(folders: Sequence[Path], report: Callable[[str], object]) -> list[Path]:
    """The folders of all runs below some folders, in order, without those that are no arms.

    Args:
        folders: to be searched, at any depth.
        report: is given a sentence on a folder with events of something else.
    """
    found: dict[Path, None] = {}
    for top in folders:
        paths = {
            path.parent for pattern in ("args.json", "events.out.tfevents*") for path in top.rglob(pattern)
        }
        for path in sorted(paths):
            is_crash = (path / "crash.json").exists()  # a bundle in the folder of its run
            if ASIDE.isdisjoint(path.relative_to(top).parts) and not is_crash:
                if (path / "args.json").exists():
                    found[path.resolve()] = None
                else:
                    report(f"{path} holds events, but no run of neoteny: left out")
    return list(found)


def read_results(
    folders: Sequence[Path], wanted: Callable[[str], bool], report: Callable[[str], object]
) -> Iterator[Result]:
    """Read the runs below some folders, with the points of wanted tags.

    Args:
        folders: to be searched, at any depth.
        wanted: whether the points of a tag are wanted.
        report: is given a sentence on each thing that could not be read; the others are read all the same.
    """
    for folder in tqdm(find_runs(folders, report), "reading runs", disable=None, leave=False):
        try:
            yield _read(folder, wanted, report)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            report(f"{folder} holds no readable run: left out ({type(error).__name__}: {error})")


def _progress(flags: Mapping[str, Any], steps: float, visits: int) -> float:
    """The share of a run that has been made: of its steps or, of a supervised learner, of its tasks."""
    return steps / flags["total_steps"] if "total_steps" in flags else visits / flags["num_tasks"]


def _read(folder: Path, wanted: Callable[[str], bool], report: Callable[[str], object]) -> Result:
    flags = flatten(_json(folder / "args.json"))
    flags = {RENAMED.get(name, name): value for name, value in flags.items()}
    for name in ("agent", "seed", "optim.name"):
        flags[name]  # raises LookupError if these are not the arguments of a run
    finished = is_finished(folder)
    damage: list[str] = []
    found = read_points(folder, lambda tag: tag == PROGRESS or wanted(tag), damage.append)
    # A process may be in the middle of a record.
    for sentence in damage if finished else [each for each in damage if "damaged" in each]:
        report(f"{sentence}: what comes before is shown")
    if not event_files(folder):
        report(f"{folder} has no event file")
    points = {
        tag: (np.array([step for step, _ in row], float), np.array([value for _, value in row], float))
        for tag, row in found.items()
        if isinstance(row[0][1], float)
    }
    summary = _json(folder / "summary.json") if finished else {}
    visits = summary["visits"] if finished else list(read_rows(folder / VISITS))
    last = points[PROGRESS][0][-1] if PROGRESS in points else 0
    return Result(
        folder,
        flags,
        finished,
        1.0 if finished else _progress(flags, float(last), len(visits)),
        visits,
        {tag: row for tag, row in points.items() if wanted(tag)},
        _fresh(folder, report),
        {tag: value for tag, value in summary.items() if tag.startswith("score/") and value is not None},
    )


def _fresh(folder: Path, report: Callable[[str], object]) -> dict[str, dict[int, Row]]:
    """The visits of fresh agents, by kind and task, from the ``references.json`` that a sweep writes."""
    path = folder / "references.json"
    if not path.exists():
        return {}
    fresh: dict[str, dict[int, Row]] = {}
    for kind, paths in _json(path).items():
        for task, place in paths.items():
            summary = folder / place / "summary.json"
            if summary.exists():
                fresh.setdefault(kind, {})[int(task)] = _json(summary)["visits"][0]
            else:
                report(f"{folder}: the fresh agent for task {task} ({kind}) has not finished")
    return fresh


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def over_time(points: Points, steps: float, bins: int) -> Array:
    """Mean value in each of equal parts of a run, (bins,); where there is none, that of the part before.

    Args:
        points: steps from 1 to ``steps``, and values.
        steps: of the whole run.
        bins: number of parts.

    Returns:
        The means; NaN before the first value.
    """
    ends, values = points
    places = np.minimum((ends - 1) * bins // steps, bins - 1).astype(int)
    counts = np.bincount(places, minlength=bins)
    sums = np.bincount(places, values, minlength=bins)
    means = np.divide(sums, counts, out=np.full(bins, np.nan), where=counts > 0)
    latest = np.maximum.accumulate(np.where(counts > 0, np.arange(bins), -1))
    return np.where(latest >= 0, means[latest], np.nan)


def average(points: Mapping[str, Points], pattern: str) -> Points | None:
    """Steps, and means over the tags that match a glob pattern, at the steps at which all were measured.

    ``None`` if no tag matches.
    """
    found = [points[tag] for tag in points if fnmatchcase(tag, pattern)]
    if len(found) < 2:
        return found[0] if found else None
    steps, values = aligned(found)
    return steps, values.mean(0)


def aligned(found: Sequence[Points]) -> Points:
    """The steps that all have, (X,), and the values of each there, (n, X)."""
    steps = functools.reduce(np.intersect1d, (steps for steps, _ in found))
    rows = [dict(zip(*row)) for row in found]
    return steps, np.array([[row[step] for step in steps] for row in rows])


def curves(results: Sequence[Result], pattern: str, bins: int = 80) -> Points | None:
    """The curves of runs, means over the tags that match a pattern, at the steps that all have.

    Returns, which are measured where episodes end, are averaged over equal parts of the run instead.

    Returns:
        Steps (X,) and values (S, X); ``None`` if no run has such a tag.
    """
    seeds = [points for result in results if (points := average(result.points, pattern))]
    if not seeds:
        return None
    if not pattern.startswith("charts/"):
        return aligned(seeds)
    end = max(steps[-1] for steps, _ in seeds)
    return end * (np.arange(bins) + 0.5) / bins, np.stack([over_time(seed, end, bins) for seed in seeds])
