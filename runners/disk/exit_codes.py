"""Exit codes (after sysexits.h) with their messages, and range checks of flags."""

from __future__ import annotations

import contextlib
import enum
import math
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

from neoteny.runners.disk.messages import warn


class ExitCode(enum.IntEnum):
    """0 is success; the other codes say whether running the same command again can help."""

    BAD_INPUT = 2
    """Flags, environment or folder cannot be used; nothing was written."""
    MISFIT = 65
    """A later task of the stream has other spaces than the first, or the engine cannot step it; the last
    checkpoint is intact. The same command would end there again."""
    BROKEN = 70
    """A NaN or an infinity appeared (see the crash bundle in the run's folder), an environment failed, or a
    worker was lost repeatedly. The same command would fail again."""
    TAKEN = 73
    """Another process has taken the run over."""
    IO = 74
    """Writing to disk failed; the last checkpoint is intact."""
    PREEMPTED = 75
    """Stopped by a signal after saving everything; the same command resumes the run."""


class Stop(SystemExit):
    """The end of a program by :func:`stop`, as opposed to an environment that calls ``sys.exit``."""


MOST = 10**12
"""The largest whole number besides seeds: a thousand times the longest runs of the literature, in steps."""

# Importable name -> the extra of this project that installs it.
EXTRAS = {
    "ale_py": "atari",
    "Box2D": "box2d",
    "mujoco": "mujoco",
    "optuna": "tune",
    "ray": "cluster",
    **dict.fromkeys(("adastop", "matplotlib", "scipy"), "analysis"),
}


def check_numbers(
    config: object,
    names: Sequence[str],
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    prefix: str = "",
) -> None:
    """Check that numbers are finite and in range.

    Raises:
        ValueError: names the flag, its value and its range.
    """
    bounds = (("above", above), ("at least", at_least), ("at most", at_most))
    wanted = " and ".join(f"{word} {bound}" for word, bound in bounds if abs(bound) != math.inf)
    for name in names:
        value = getattr(config, name)
        if not (abs(value) < math.inf and value > above and at_least <= value <= at_most):
            raise ValueError(f"--{prefix}{name.replace('_', '-')} must be {wanted or 'finite'}, not {value}")


@contextlib.contextmanager
def bad_input(before: str = "") -> Iterator[None]:
    """Turn any exception in this block into exit code 2 with a one-line message, after the words ``before``.

    So is a ``sys.exit`` of the user's code, but not :func:`stop`.
    """
    try:
        yield
    except Stop:
        raise
    except (Exception, SystemExit) as error:
        stop(ExitCode.BAD_INPUT, f"{before}{reason(error)}")


def reason(error: BaseException) -> str:
    """Describe an error in one line.

    For errors whose text is meant for the user (ValueError, Gymnasium's, our own) that text; for a missing
    package how to install it; for any other error its type, text and location.
    """
    from gymnasium.error import DependencyNotInstalled  # here, since scripts import this file first
    from gymnasium.error import Error as GymnasiumError

    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError | DependencyNotInstalled):
        # The name of the missing package is in the cause of Gymnasium's error.
        name = getattr(error, "name", None) or getattr(error.__cause__, "name", None)
        if name:
            package = name.partition(".")[0]
            extra = f': pip install "neoteny[{EXTRAS[package]}]"' if package in EXTRAS else ""
            return f"the package {package} is not installed{extra}"
    ours = type(error).__module__.startswith("neoteny.")
    if text and (ours or isinstance(error, ValueError | GymnasiumError)):
        return text
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SystemExit):
        message = f"sys.exit({error.code!r}) was called"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:  # a SyntaxError's text holds the location
        return message
    return f"{message} ({frames[-1].filename}, line {frames[-1].lineno})"


def stop(code: ExitCode, reason: str) -> NoReturn:
    """Print why the run cannot start or continue, in one sentence, and exit."""
    prefix = "" if code == ExitCode.PREEMPTED else "error: "
    warn(f"{prefix}{reason}")
    raise Stop(int(code))
