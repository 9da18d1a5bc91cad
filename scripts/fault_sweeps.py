"""Sweeps of scripts/faults.py that are killed while their runs go on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from neoteny.runners.disk.attempts import latest_attempt
from neoteny.runners.sweep import Job, make_slots, run_all
from neoteny.scripts.fault_cases import Case, arguments, words_of
from neoteny.scripts.fault_outcomes import Differences, compare

AGENT = Path(__file__).resolve().parents[1] / "agents" / "ppo.py"
KILLS = 3  # of a sweep


def sweep_is_same(seed: int, folder: Path) -> bool:
    """Kill a sweep of two runs again and again.

    Args:
        seed: of the runs, and of the moments of the kills.
        folder: for the runs.

    Returns:
        Whether the runs are the same as those of an undisturbed sweep, and each was trained by one process.
    """
    rng, made = random.Random(seed), []
    for name in ("calm", "wild"):
        cases = [Case("ppo", "cartpole-rotations", "adam", 1000 * seed + i, 4096, ()) for i in range(2)]
        runs_dir = folder / f"sweep{seed}-{name}"
        made.append([each.folder(arguments(each, runs_dir)) for each in cases])
        jobs = [
            Job((sys.executable, str(AGENT), *words_of(each, runs_dir, "--threads 1")), path)
            for each, path in zip(cases, made[-1])
        ]
        for _ in range(KILLS if name == "wild" else 0):
            pid = _started(jobs)
            time.sleep(rng.uniform(1.0, 12.0))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        _, status = os.waitpid(_started(jobs), 0)
        if status or not all(job.is_done() for job in jobs):
            return False
    once = all(latest_attempt(run) == 1 for run in made[1])
    return once and all(compare(ours, theirs) == Differences() for theirs, ours in zip(*made))


def _started(jobs: list[Job]) -> int:
    """A process with a sweep."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 1
        try:
            run_all([job for job in jobs if not job.is_done()], make_slots(len(jobs)))
            code = 0
        finally:
            os._exit(code)
    return pid
