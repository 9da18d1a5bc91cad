"""Processes of scripts/faults.py, each an attempt at a run, and what disturbs them from within."""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from neoteny.envs import Stream
from neoteny.envs.auditor import Auditor
from neoteny.envs.single import workers
from neoteny.envs.single.workers import ProcessEnvs, Worker
from neoteny.runners import illustrations, record, run
from neoteny.runners.disk import appended, attempts, checkpoint, opening
from neoteny.runners.disk.checkpoint import MANIFEST, STATE, TENSORS
from neoteny.runners.disk.messages import protect_output
from neoteny.runners.replay import ReplayMemory

Patch = tuple[Any, str]

LOCKED = "under the lock"
WRITTEN = "switch: written"
# Functions before which a process is killed or stopped, WRITTEN after it: name -> owner, attribute.
PLACES: dict[str, Patch] = {
    LOCKED: (attempts.Attempt, "section"),
    "start: number": (opening, "_restore"),
    "start: files": (opening, "prune"),
    "start: events": (record, "EventWriter"),
    "start: meta": (record.Record, "write_meta"),
    "switch: scores": (run.Run, "_log_switch"),
    "switch: audit": (Auditor, "switch"),
    WRITTEN: (appended.Journal, "append"),
    "finish: weights": (run, "policy_as_bytes"),
    "finish: scores": (run, "run_scores"),
    "finish: pictures": (illustrations, "draw_pictures"),
    "finish: summary": (record, "changed_file"),
}
WORKERS = 2  # of some runs
NEVER = 2**62  # a step that no run reaches
HANGS = 1800.0  # seconds by the clock after which a process is killed
HUNG = 124  # its exit code then, that of the command `timeout`

# Points in the writing of a checkpoint at which a process is killed.
POINTS = (
    "begin", "inside tensors", "inside state", "before manifest", "inside manifest", "before rename",
    "after rename", "inside pruning",
)  # fmt: skip


class Process:
    """One attempt at a run, forked from here so that it starts at once.

    Args:
        case: the run.
        args: its arguments.
        log: file of its messages; ``None`` for a pipe that nobody reads.
        point: where it sends itself a signal, one of `POINTS` or `PLACES`.
        nth: at which time there.
        number: the signal.
        poison: what is NaN, rewards or observations, from the step :attr:`poison_from` on.
    """

    def __init__(
        self, case: Any, args: Any, log: Path | None, point: str = "", nth: int = 1,
        number: int = signal.SIGKILL, poison: str = "reward",
    ) -> None:  # fmt: skip
        context = multiprocessing.get_context("fork")
        self.code: int | None = None
        self.progress, self.workers = context.RawValue("q", -1), context.RawArray("q", WORKERS)
        self.poison_from = context.RawValue("q", NEVER)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                protect_output()
                output = (
                    _unread_pipe() if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                )
                os.dup2(output, 1)
                os.dup2(1, 2)
                tqdm.set_lock(threading.RLock())  # a killed process would keep the shared lock
                self._watch()
                setattr(ReplayMemory, "discard", lambda memory: None)  # noqa: B010  (it is compared)
                signal_at(point, nth, number)
                poison_steps(poison, self.poison_from)
                sys.dont_write_bytecode = True
                sys.path.insert(0, str(Path(args.runs_dir)))  # where the code of FaultyCode-v0 is
                if case.is_copied:
                    self._replace_optimizer(case, args)
                importlib.import_module(f"neoteny.agents.{case.agent}").main(args)
                code = 0
            except SystemExit as exit:
                code = int(exit.code or 0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                os._exit(code)

    def _replace_optimizer(self, case: Any, args: Any) -> None:
        """Let the agent have an optimizer of torch, as a copied agent may."""

        def build(
            config: Any, module: torch.nn.Module, lr: float, exclude: Any = ()
        ) -> torch.optim.Optimizer:
            return case.torch_optimizer(module, lr)

        type(args.optim).build = build

    def _watch(self) -> None:
        """Share the number of steps so far and the newest workers with the parent process."""
        record, spawn = run.Run.record_episodes, ProcessEnvs._spawn

        progress = self.progress

        def recorded(self: run.Run, *made: Any) -> None:
            progress.value = self.stream.steps
            record(self, *made)

        def spawned(self: ProcessEnvs, envs: range, workers: Any = self.workers) -> Worker:
            worker = spawn(self, envs)
            workers[:] = [*workers[1:], worker.process.pid]
            return worker

        run.Run.record_episodes = recorded  # type: ignore[method-assign, assignment]
        ProcessEnvs._spawn = spawned  # type: ignore[method-assign]
        workers.WORKER_SECONDS = 15.0  # how long to wait for stopped workers, also on a machine that is busy
        attempts.PATIENCE = 1.0  # how long for one that was stopped while it had the lock
        appended.FLUSH_SECONDS = 0.0  # so that what is killed leaves events after its last checkpoint

    def wait(self, until: int = NEVER) -> int | None:
        """Wait until it has made ``until`` steps or was stopped (returns None), or ended.

        Returns its exit code, negative if it was killed; `HUNG` if nothing of this happens.
        """
        deadline = time.monotonic() + HANGS
        while self.code is None and self.progress.value < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if not pid and time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.code = HUNG
            elif not pid:
                time.sleep(0.001)
            elif os.WIFSTOPPED(status):
                return None
            else:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def send(self, number: int, pid: int = 0) -> None:
        """Send a signal to it, or to one of its workers; has no effect if that process has ended."""
        if self.code is not None:  # another process may have its id by now
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or self.pid, number)


