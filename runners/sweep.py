"""Running many commands in parallel on this machine, each with its own progress bar."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from neoteny.runners.disk.exit_codes import ExitCode
from neoteny.runners.disk.folder import latest_attempt
from neoteny.runners.disk.preemption import PASSED_ON, SIGNALS, handle


def usable_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    commands: Sequence[Sequence[str]],
    jobs: int,
    instead: Callable[[int], int | None] = lambda number: None,
) -> list[int]:
    """Run commands, ``jobs`` at a time, with their progress bars on lines of their own.

    Standard output of the commands is dropped (it is also in their run folders); errors and bars are shown. A
    preempted command, which has saved its state, is run again.

    Args:
        commands: words of each.
        jobs: number of commands in parallel.
        instead: asked right before the start of a command, by its index; a number is taken for its exit code.

    Returns:
        Exit codes, in the order of the commands.

    Raises:
        KeyboardInterrupt: after Ctrl-C or another signal that asks to stop, once the running commands have
            ended. They receive Ctrl-C too; other signals are passed on to them.
    """
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    processes = _Processes()

    def run(number: int) -> int:
        slot = slots.get()
        # tqdm reads its defaults from the environment; without a terminal, rare updates are enough.
        interval = "0.5" if sys.stderr.isatty() else "15"
        bar = {"TQDM_POSITION": str(slot), "TQDM_MININTERVAL": interval}
        try:
            while True:
                code = instead(number)
                if code is None:
                    code = processes.run(commands[number], {**os.environ, **bar, PASSED_ON: "1"})
                if code != ExitCode.PREEMPTED or processes.stopping:
                    return code
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool, processes.passing_signals_on():
        try:
            return list(pool.map(run, range(len(commands))))
        except KeyboardInterrupt:
            processes.stopping = True
            pool.shutdown(cancel_futures=True)
            raise


def is_running(command: Sequence[str], folder: Path) -> bool:
    """Whether the owner of a run's folder is a process of this machine with the same command; Linux only."""
    with contextlib.suppress(OSError, ValueError, LookupError):
        owner = json.loads((folder / "attempts" / f"{latest_attempt(folder):06d}.json").read_text())
        words = Path(f"/proc/{owner['pid']}/cmdline").read_bytes().split(b"\0")[:-1]
        return owner["host"] == socket.gethostname() and words[1:] == [word.encode() for word in command[1:]]
    return False


class _Processes:
    """The running commands."""

    def __init__(self) -> None:
        self.stopping = False
        self._lock = threading.RLock()  # since a signal may come while another is passed on
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: Sequence[str], environment: dict[str, str]) -> int:
        """Run a command; returns its exit code."""
        with self._lock:  # so that a signal meets a process or keeps it from starting
            if self.stopping:
                return int(ExitCode.PREEMPTED)
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    @contextlib.contextmanager
    def passing_signals_on(self) -> Iterator[None]:
        """Pass signals but Ctrl-C on to the commands, and then do as after Ctrl-C."""
        passed = [number for number in SIGNALS if number != signal.SIGINT]
        is_main = threading.current_thread() is threading.main_thread()
        before = handle(self._pass_on, passed if is_main else ())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        with self._lock:
            self.stopping = True
            for process in self._running:
                process.send_signal(number)
        raise KeyboardInterrupt
