"""Messages to the user. One that cannot be written is lost; the process goes on and ends with its own code.

The reader of a pipe may be gone (``| head``, ``| tee log`` after Ctrl-C), the disk under a log full, the
terminal or a stream closed. This module imports nothing heavy, since scripts import it first.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import sys
from typing import Any, TextIO


class Tolerant:
    """A text stream whose writes never fail; ``None`` in place of a stream takes nothing."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text if that is possible; returns its length."""
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if that is possible."""
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def tell(text: str) -> None:
    """Print a message."""
    print(text, file=tolerant(sys.stdout), flush=True)


def warn(text: str) -> None:
    """Print a warning or an error to standard error."""
    print(text, file=tolerant(sys.stderr), flush=True)


def write_in_handler(text: str) -> None:
    """Write to standard error from a signal handler, where print must not be used: it is not reentrant."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def tolerant(stream: Any) -> Any:
    """A stream as one whose writes never fail."""
    return stream if isinstance(stream, Tolerant) else Tolerant(stream)


def protect_output() -> None:
    """From now on no message can end this process or change its exit code, whoever prints it.

    Characters outside the terminal's encoding are printed as question marks.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr escapes them by default
        sys.stdout.reconfigure(errors="replace")
    if not isinstance(sys.stdout, Tolerant):
        atexit.register(_drop_what_is_left)
    sys.stdout, sys.stderr = tolerant(sys.stdout), tolerant(sys.stderr)


def open_standard_files() -> None:
    """Open the null device in place of standard files that are closed.

    Otherwise the next file that is opened, such as a checkpoint, would be taken for standard error by whoever
    writes to it by its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which takes the lowest free number


def _drop_what_is_left() -> None:
    """Drop what a stream still holds but cannot write, since Python would end with code 120 at its exit."""
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
