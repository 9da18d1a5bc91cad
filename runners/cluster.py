"""Many runs on a Ray cluster: the same runs and folders as on one machine, on storage that all nodes share.

Each run is a task. If its node is lost, Ray starts the task on another, where the run goes on from its last
checkpoint. Claims see to it that a run whose node only seemed to be lost is not made twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from neoteny.runners.disk.claims import claim
from neoteny.runners.sweep import POLL, Display, Job, Outcome, Processes, State, attempt, signals_interrupt

NODES_LOST = 10  # times that a run may lose its node


def run_on_cluster(
    jobs: Sequence[Job], address: str, cpus: int, gpus: float, retries: int = 2
) -> list[Outcome]:
    """Run jobs on a Ray cluster, with one progress bar for all of them and a line for each that ends.

    All nodes must have neoteny installed and see the working directory under the same path. A job that
    another sweep has claimed is waited for, and made here if that sweep dies.

    Args:
        jobs: what to run.
        address: "auto" for the cluster that this machine belongs to, or HOST:PORT of its head.
        cpus: cores for each job.
        gpus: share of a GPU for each job.
        retries: how often a job that has crashed is tried again.

    Returns:
        Outcomes, in the order of the jobs.

    Raises:
        ValueError: there is no such cluster.
        KeyboardInterrupt: after Ctrl-C or another signal that asks to stop, once the running jobs have saved
            and ended.
    """
    outcomes: dict[int, Outcome] = {}
    # A task that fails by itself is not tried again: `attempt` has done that.
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": NODES_LOST}
    with _connected(address), Display(jobs) as display:
        make = ray.remote(**options)(_make)
        waiting = dict.fromkeys(range(len(jobs)), 0.0)  # number of a job -> when to start its task
        running: dict[Any, int] = {}
        with _cancelled_at_signals(running):
            while running or waiting:
                for number in [each for each, due in waiting.items() if due <= time.monotonic()]:
                    del waiting[number]
                    running[make.remote(jobs[number], retries, os.getcwd())] = number
                for task in ray.wait(list(running), timeout=POLL)[0] if running else ():
                    number = running.pop(task)
                    outcome = _result(task)
                    if outcome is None:  # another sweep has claimed it
                        waiting[number] = time.monotonic() + POLL
                    else:
                        outcomes[number] = outcome
                        display.end(number, outcome)
                if not running:
                    time.sleep(POLL)
    return [outcomes[number] for number in range(len(jobs))]


def _make(job: Job, retries: int, folder: str) -> Outcome | None:
    """On a node: run a job in a folder; ``None`` if another sweep has claimed it."""
    os.chdir(folder)
    held = claim(job.path, *job.others)
    if held is None:
        return None
    processes = Processes()
    # If Ray was started in the background of a script, SIGINT is ignored, and so is a cancellation.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # In a thread, since a task is cancelled by a KeyboardInterrupt in the main one.
        with ThreadPoolExecutor(1) as pool:
            try:
                made = pool.submit(attempt, job, held, processes, {}, retries)
                while not made.done():
                    time.sleep(0.2)
            except KeyboardInterrupt:
                processes.send(signal.SIGTERM)
            return made.result()
    finally:
        held.release()


def _result(task: Any) -> Outcome | None:
    """The result of a task that has ended."""
    try:
        return ray.get(task)
    except ray.exceptions.TaskCancelledError:
        return Outcome(State.STOPPED)
    except ray.exceptions.RayError as error:  # its nodes were lost again and again, or it cannot be started
        return Outcome(State.FAILED, " ".join(str(error).split())[:500])


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to a cluster."""
    try:
        ray.init(address, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"there is no Ray cluster at {address}: {' '.join(str(error).split())}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _cancelled_at_signals(running: Collection[Any]) -> Iterator[None]:
    """After a signal, let the running tasks save and end, and raise KeyboardInterrupt."""
    with signals_interrupt():
        try:
            yield
        except KeyboardInterrupt:
            for task in running:
                ray.cancel(task, recursive=False)
            if running:
                ray.wait(list(running), num_returns=len(running))
            raise
