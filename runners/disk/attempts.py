"""Attempts at a run: which process owns it, and the lock under which the owner changes its files.

Each process that works on a run has a file in ``attempts/``, and the newest of them owns the run. An older
one may have been stopped (a suspended job, a machine that hung) and can wake up at any moment. So the owner
asks again before and after each step that replaces or removes files, under a lock that is held for such steps
only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from neoteny.runners.disk.exit_codes import ExitCode, stop
from neoteny.runners.disk.messages import warn

try:
    import fcntl
except ImportError:  # on Windows, where an older process must not be continued while a newer one runs
    fcntl = None  # type: ignore[assignment]

PATIENCE = 10.0  # seconds for which a process may hold the lock; the longest steps take less than one
POLL = 0.01  # seconds
FLOCK = "hhqqi4x"  # the structure that asks Linux for a lock: type, whence, start, length, process
BUSY = (errno.EACCES, errno.EAGAIN)


class Attempt:
    """This process's ownership of a run, until a newer process takes it over.

    Args:
        folder: of the run.
        number: counted from 1.
        descriptor: its file in ``attempts/``, which stays locked for as long as this process lives.
    """

    def __init__(self, folder: Path, number: int, descriptor: int) -> None:
        self.folder, self.number, self._descriptor = folder, number, descriptor
        self._depth = 0

    @property
    def is_superseded(self) -> bool:
        """Whether another process has taken the run over, or removed it."""
        try:
            own = attempt_file(self.folder, self.number).stat()
        except FileNotFoundError:
            return True
        is_own = os.path.samestat(own, os.fstat(self._descriptor))
        return not is_own or attempt_file(self.folder, self.number + 1).exists()

    def check(self) -> None:
        """End this process with code 73 if another one has taken the run over."""
        if self.is_superseded:
            stop(ExitCode.TAKEN, f"{self.folder} was taken over by another process")

    @contextlib.contextmanager
    def section(self) -> Iterator[None]:
        """A step that replaces or removes files of the run; no other process takes the run over meanwhile.

        It must be short, see ``PATIENCE``. Sections may be nested.

        Raises:
            SystemExit: code 73 if another process has taken the run over.
        """
        self.check()
        with contextlib.nullcontext() if self._depth else locked(self.folder, self.check):
            self.check()
            self._depth += 1
            try:
                yield
            except OSError:
                self.check()  # the newer process may have removed what was being written
                raise
            finally:
                self._depth -= 1
            self.check()  # in case the lock was not respected

    def is_alone(self) -> bool:
        """Whether all earlier processes are known to have ended."""
        others = (attempt_file(self.folder, number) for number in range(1, self.number))
        return not any(map(_is_locked, others))

    def close(self) -> None:
        """Let others know that this process does not write any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def begin_attempt(folder: Path) -> Attempt:
    """Make this process the owner of a run; to be called under its lock."""
    who = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    while True:
        number = latest_attempt(folder) + 1
        try:
            descriptor = os.open(attempt_file(folder, number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:  # the lock was not respected
            continue
        with open(descriptor, "wb", closefd=False) as file:
            file.write(who)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # the file system has no locks
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Attempt(folder, number, descriptor)


def attempt_file(folder: Path, number: int) -> Path:
    """The file of a process that works, or has worked, on a run."""
    return folder / "attempts" / f"{number:06d}.json"


def latest_attempt(folder: Path) -> int:
    """Number of the process that owns the run; 0 if there was none."""
    names = (path.stem for path in (folder / "attempts").glob("*.json"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


@contextlib.contextmanager
def locked(folder: Path, check: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock of a run.

    A process that has held it for ``PATIENCE`` seconds was stopped in the middle. It is killed, as it may be
    at any other moment; on another machine it is left alone, and the lock is not waited for any longer.

    The lock is one of POSIX, which child processes do not inherit, however they are started.

    Args:
        folder: of the run.
        check: called while the lock is waited for; it may raise an exception.
    """
    path = folder / "attempts" / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _lock(descriptor):
            check()
            if time.monotonic() > deadline:
                if not _kill_holder(descriptor):
                    warn(f"warning: {path} stays locked by a process elsewhere; the run goes on")
                    break
                deadline = time.monotonic() + PATIENCE
            time.sleep(POLL)
        yield
    finally:
        os.close(descriptor)  # which unlocks it


def _lock(descriptor: int) -> bool:
    """Try to lock a file; false if another process has locked it."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in BUSY  # the file system may have no locks
    return True


def _is_locked(path: Path) -> bool:
    """Whether a process has locked a file, or may have, where that cannot be known."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _kill_holder(descriptor: int) -> bool:
    """Kill the process that has locked a file; false if it is on another machine or another user's."""
    if sys.platform != "linux":
        return False
    asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, holder = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    if kind == fcntl.F_UNLCK:
        return True  # it has ended meanwhile
    try:
        if holder > 0:
            os.kill(holder, signal.SIGKILL)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return holder > 0
