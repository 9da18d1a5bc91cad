"""Signals that ask a run to stop: it saves after the update, and goes on when the command is given again.

A script comes here before its other imports, which take seconds: this file imports nothing heavy.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from neoteny.runners.disk.exit_codes import ExitCode

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def end_at_signals() -> None:
    """From now on a signal ends this process with code 75, until a :class:`Preemption` takes over.

    It is for the first statement of a script, which has written nothing yet and ends with its run.
    """
    _handle(_end)


class Preemption:
    """Whether a signal has asked this process to stop; a second one ends it at once.

    SIGTERM, SIGUSR1 and SIGUSR2 are what schedulers of clusters send, SIGINT is Ctrl-C. Only the main thread
    can listen to signals; elsewhere nothing ever asks.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # A script whose run is over has nothing left to stop: its exit code stays.
            before = _handle(self._ask)
            self._before = {
                number: signal.SIG_IGN if handler is _end else handler for number, handler in before.items()
            }

    def restore(self) -> None:
        """Let signals do what they did before the run; where a script ends with it, nothing."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(ExitCode.PREEMPTED)
        self.signal = signal.Signals(number).name
        # print could be interrupted by itself
        os.write(2, f"\n{self.signal}: saving after this update; once more to stop at once\n".encode())


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let signals call a handler; returns what each did before."""
    return {number: signal.signal(number, handler) for number in SIGNALS}


def _end(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    os.write(2, f"{name}: nothing was written yet; the same command starts the run\n".encode())
    os._exit(ExitCode.PREEMPTED)
