"""Signals that ask a run to stop: it saves after the update, and goes on when the command is given again."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from neoteny.runners.disk.exit_codes import ExitCode

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Preemption:
    """Whether a signal has asked this process to stop; a second one ends it at once.

    SIGTERM, SIGUSR1 and SIGUSR2 are what schedulers of clusters send, SIGINT is Ctrl-C. Only the main thread
    can listen to signals; elsewhere nothing ever asks.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def restore(self) -> None:
        """Let signals do what they did before."""
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
