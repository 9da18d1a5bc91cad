"""Signals that ask a run to stop: it saves after the current update; the same command resumes it.

Scripts import this module before all others, which take seconds, so it must import nothing heavy.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from neoteny.runners.disk.exit_codes import ExitCode
from neoteny.runners.disk.messages import open_standard_files, write_in_handler

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
PASSED_ON = "NEOTENY_SIGNALS_ARE_PASSED_ON"
"""Set in the environment by a parent that passes its signals on. A cluster may send them to all processes, so
that one signal comes twice."""
SAME_SECONDS = 5.0  # within which it is the same
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def end_at_signals() -> None:
    """From now on a signal ends this process with code 75, until a :class:`Preemption` takes over.

    To be called first in a script, before anything is written, if the script ends with its run.
    """
    open_standard_files()
    handle(_end, SIGNALS)


class Preemption:
    """Whether a signal has asked this process to stop; a second one ends it at once.

    Cluster schedulers send SIGTERM, SIGUSR1 or SIGUSR2; Ctrl-C sends SIGINT; a terminal that is closed sends
    SIGHUP, which ``nohup`` has a process ignore. Python handles signals only in the main thread; in other
    threads this class does nothing.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._asked = 0.0  # the time of the signal
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # In a script whose run is over there is nothing left to stop, and its exit code must stay.
            before = handle(self._ask, SIGNALS)
            self._before = {
                number: signal.SIG_IGN if handler is _end else handler for number, handler in before.items()
            }

    def __enter__(self) -> Preemption:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Restore the signal handlers from before the run; after :func:`end_at_signals`, ignore signals."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if PASSED_ON in os.environ and time.monotonic() - self._asked < SAME_SECONDS:
                return
            os._exit(ExitCode.PREEMPTED)
        self.signal, self._asked = signal.Signals(number).name, time.monotonic()
        write_in_handler(f"\n{self.signal}: saving after this update; once more to stop at once\n")


def handle(handler: Callable[[int, FrameType | None], None], numbers: Sequence[int]) -> dict[int, Any]:
    """Install a handler for signals but those that ``nohup`` ignores; returns the previous handlers."""
    return {number: signal.signal(number, handler) for number in numbers if not _by_nohup(number)}


def _by_nohup(number: int) -> bool:
    return signal.Signals(number).name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN


def _end(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    write_in_handler(f"{name}: nothing was written yet; the same command starts the run\n")
    os._exit(ExitCode.PREEMPTED)
