"""TensorBoard event files that are cut back to a checkpoint, so that a resumed run shows each point once."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from neoteny.runners.checkpoint import DamagedError, replace_file

FLUSH_SECONDS = 5.0


class EventWriter:
    """Writes summaries into an event file of its own.

    PyTorch's writer names its file by the clock and writes from a thread that dies of a full disk. This one
    numbers its files, so that a later one sorts last whatever the clock says, and keeps what a full disk does
    not take until it does.

    Args:
        folder: of the run.
        number: of the file; larger than those of the run's earlier files.
        purge_step: tell TensorBoards that are looking on to forget points from this step on.
    """

    def __init__(self, folder: Path, number: int, purge_step: int | None = None) -> None:
        self.path = folder / f"events.out.tfevents.{number:010d}"
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115  (closed by close)
        self._pending = io.BytesIO()
        self._records = RecordWriter(self._pending)
        self._flushed = time.monotonic()
        self.failing = False
        self._add(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._add(Event(session_log=SessionLog(status=SessionLog.START), step=purge_step))
        self.flush()

    def add(self, summary: Summary, step: int = 0) -> None:
        """Take a summary; it is on disk some seconds later."""
        self._add(Event(summary=summary, step=step))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Take scalars, tag -> value, all in one event."""
        self.add(
            Summary(value=[Summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items()]), step
        )

    def flush(self) -> int:
        """Write what is pending; returns the size of the file. A full disk is told once and tried again."""
        self._flushed = time.monotonic()
        size = self._file.tell()
        try:
            written, data = 0, self._pending.getvalue()
            while written < len(data):
                written += self._file.write(data[written:])
            os.fsync(self._file.fileno())  # a checkpoint will count on it
        except OSError as error:
            self._file.seek(size)
            with contextlib.suppress(OSError):  # what cannot be cut is written over
                self._file.truncate()  # no half of a record
            if not self.failing:
                print(f"warning: {self.path}: {error.strerror}; points wait in memory", file=sys.stderr)
            self.failing = True
        else:
            self._pending.seek(0)
            self._pending.truncate()
            self.failing = False
        return self._file.tell()

    def close(self) -> None:
        """Write what is pending, and close the file."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def event_files(folder: Path) -> list[Path]:
    """The event files of a run, in the order in which they were written."""
    return sorted(folder.glob("events.out.tfevents.*"))


def check_event_files(folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse a checkpoint that knows of more events than there are: file name -> size in bytes.

    A process that another has overtaken may still finish the checkpoint that it was writing, after the other
    cut its events. A file that is not there at all was removed by somebody, who will know.

    Raises:
        DamagedError: a file is shorter.
    """
    for path in event_files(folder):
        if path.stat().st_size < sizes.get(path.name, 0):
            raise DamagedError(f"{path} is shorter than the {sizes[path.name]:,} bytes of the checkpoint")


def cut_event_files(folder: Path, sizes: Mapping[str, int]) -> None:
    """Cut the event files of a run back to what a checkpoint knows of: file name -> size in bytes.

    Each is replaced rather than truncated in place, so that another process that still writes to the old one
    does no harm.
    """
    for path in event_files(folder):
        if path.name in sizes:
            replace_file(path, path.read_bytes()[: sizes[path.name]])
        else:
            path.unlink()
