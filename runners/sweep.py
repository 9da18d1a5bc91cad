"""Running many commands in parallel on this machine, each with its own progress bar."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from neoteny.runners.disk.exit_codes import ExitCode


def run_all(commands: Sequence[Sequence[str]], jobs: int) -> list[int]:
    """Run commands, ``jobs`` at a time, with their progress bars on lines of their own.

    Standard output of the commands is dropped (it is also in their run folders); errors and bars are shown. A
    preempted command, which has saved its state, is run again.

    Returns:
        Exit codes, in the order of the commands.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the running commands, which receive it too, have ended.
    """
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    stopping = threading.Event()

    def run(command: Sequence[str]) -> int:
        slot = slots.get()
        # tqdm reads its defaults from the environment; without a terminal, rare updates are enough.
        interval = "0.5" if sys.stderr.isatty() else "15"
        environment = {**os.environ, "TQDM_POSITION": str(slot), "TQDM_MININTERVAL": interval}
        try:
            code = int(ExitCode.PREEMPTED)
            while code == ExitCode.PREEMPTED and not stopping.is_set():
                code = subprocess.call(command, env=environment, stdout=subprocess.DEVNULL)
            return code
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(run, commands))
        except KeyboardInterrupt:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
