"""Files that grow at their end; on resume they are cut to their size in the checkpoint."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neoteny.runners.disk.checkpoint import DamagedError
from neoteny.runners.disk.files import replace_file, to_json
from neoteny.runners.disk.messages import warn

FLUSH_SECONDS = 5.0
VISITS = "visits.jsonl"


class AppendedFile:
    """A file that is written about every five seconds; while the disk is full, the rest is kept in memory.

    Args:
        path: of the file, which must not exist if it is ``new``.
        new: whether to make it; else it is continued.
    """

    def __init__(self, path: Path, new: bool = True) -> None:
        self.path = path
        self.pending = io.BytesIO()
        """What is to be written, to which more may be added."""
        self.failing = False
        self._file = open(path, "xb" if new else "r+b", buffering=0)  # noqa: SIM115  (closed by close)
        self._file.seek(0, os.SEEK_END)
        self._flushed = time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed."""
        return not self._file.closed

    def flush_if_due(self) -> int:
        """Write what is pending if the last time is long ago; returns the size of the file then, else 0."""
        return self.flush() if time.monotonic() - self._flushed > FLUSH_SECONDS else 0

    def flush(self) -> int:
        """Write what is pending; returns the size of the file. If that fails, warn once and retry later."""
        self._flushed = time.monotonic()
        size = self._file.tell()
        data = self.pending.getvalue()
        if not data:  # nothing since the last sync
            return size
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
            os.fsync(self._file.fileno())  # checkpoints rely on it
        except OSError as error:
            self._file.seek(size)
            with contextlib.suppress(OSError):  # if it fails, the next write overwrites it
                self._file.truncate()  # leave no partial record
            if not self.failing:
                warn(f"warning: {self.path}: {error.strerror}; what follows is kept in memory")
            self.failing = True
        else:
            self.pending.seek(0)
            self.pending.truncate()
            self.failing = False
        return self._file.tell()

    def close(self) -> None:
        """Write what is pending and close the file."""
        if self.is_open:
            self.flush()
            self._file.close()


class Journal(AppendedFile):
    """A file of JSON objects, one a line."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line, numbers that are not finite as null."""
        self.pending.write(json.dumps(to_json(row), allow_nan=False).encode() + b"\n")
        self.flush_if_due()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal; none if there is no file, or of a line that is being written."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def check_size(path: Path, size: int) -> None:
    """Raise DamagedError if a file is shorter than a checkpoint says.

    This happens if a second process took the run over and cut the file while the first was still writing its
    last checkpoint. A missing file is accepted, since only the user can have removed it.
    """
    if path.exists() and path.stat().st_size < size:
        raise DamagedError(f"{path} is shorter than the {size:,} bytes of the checkpoint")


def changed_file(folder: Path, sizes: Mapping[str, int]) -> Path | None:
    """The first file of a folder, name -> size in bytes, that has another size; ``None`` if none has."""
    paths = {folder / name: size for name, size in sizes.items()}
    changed = (path for path, size in paths.items() if not path.exists() or path.stat().st_size != size)
    return next(changed, None)


def cut(path: Path, size: int) -> None:
    """Cut a file to its size in bytes in a checkpoint, if it exists.

    It is replaced rather than truncated in place, in case another process still writes to the old one.
    """
    if path.exists():
        with open(path, "rb") as file:
            replace_file(path, file.read(size))
