"""How a run ends: exit codes (sysexits.h), a sentence with each, and the numbers that are refused at once."""

from __future__ import annotations

import contextlib
import enum
import math
import sys
from collections.abc import Iterator, Sequence
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


def check_numbers(
    config: object,
    names: Sequence[str],
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    prefix: str = "",
) -> None:
    """Refuse numbers that are out of range or not finite.

    Raises:
        ValueError: names the flag, its value and its range.
    """
    bounds = (("above", above), ("at least", at_least), ("at most", at_most))
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > above and at_least <= value <= at_most):
            raise ValueError(f"--{prefix}{name.replace('_', '-')} must be {wanted or 'finite'}, not {value}")


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
