"""How a run ends: exit codes (sysexits.h), a sentence with each, and the numbers that are refused at once."""

from __future__ import annotations

import contextlib
import enum
import math
import sys
import traceback
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


# Importable name -> the extra of this project that installs it.
EXTRAS = {
    "ale_py": "atari",
    "Box2D": "box2d",
    "mujoco": "mujoco",
    **dict.fromkeys(("matplotlib", "pandas", "scipy", "seaborn"), "analysis"),
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
    """Refuse numbers that are out of range or not finite.

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
def bad_input() -> Iterator[None]:
    """Whatever goes wrong in this block cannot be done as asked for: exit with code 2 and one sentence."""
    try:
        yield
    except Exception as error:
        stop(ExitCode.BAD_INPUT, reason(error))


def reason(error: Exception) -> str:
    """Why something failed, in one line.

    That is the text of an error whose text is meant for the user (a ValueError, Gymnasium's, our own); the
    package to install if one is missing; of any other error its type, its text and where it was raised.
    """
    from gymnasium.error import DependencyNotInstalled  # here, since scripts import this file first
    from gymnasium.error import Error as GymnasiumError

    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError | DependencyNotInstalled):
        # Gymnasium says which package is missing by the error from which it raises its own.
        name = getattr(error, "name", None) or getattr(error.__cause__, "name", None)
        if name:
            package = name.partition(".")[0]
            extra = f': pip install "neoteny[{EXTRAS[package]}]"' if package in EXTRAS else ""
            return f"the package {package} is not installed{extra}"
    ours = type(error).__module__.startswith("neoteny.")
    if text and (ours or isinstance(error, ValueError | GymnasiumError)):
        return text
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:  # a SyntaxError's text says where it is
        return message
    return f"{message} ({frames[-1].filename}, line {frames[-1].lineno})"


def stop(code: ExitCode, reason: str) -> NoReturn:
    """Say in one sentence why the run cannot start or go on, and exit."""
    prefix = "" if code == ExitCode.PREEMPTED else "error: "
    print(f"{prefix}{reason}", file=sys.stderr, flush=True)
    raise SystemExit(int(code))