def _unread_pipe() -> int:
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def poison_steps(what: str, begin: Any) -> None:
    """Let an environment return a NaN once: a reward, or an observation of floats.

    Args:
        what: "reward" or "observation".
        begin: its value is the first step at which it may.
    """
    real = Stream.step_tensors
    given: list[int] = []

    def poisoned(self: Stream, actions: Any) -> Any:
        made = real(self, actions)
        if self.steps < begin.value or given:
            return made
        given.append(self.steps)
        floats = made.observations.is_floating_point()
        name = "observations" if what == "observation" and floats else "rewards"
        tensor = getattr(made, name).clone()
        tensor[0] = math.nan
        return made._replace(**{name: tensor})

    Stream.step_tensors = poisoned  # type: ignore[method-assign]


def signal_at(point: str, nth: int, number: int) -> None:
    """Make this process send itself a signal when it reaches a point for the nth time."""
    if not point:
        return
    count = 0

    def reached() -> bool:
        nonlocal count
        count += 1
        return count == nth

    def die() -> None:
        os.kill(os.getpid(), number)

    if point in PLACES:
        owner, attribute = PLACES[point]
        real = getattr(owner, attribute)

        def watched(*args: Any, **options: Any) -> Any:
            met = reached()
            if met and point != WRITTEN:
                die()
            result = real(*args, **options)
            if met and point == WRITTEN:
                die()
            return result

        @contextlib.contextmanager
        def within(*args: Any) -> Iterator[None]:
            with real(*args):
                if reached():
                    die()
                yield

        setattr(owner, attribute, within if point == LOCKED else watched)
        return
    write, sync, remove = checkpoint.write_bytes, checkpoint.sync_folder, checkpoint._remove
    file = {"tensors": TENSORS, "state": STATE, "manifest": MANIFEST}
    where, _, what = point.partition(" ")
    before = {"begin": TENSORS, "before manifest": MANIFEST}.get(point)
    inside = file.get(what) if where == "inside" else None

    def write_bytes(path: Path, data: bytes) -> None:
        if path.name == before and reached():
            die()
        if path.name == inside and reached():
            write(path, data[: len(data) // 2])
            die()
            path.unlink(missing_ok=True)  # it was only stopped, and goes on
        write(path, data)

    def sync_folder(folder: Path) -> None:
        sync(folder)
        is_temporary = folder.name.startswith(".tmp_")
        if point == ("before rename" if is_temporary else "after rename") and reached():
            die()

    def remove_checkpoint(checkpoint: Path) -> None:
        if point == "inside pruning" and reached():
            old = checkpoint.with_name(".old_half")
            checkpoint.rename(old)
            (old / STATE).unlink()
            die()
            shutil.rmtree(old, ignore_errors=True)
            return
        remove(checkpoint)

    checkpoint.write_bytes, checkpoint.sync_folder = write_bytes, sync_folder
    checkpoint._remove = remove_checkpoint
