"""Many runs side by side on this machine: claimed, retried, and shared with other sweeps."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import enum
import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from tqdm import tqdm

from neoteny.runners.disk.claims import Claim, claim
from neoteny.runners.disk.exit_codes import ExitCode
from neoteny.runners.disk.files import read_json, write_json
from neoteny.runners.disk.folder import finished_at
from neoteny.runners.disk.messages import tolerant
from neoteny.runners.disk.preemption import PASSED_ON, SIGNALS, handle

POLL = 1.0  # seconds between two looks at what other sweeps have claimed
LINES_KEPT = 20  # of the messages before a failure
HOPELESS = (ExitCode.BAD_INPUT, ExitCode.MISFIT, ExitCode.BROKEN)  # the same command would fail again
BAR = re.compile(r"(\d+)%\|")  # a run's progress bar among its messages


@dataclasses.dataclass(frozen=True)
class Job:
    """A run: its command line, and the folder that it leaves, or the file."""

    command: tuple[str, ...]
    path: Path
    replaces: int | None = None
    """When the run finished that this one replaces, as of :meth:`finished_at`."""
    others: tuple[Path, ...] = ()
    """Folders of the other seeds that the command trains; the one of `path` finishes last."""

    def __str__(self) -> str:
        return "/".join(self.path.parts[-4:])

    def finished_at(self) -> int | None:
        """When it finished, in nanoseconds; ``None`` if it has not."""
        return self.path.stat().st_mtime_ns if self.path.is_file() else finished_at(self.path)

    def is_done(self) -> bool:
        """Whether it has finished, and those of all other seeds."""
        is_done = self.finished_at() not in (None, self.replaces)
        return is_done and all(finished_at(folder) is not None for folder in self.others)


class State(enum.Enum):
    """How a job ended."""

    DONE = "done"
    DONE_ELSEWHERE = "done by another sweep"
    TAKEN = "trained by another process"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended, and why."""

    state: State
    reason: str = ""
    seconds: float = 0.0


def run_all(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], retries: int = 2) -> list[Outcome]:
    """Run jobs side by side, with one progress bar for all of them and a line for each.

    A job that another sweep has claimed is waited for, and made here if that sweep dies. A preempted run,
    which has saved its state, goes on at once. One that crashes is tried again, and the reasons are kept in
    a file beside its folder (``s1.failures.json``). Standard output of the runs is dropped.

    Args:
        jobs: what to run.
        slots: for each of the jobs that run at the same time, changes to its environment, see `make_slots`.
        retries: how often a job that has crashed is tried again.

    Returns:
        Outcomes, in the order of the jobs.

    Raises:
        KeyboardInterrupt: after Ctrl-C or another signal that asks to stop, once the running jobs have saved
            and ended. They receive Ctrl-C too; other signals are passed on to them.
        OSError: a claim cannot be written.
    """
    queue, processes = _Queue(jobs), Processes()
    outcomes: dict[int, Outcome] = {}
    with Display(jobs, lines=len(slots)) as display:

        def work(slot: int) -> None:
            while (taken := queue.take(processes)) is not None:
                number, held = taken
                show = functools.partial(display.show, number, slot)
                try:
                    outcomes[number] = attempt(jobs[number], held, processes, slots[slot], retries, show)
                finally:
                    held.release()
                display.end(number, outcomes[number], slot)

        with signals_interrupt(processes.send), ThreadPoolExecutor(len(slots)) as pool:
            try:
                workers = [pool.submit(work, slot) for slot in range(len(slots))]
                for worker in workers:
                    worker.result()
            except BaseException:
                processes.stop()
                raise
    return [outcomes[number] for number in range(len(jobs))]


