"""Claims: of all sweeps that share a folder, at most one works on a run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where two sweeps must not share a folder
    fcntl = None  # type: ignore[assignment]


class Claim:
    """The right to work on runs, a locked file beside the folder of each.

    The operating system releases the lock when the last process that has the file open ends, however it
    ends. A command that inherits :attr:`descriptors` holds the claim too, so that a run keeps it when the
    sweep that started it is killed.
    """

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.descriptors: list[int] = []

    def release(self) -> None:
        """Give the claim up."""
        for path, descriptor in zip(self.paths, self.descriptors):
            with contextlib.suppress(OSError):  # another file system may not remove a file that is open
                path.unlink()
            os.close(descriptor)


def claim(*runs: Path) -> Claim | None:
    """Claim runs; ``None`` if another process, on this machine or another, has claimed one of them.

    Args:
        runs: folders of the runs, which need not exist.

    Raises:
        OSError: the folder beside one cannot be written, or its file system has no locks.
    """
    claimed = Claim()
    try:
        for run in sorted(runs):
            if (one := _lock(run)) is None:
                claimed.release()
                return None
            claimed.paths.append(one[0])
            claimed.descriptors.append(one[1])
    except BaseException:
        claimed.release()
        raise
    return claimed


def _lock(run: Path) -> tuple[Path, int] | None:
    """Lock the file of a run; returns its path and descriptor, ``None`` if another process has locked it."""
    path = run.with_name(f".{run.name}.claim")
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return path, descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass  # the last owner has removed the file after it was opened here
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
