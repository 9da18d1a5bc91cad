"""How the runs of scripts/faults.py came out: what differs from undisturbed ones, and the table."""

from __future__ import annotations

import collections
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from neoteny.runners.disk import checkpoint
from neoteny.runners.disk.events import event_files
from neoteny.scripts.fault_cases import (
    CHECKPOINTS,
    FOREIGN,
    POISON,
    STOPPED,
    TOGETHER,
    UNREAD,
    Case,
)
from neoteny.scripts.fault_processes import LOCKED, POINTS


@dataclasses.dataclass
class Differences:
    """What differs between a finished run and one that was not disturbed."""

    names: list[str] = dataclasses.field(default_factory=list)
    """Of files, parts of the state and tags."""
    duplicated: int = 0
    """Points that are there too often."""
    missing: int = 0


@dataclasses.dataclass
class Outcome:
    """The result of a case."""

    case: Case
    met: list[str] = dataclasses.field(default_factory=list)
    """Faults that hit a living process."""
    recomputed: list[int] = dataclasses.field(default_factory=list)
    """Steps that were repeated after each fault."""
    latency: list[float] = dataclasses.field(default_factory=list)
    """Seconds from each SIGTERM to the end of the process."""
    lost: str = ""
    """Why the run is lost, if it is."""
    exact: bool = True
    """Whether the run called itself exact."""
    differences: Differences = dataclasses.field(default_factory=Differences)

    @property
    def is_fault(self) -> bool:
        """Whether the run is lost, or called itself exact and is different."""
        return bool(self.lost or (self.exact and self.differences.names))


def compare(folder: Path, reference: Path) -> Differences:
    """All differences between two finished runs."""
    ours, theirs = (dict(contents(path)) for path in (folder, reference))
    names = {name for name in ours.keys() | theirs if ours.get(name) != theirs.get(name)}
    points, expected = (collections.Counter(all_points(path)) for path in (folder, reference))
    names |= {tag for tag, *_ in (points - expected) + (expected - points)}
    counts, known = (
        collections.Counter((tag, step) for tag, step, _ in c.elements()) for c in (points, expected)
    )
    return Differences(sorted(names), (counts - known).total(), (known - counts).total())


def contents(folder: Path) -> Iterator[tuple[str, Any]]:
    """The contents of a finished run, except for times: name -> bytes or number."""
    yield "weights", (folder / "checkpoint" / "weights.safetensors").read_bytes()
    yield "visits.jsonl", (folder / "visits.jsonl").read_bytes()
    yield "files", sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if is_compared(path))
    yield "number of checkpoints", len(checkpoint.checkpoints(folder / "checkpoint"))
    summary = json.loads((folder / "summary.json").read_text())
    yield "summary.json", {name: value for name, value in summary.items() if name != "seconds"}
    state = checkpoint.load_checkpoint(folder / "checkpoint")
    assert state is not None
    names = ("step", "update", "parts", "rng", "visit", "visits_size", "event_counts")
    yield from leaves({name: state[name] for name in names}, "state")
    if (folder / "replay").exists():
        memory = state["parts"]["memory"]
        kept, places = memory["layout"]["kept"], memory["layout"]["places"]
        rows = [
            env * places + np.arange(max(0, head - kept), head) % places
            for env, head in enumerate(memory["head"].tolist())
        ]
        for path in sorted((folder / "replay").glob("*.npy")):
            yield f"replay/{path.name}", np.load(path, mmap_mode="r")[np.concatenate(rows)].tobytes()