def attempt(
    job: Job,
    held: Claim,
    processes: Processes,
    environment: Mapping[str, str],
    retries: int,
    show: Callable[[str], object] = lambda line: None,
) -> Outcome:
    """Run a claimed job until it is done, or has failed for good.

    Args:
        job: what to run.
        held: its claim.
        processes: of the sweep.
        environment: changes to the environment of the process.
        retries: how often it is tried again after it has crashed.
        show: is given each message of the process, its progress bars too.
    """
    if job.is_done():
        return Outcome(State.DONE_ELSEWHERE)
    start, failures = time.monotonic(), 0
    while True:
        last = collections.deque[str](maxlen=LINES_KEPT)

        def listen(line: str, last: collections.deque[str] = last) -> None:
            if not BAR.search(line):
                last.append(line)
            show(line)

        code = processes.run(job.command, environment, held.descriptors, listen)
        state, reason = State.FAILED, ""
        if job.is_done():
            state = State.DONE
        elif processes.stopping:
            state = State.STOPPED
        elif code == ExitCode.TAKEN:
            state = State.TAKEN
        elif code == ExitCode.PREEMPTED:
            continue
        else:
            failures += 1
            reason = _keep_failure(job, code, list(last))
            if code not in HOPELESS and failures <= retries:
                continue
        return Outcome(state, reason, time.monotonic() - start)


def _keep_failure(job: Job, code: int, lines: Sequence[str]) -> str:
    """Add a failure to the file beside the job's folder; returns its reason in one line."""
    ended = f"exit code {code}"
    if code < 0:
        ended = f"killed by {signal.Signals(-code).name}"
    elif code == 0:
        ended = "ended without a summary"
    reason = f"{ended}: {lines[-1]}" if lines else ended
    path = job.path.with_name(f"{job.path.name}.failures.json")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    failure = {"time": now, "reason": reason, "command": shlex.join(job.command), "last_lines": list(lines)}
    with contextlib.suppress(OSError):  # on a full disk, say; the reason is printed too
        write_json(path, {"failures": [*(read_json(path) or {}).get("failures", ()), failure]})
    return reason


class _Queue:
    """The jobs that are still to be done."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._waiting = list(range(len(jobs)))
        self._lock = threading.Lock()

    def take(self, processes: Processes) -> tuple[int, Claim] | None:
        """Claim the next job, by its number; waits for those that other sweeps have; ``None`` at the end."""
        while not processes.stopping:
            with self._lock:
                for number in self._waiting:
                    job = self._jobs[number]
                    if (held := claim(job.path, *job.others)) is not None:
                        self._waiting.remove(number)
                        return number, held
                if not self._waiting:
                    return None
            processes.stopped.wait(POLL)
        return None


class Processes:
    """The processes of a sweep, and the signals that it passes on to them."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._lock = threading.RLock()  # since a signal may come while another is passed on
        self._running: set[subprocess.Popen[bytes]] = set()

    @property
    def stopping(self) -> bool:
        """Whether no further process may start."""
        return self.stopped.is_set()

    def stop(self) -> None:
        """Start no further process."""
        self.stopped.set()

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        keep: Sequence[int],
        listen: Callable[[str], object],
    ) -> int:
        """Run a command; returns its exit code.

        Args:
            command: its words.
            environment: changes to its environment.
            keep: file descriptors that it inherits.
            listen: is given each line that it writes to standard error, and each state of a progress bar.
        """
        changes = {"TQDM_MININTERVAL": "1", PASSED_ON: "1", **environment}
        with self._lock:  # so that a signal meets a process or keeps it from starting
            if self.stopping:
                return int(ExitCode.PREEMPTED)
            process = subprocess.Popen(
                command,
                env={**os.environ, **changes},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=keep if os.name == "posix" else (),
            )
            self._running.add(process)
        assert process.stderr is not None
        reader = threading.Thread(target=_read_lines, args=(process.stderr, listen), daemon=True)
        reader.start()
        try:
            return process.wait()
        finally:
            reader.join(1.0)  # a process that it has left behind may keep the pipe open
            with self._lock:
                self._running.discard(process)

    def send(self, number: int) -> None:
        """Send a signal to all processes and start no others."""
        with self._lock:
            self.stop()
            for process in self._running:
                process.send_signal(number)


@contextlib.contextmanager
def signals_interrupt(pass_on: Callable[[int], object] = lambda number: None) -> Iterator[None]:
    """Do at a signal that asks to stop as at Ctrl-C: raise KeyboardInterrupt.

    Args:
        pass_on: is given the signal before that, unless it was Ctrl-C, which the terminal itself sends to all
            processes.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            pass_on(number)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    before = handle(interrupt, SIGNALS if is_main else ())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_lines(stream: BinaryIO, listen: Callable[[str], object]) -> None:
    """Give a process's output line by line; a progress bar begins a line with a carriage return."""
    rest = b""
    with stream:
        while chunk := os.read(stream.fileno(), 65_536):
            *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
            for line in lines:
                if line.strip():
                    listen(line.decode(errors="replace").rstrip())
    if rest.strip():
        listen(rest.decode(errors="replace").rstrip())


