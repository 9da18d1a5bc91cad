"""What a run prints at its start and at its end."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from neoteny.optim import optimizer_name
from neoteny.runners.disk.folder import agent_name


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
    what = f"{agent_name(agent)} with {learning}: {total_steps:,} steps on {args.device}, seed {args.seed}"
    known = [line for remark in remarks for line in remark.splitlines()]
    return "\n".join((what, *(line for line in known if line and not line.startswith(" "))))


def last_lines(folder: Path, runs_dir: Path, steps: int, summary: Mapping[str, Any]) -> str:
    """Where a finished run is, its scores, and the commands that look at it."""
    time = datetime.timedelta(seconds=round(summary["seconds"]["total"]))
    numbers = {
        tag.removeprefix("score/"): value for tag, value in summary.items() if tag.startswith("score/")
    }
    known = {name: value for name, value in numbers.items() if math.isfinite(value)}
    scores = ", ".join(f"{name} {value:,.{0 if abs(value) >= 1000 else 2}f}" for name, value in known.items())
    run, runs = shown(folder), shown(runs_dir)
    lines = (
        f"{run}: {steps:,} steps in {time}",
        scores,
        f"next: neoteny evaluate {run}, neoteny compare {runs}, tensorboard --logdir {runs}",
    )
    return "\n".join(filter(None, lines))


def shown(path: Path) -> Path:
    """A path as a user would type it: from the current folder, if it is in there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