def is_compared(path: Path) -> bool:
    """Whether an undisturbed run has a file of this name too; a signal may ask for other checkpoints."""
    is_checkpoint = "checkpoint" in path.parts and any(part.startswith("step_") for part in path.parts)
    of_attempts = path.parent.name == "attempts" or "crash" in path.parts or "tfevents" in path.name
    return not (is_checkpoint or of_attempts)


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The leaves of a state, by their paths."""
    if isinstance(tree, dict | list | tuple):
        for key, item in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if key != "audit_seconds" and not str(key).startswith("time/"):
                yield from leaves(item, f"{path}/{key}")
    elif isinstance(tree, torch.Tensor | np.ndarray):
        yield path, (str(tree.dtype), tuple(tree.shape), np.asarray(tree).tobytes())
    else:
        yield path, repr(tree)


def all_points(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    """Every point in the event files, superseded ones included, but for times: tag, step, value."""
    for path in event_files(folder):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                tag = value.tag
                if not tag.startswith(("time/", "_hparams_")) and tag != "charts/SPS":
                    yield tag, event.step, value.tensor.SerializeToString(deterministic=True)


KINDS: dict[str, Callable[[str], bool]] = {
    "SIGKILL at a random step": lambda fault: fault == "SIGKILL",
    "SIGKILL while a checkpoint is written": lambda fault: fault in POINTS,
    "SIGKILL under the run's lock": lambda fault: fault == f"SIGKILL {LOCKED}",
    "SIGKILL at the start": lambda fault: fault.startswith("SIGKILL start"),
    "SIGKILL at a switch and in its audit": lambda fault: fault.startswith("SIGKILL switch"),
    "SIGKILL at the end and in its pictures": lambda fault: fault.startswith("SIGKILL finish"),
    "SIGTERM": lambda fault: fault == "SIGTERM",
    UNREAD: lambda fault: fault == UNREAD,
    f"{STOPPED} at a random step": lambda fault: fault == STOPPED,
    f"{STOPPED} while a checkpoint is written": lambda fault: (
        fault in [f"{STOPPED} {point}" for point in POINTS]
    ),
    f"{STOPPED} under the run's lock": lambda fault: fault == f"{STOPPED} {LOCKED}",
    f"{STOPPED} at the start": lambda fault: fault.startswith(f"{STOPPED} start"),
    f"{STOPPED} at a switch": lambda fault: fault.startswith(f"{STOPPED} switch"),
    f"{STOPPED} at the end": lambda fault: fault.startswith(f"{STOPPED} finish"),
    TOGETHER: lambda fault: fault == TOGETHER,
    FOREIGN: lambda fault: fault == FOREIGN,
    "NaN in rewards or observations": lambda fault: fault in POISON,
    "SIGKILL of an environment's worker": lambda fault: fault == "worker killed",
    "SIGSTOP of an environment's worker": lambda fault: fault == "worker stopped",
    "code changed before a resume": lambda fault: fault == "code changed",
}
"""Rows of the table, and which faults they hold."""
HEADER = ("fault", "times", "steps repeated: median, most", "seconds to save and end: median, most")


def table(outcomes: Sequence[Outcome]) -> str:
    """The results as a Markdown table, with a row for each kind of fault that has hit a process."""
    rows = [[*HEADER], ["---"] * len(HEADER)]
    for name, of_kind in KINDS.items():
        again = [
            steps
            for outcome in outcomes
            for fault, steps in zip(outcome.met, outcome.recomputed)
            if of_kind(fault)
        ]
        if not again:
            continue
        latency = (
            [seconds for outcome in outcomes for seconds in outcome.latency] if name == "SIGTERM" else []
        )
        rows.append(
            [
                name,
                str(len(again)),
                f"{statistics.median(again):.0f}, {max(again)}",
                f"{statistics.median(latency):.2f}, {max(latency):.2f}" if latency else "-",
            ]
        )
    lost = sum(bool(outcome.lost) for outcome in outcomes)
    exact = [outcome for outcome in outcomes if outcome.exact]
    others = [outcome for outcome in outcomes if not outcome.exact]
    total = sum(len(outcome.met) for outcome in outcomes)
    names = " and ".join(sorted({outcome.case.agent.upper() for outcome in outcomes}))
    streams, steps = len({outcome.case.stream for outcome in outcomes}), outcomes[0].case.steps
    methods = len({outcome.case.method for outcome in outcomes} - {""})
    with_methods = f" with {methods} methods" if methods else ""
    wrong = [outcome.differences for outcome in exact]
    different = sum(bool(found.names) for found in wrong)
    inexact = (
        f"Not counted as different are {len(others)} runs that said they were not exact; "
        f"{sum(bool(outcome.differences.names) for outcome in others)} of them were different. "
    )
    return "\n".join(
        [
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"{total} faults in {len(outcomes)} runs of {names} over {streams} streams{with_methods}: "
            f"runs lost {lost}, runs different {different}, points duplicated "
            f"{sum(found.duplicated for found in wrong)}, points missing "
            f"{sum(found.missing for found in wrong)}. {inexact if others else ''}"
            f"A run has {steps:,} steps and a checkpoint every {steps // CHECKPOINTS}.",
        ]
    )