class Display:
    """One progress bar for all jobs of a sweep, a line for each that runs, and a line for each that ended.

    Where standard error is no terminal, only the last are printed.

    Args:
        jobs: of the sweep.
        lines: number of jobs that run at the same time and whose progress is shown.
    """

    def __init__(self, jobs: Sequence[Job], lines: int = 0) -> None:
        self._jobs, self._ended = jobs, 0
        self._file = tolerant(sys.stderr)
        tqdm.set_lock(threading.RLock())  # its own is for several processes, and outlives one that is killed
        self._shares = [0.0] * len(jobs)
        is_shown = sys.stderr.isatty() and bool(jobs)
        form = "runs: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
        self._bar = tqdm(total=len(jobs), bar_format=form, file=self._file, disable=not is_shown)
        self._lines = [
            tqdm(bar_format="{desc}", position=slot + 1, leave=False, file=self._file)
            for slot in range(min(lines, len(jobs)) if is_shown else 0)
        ]

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        for line in self._lines:
            line.close()
        self._bar.close()

    def show(self, number: int, slot: int, text: str) -> None:
        """Show a message of a job, or the state of its progress bar, which is the line of its slot."""
        if progress := BAR.search(text):
            self._set_line(slot, text)
            self._advance(number, int(progress[1]) / 100)
        else:
            self._print(f"{self._jobs[number]}: {text}")

    def end(self, number: int, outcome: Outcome, slot: int = 0) -> None:
        """Print how a job ended."""
        self._ended += 1
        ended = f"[{self._ended}/{len(self._jobs)}] {self._jobs[number]}: {outcome.state.value}"
        ended += f" after {outcome.seconds:.0f} s" if outcome.seconds else ""
        self._print(f"{ended}: {outcome.reason}" if outcome.reason else ended)
        self._set_line(slot, "")
        self._advance(number, 1.0)

    def _set_line(self, slot: int, text: str) -> None:
        if slot < len(self._lines):
            self._lines[slot].set_description_str(text)

    def _advance(self, number: int, share: float) -> None:
        self._shares[number] = max(self._shares[number], share)
        self._bar.update(sum(self._shares) - self._bar.n)

    def _print(self, text: str) -> None:
        tqdm.write(text, file=self._file)


def make_slots(number: int, gpus_per_run: float = 0.0) -> list[dict[str, str]]:
    """Slots for at most ``number`` jobs at a time, each with a share of a GPU if ``gpus_per_run`` is not 0.

    Raises:
        ValueError: this machine has no GPU that PyTorch can use.
    """
    if not gpus_per_run:
        return [{} for _ in range(number)]
    import torch  # only here, since it takes seconds

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ids = [name for name in visible.split(",") if name] or list(map(str, range(torch.cuda.device_count())))
    if not ids or not torch.cuda.is_available():
        raise ValueError("--gpus-per-run needs a GPU that PyTorch can use, and there is none")
    shared = [name for _ in range(int(1 / gpus_per_run + 1e-9)) for name in ids]  # one a GPU, then the second
    return [{"CUDA_VISIBLE_DEVICES": name} for name in shared[:number]]


def usable_cores() -> int:
    """Number of CPU cores that this process may use: its affinity, and the quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(int, _quotas())]))


def _quotas(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """Cores that each control group of this process may use, in cgroups of version 2 and 1.

    In a container the group's own path may not be visible: then the limits are those at the root.
    """
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            base = root / controllers if controllers else root
            groups = [base / path.lstrip("/"), *(base / path.lstrip("/")).parents]
            for group in groups[: groups.index(base) + 1]:
                with contextlib.suppress(OSError, ValueError):
                    quota, period = (
                        [(group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
                        if controllers
                        else (group / "cpu.max").read_text().split()
                    )
                    if int(quota) > 0:  # -1 or "max": no limit
                        yield int(quota) / int(period)
