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
    """The right to work on a run, a locked file beside its folder.

    The operating system releases the lock when the last process that has the file open ends, however it
    ends. A command that inherits :attr:`descriptor` holds the claim too, so that a run keeps it when the
    sweep that started it is killed.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def release(self) -> None:
        """Give the claim up."""
        with contextlib.suppress(OSError):  # another file system may not remove a file that is open
            self.path.unlink()
        os.close(self.descriptor)


def claim(run: Path) -> Claim | None:
    """Claim a run; ``None`` if another process, on this machine or another, has claimed it.

    Args:
        run: folder of the run, which need not exist.

    Raises:
        OSError: the folder beside it cannot be written, or its file system has no locks.
    """
    path = run.with_name(f".{run.name}.claim")
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return Claim(path, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass  # the last owner has removed the file after it was opened here
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
