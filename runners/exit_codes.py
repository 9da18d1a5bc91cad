"""How a run ends: the exit codes of every agent (sysexits.h), and the one sentence that goes with them."""

from __future__ import annotations

import contextlib
import enum
import sys
from collections.abc import Iterator
from typing import NoReturn


class ExitCode(enum.IntEnum):
    """0 is success; any other says whether the same command, given again, can help."""

    BAD_INPUT = 2
    """Flags, environment or folder cannot be used; nothing was written."""
    BROKEN = 70
    """A NaN or an infinity appeared, and the run's folder holds a crash bundle; or a worker was lost again
    and again. The same command would come to it again."""
    TAKEN = 73
    """Another process has taken the run over."""
    IO = 74
    """The disk does not take what is written; the last checkpoint is whole."""
    PREEMPTED = 75
    """Stopped by a signal, with everything saved: the same command goes on."""


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Whatever raises a ValueError in this block cannot be done as asked for: exit with code 2."""
    try:
        yield
    except ValueError as error:
        stop(ExitCode.BAD_INPUT, str(error))


def stop(code: ExitCode, reason: str) -> NoReturn:
    """Say in one sentence why the run cannot start or go on, and exit."""
    prefix = "" if code == ExitCode.PREEMPTED else "error: "
    print(f"{prefix}{reason}", file=sys.stderr, flush=True)
    raise SystemExit(int(code))
