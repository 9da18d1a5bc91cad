"""What many switches cost: a run of scripts/faults.py on a stream that only switches."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neoteny.envs.audit import Fingerprint
from neoteny.envs.schedule import Schedule
from neoteny.runners.disk.checkpoint import checkpoints
from neoteny.runners.run import Run
from neoteny.scripts.fault_cases import Case, arguments

TASKS = 100
MOST_MS, MOST_SECONDS = 1.0, 5.0  # of a switch, and of a resume
FEWEST = 128  # steps of an update, of which a run makes at least one


class Switches:
    """What a run needs of a stream, without environments."""

    audit_seconds = 0.0
    schedule = Schedule(period=1, tasks=TASKS)
    exact = True

    def __init__(self) -> None:
        self.steps = 0

    def misfit_before(self, step: int) -> str:
        """Nothing: all tasks fit."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Its steps."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore its steps."""
        self.steps = state["steps"]


def measure_switches(count: int, folder: Path) -> tuple[str, bool]:
    """Make so many switches, with a checkpoint after each hundredth part, and resume.

    Returns:
        A sentence on the costs, and whether they are within the limits.
    """
    case = Case("ppo", "cartpole-rotations", "adam", 1, count, ())
    args = dataclasses.replace(arguments(case, folder / "switches"), checkpoint_every=max(1, count // 100))
    prints = [Fingerprint("Box(4)", {"gravity": 9.8 * (k + 1)}, f"{k:040x}") for k in range(TASKS)]
    run, times = Run("ppo", args, Switches(), count), []
    for step in range(1, count + 1):
        started = time.process_time()
        run.stream.steps = step
        task = step % TASKS
        ended = torch.tensor([[1.0], [float(step % 7)], [1.0]])
        run.record_episodes({"task": task, "fingerprint": prints[task]}, ended)
        times.append(time.process_time() - started)
        if step % max(1, count // 1000) == 0:
            with run.end_update({}):
                pass
    newest = checkpoints(run.folder / "checkpoint")[-1]
    size = sum(path.stat().st_size for path in newest.iterdir())
    run.close()
    tenth = max(1, count // 10)
    first, last = (1000 * sum(part) / len(part) for part in (times[:tenth], times[-tenth:]))
    started = time.process_time()
    again = Run("ppo", args, Switches(), count)
    seconds = time.process_time() - started
    assert len(again.episodes.tasks) == count
    again.finish(nn.Linear(1, 1))
    visits = again.record.visits.path
    sentence = (
        f"{count:,} switches: {first:.3f} ms each in the first tenth, {last:.3f} ms in the last; a "
        f"checkpoint has {size:,} bytes, visits.jsonl {visits.stat().st_size:,}; a resume takes "
        f"{seconds:.1f} s."
    )
    return sentence, max(first, last) < MOST_MS and seconds < MOST_SECONDS
