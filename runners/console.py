"""What a run prints at its start and at its end."""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from tqdm import tqdm

from neoteny.optim import optimizer_name
from neoteny.runners.disk.folder import agent_name
from neoteny.runners.disk.messages import tolerant


def first_lines(
    agent: str, args: Any, total_steps: int, remarks: Sequence[str], optimizer: Optimizer | None = None
) -> str:
    """What runs: agent, optimizer, methods, steps and device; then the remarks without indented lines.

    Args:
        agent: file of the agent, or its name.
        args: its arguments, a :class:`RunArgs` with ``stream`` and ``optim``.
        total_steps: of the run.
        remarks: on its set-up, of several lines each.
        optimizer: the run's, if it may be another than that of the arguments.
    """
    kind = args.optim.name if optimizer is None else optimizer_name(optimizer)
    learning = " and ".join((kind, *(method.name for method in args.methods)))
    together = getattr(args, "seeds", ())
    seeds = f"seeds {', '.join(map(str, together))} together" if together else f"seed {args.seed}"
    what = f"{agent_name(agent)} with {learning}: {total_steps:,} steps on {args.device}, {seeds}"
    known = [line for remark in remarks for line in remark.splitlines()]
    return "\n".join((what, *(line for line in known if line and not line.startswith(" "))))


def last_lines(folder: Path, args: Any, steps: int, summary: Mapping[str, Any], is_played: bool) -> str:
    """Where a finished run is, its scores, and the commands that look at it.

    Args:
        folder: of the run.
        args: its arguments.
        steps: that it has made.
        summary: as in ``summary.json``.
        is_played: whether it has a policy that can be played.
    """
    time = datetime.timedelta(seconds=round(summary["seconds"]["total"]))
    numbers = {
        tag.removeprefix("score/"): value for tag, value in summary.items() if tag.startswith("score/")
    }
    known = {name: value for name, value in numbers.items() if math.isfinite(value)}
    scores = ", ".join(f"{name} {value:,.{0 if abs(value) >= 1000 else 2}f}" for name, value in known.items())
    run, runs = shown(folder), shown(args.runs_dir)
    commands = [f"neoteny evaluate {run}"] if is_played else []
    commands += [f"neoteny compare {runs}", f"tensorboard --logdir {runs}"]
    lines = (
        f"{run}: {steps:,} steps in {time}",
        scores,
        f"next: {', '.join(commands)}",
    )
    return "\n".join(filter(None, lines))


def progress_bar(description: str, total_steps: int, step: int) -> tqdm:
    """The progress bar of a run that has made ``step`` steps."""
    return tqdm(
        total=total_steps,
        initial=step,
        unit="step",
        unit_scale=True,
        mininterval=1.0,  # seconds; a line takes as long to draw as an update to log
        desc=description,
        file=tolerant(sys.stderr),
    )


def shown(path: Path) -> Path:
    """A path as a user would type it: from the current folder, if it is in there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
