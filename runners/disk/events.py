"""TensorBoard event files; on resume they are truncated to the checkpoint, so no point appears twice."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from neoteny.runners.disk.checkpoint import DamagedError
from neoteny.runners.disk.files import replace_file
from neoteny.runners.disk.messages import warn
from neoteny.runners.disk.wandb_copy import WandbCopy

FLUSH_SECONDS = 5.0
LONGEST = 512  # most numbers of a vector that are stored


class EventWriter:
    """Writes summaries into a new event file.

    PyTorch's writer names its file by the clock, and its thread ends when the disk is full. This one numbers
    its files, so that they sort in order whatever the clock says, and keeps events in memory while the disk
    is full.

    Args:
        folder: of the run.
        number: of the file; larger than those of the run's earlier files.
        purge_step: running TensorBoards shall discard points from this step on.
    """

    def __init__(self, folder: Path, number: int, purge_step: int | None = None) -> None:
        self.path = folder / f"events.out.tfevents.{number:010d}"
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115  (closed by close)
        self._pending = io.BytesIO()
        self._records = RecordWriter(self._pending)
        self._flushed = time.monotonic()
        self._wandb = WandbCopy()
        self.failing = False
        self._add(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._add(Event(session_log=SessionLog(status=SessionLog.START), step=purge_step))
        self.flush()

    def add(self, summary: Summary, step: int = 0) -> None:
        """Add a summary; pending ones are written to disk about every five seconds."""
        self._add(Event(summary=summary, step=step))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def metrics(self, values: Mapping[str, float | Sequence[float]], step: int) -> None:
        """Add scalars, and vectors as histograms, tag -> value, in one event.

        Vectors that are empty or not finite are skipped.
        """
        made = (
            histogram_value(tag, value)
            if isinstance(value, Sequence)
            else Summary.Value(tag=tag, simple_value=float(value))
            for tag, value in values.items()
        )
        self.add(Summary(value=[value for value in made if value is not None]), step)

    def flush(self) -> int:
        """Write pending events; returns the size of the file. If that fails, warn once and retry later."""
        self._flushed = time.monotonic()
        size = self._file.tell()
        try:
            written, data = 0, self._pending.getvalue()
            while written < len(data):
                written += self._file.write(data[written:])
            os.fsync(self._file.fileno())  # checkpoints rely on it
        except OSError as error:
            self._file.seek(size)
            with contextlib.suppress(OSError):  # if it fails, the next write overwrites it
                self._file.truncate()  # leave no partial record
            if not self.failing:
                warn(f"warning: {self.path}: {error.strerror}; points are kept in memory")
            self.failing = True
        else:
            self._pending.seek(0)
            self._pending.truncate()
            self.failing = False
        return self._file.tell()

    def close(self) -> None:
        """Write pending events and close the file."""
        if not self._file.closed:
            self.flush()
            self._file.close()
            self._wandb.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._wandb.add(event)


def histogram_value(tag: str, values: Sequence[float]) -> Summary.Value | None:
    """A vector (n,) as a histogram with one bucket per number, so that :func:`read_points` can recover it.

    Of more than ``LONGEST`` numbers, that many evenly spaced order statistics are stored, extremes included.
    None for a vector that is empty or not finite, which cannot be drawn.
    """
    numbers = np.sort(np.asarray(values, dtype=np.float64))
    if not len(numbers) or not np.isfinite(numbers).all():
        return None
    if len(numbers) > LONGEST:
        numbers = numbers[np.linspace(0, len(numbers) - 1, LONGEST).round().astype(int)]
    made = HistogramProto(
        min=numbers[0],
        max=numbers[-1],
        num=len(numbers),
        sum=numbers.sum(),
        sum_squares=numbers @ numbers,
        bucket_limit=numbers,
        bucket=np.ones_like(numbers),
    )
    return Summary.Value(tag=tag, histo=made)


def image_value(tag: str, encoded: bytes) -> Summary.Value:
    """An image for TensorBoard's image page, from an RGB PNG or GIF."""
    width, height = Image.open(io.BytesIO(encoded)).size
    made = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=encoded)
    return Summary.Value(tag=tag, image=made)


def read_points(
    folder: Path,
    wanted: Callable[[str], bool] = lambda tag: True,
    report: Callable[[str], object] = lambda sentence: None,
) -> dict[str, list[tuple[int, float | np.ndarray]]]:
    """Read the scalars and vectors of wanted tags from the event files of all attempts of a run.

    Checksums are not verified, which makes it many times as fast as TensorBoard's reader.

    Args:
        folder: of the run.
        wanted: whether a tag is wanted.
        report: is given a sentence on a file that is damaged, or whose last record is incomplete, as it may
            be while a process is writing. What comes before is read.

    Returns:
        tag -> [(step, value), ...] in the order of writing; vectors are sorted in ascending order.
    """
    points: dict[str, list[tuple[int, float | np.ndarray]]] = {}
    chosen: dict[str, bool] = {}
    for path in event_files(folder):
        for event in _events(path, report):
            for value in event.summary.value:
                tag = value.tag
                if tag not in chosen:
                    chosen[tag] = wanted(tag)
                if chosen[tag] and (kind := value.WhichOneof("value")) in ("simple_value", "histo"):
                    is_scalar = kind == "simple_value"
                    point = value.simple_value if is_scalar else np.array(value.histo.bucket_limit)
                    points.setdefault(tag, []).append((event.step, point))
    return points


def _events(path: Path, report: Callable[[str], object]) -> Iterator[Event]:
    """The events of a file. A record is its length (8 bytes), a checksum (4), an event, a checksum (4)."""
    data, start = path.read_bytes(), 0
    while start < len(data):
        length = struct.unpack_from("<Q", data, start)[0] if len(data) - start >= 16 else len(data)
        if start + 16 + length > len(data):
            report(f"{path} ends within a record, after {start:,} bytes")
            return
        try:
            yield Event.FromString(data[start + 12 : start + 12 + length])
        except DecodeError:
            report(f"{path} is damaged after {start:,} bytes")
            return
        start += 16 + length


def event_files(folder: Path) -> list[Path]:
    """The event files of a run, in the order of writing."""
    return sorted(folder.glob("events.out.tfevents.*"))


def check_event_files(folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse a checkpoint whose event files, name -> size in bytes, are longer than the actual ones.

    This happens if a second process took the run over and truncated the events while the first was still
    writing its last checkpoint. A missing file is accepted, since only the user can have removed it.

    Raises:
        DamagedError: a file is shorter than the checkpoint says.
    """
    for path in event_files(folder):
        if path.stat().st_size < sizes.get(path.name, 0):
            raise DamagedError(f"{path} is shorter than the {sizes[path.name]:,} bytes of the checkpoint")


def missing_events(folder: Path, sizes: Mapping[str, int]) -> Path | None:
    """The first event file of a run, name -> size in bytes, that has another size; ``None`` if none has."""
    found = {path.name: path.stat().st_size for path in event_files(folder)}
    return next((folder / name for name, size in sizes.items() if found.get(name) != size), None)


def cut_event_files(folder: Path, sizes: Mapping[str, int]) -> None:
    """Truncate the event files of a run to the sizes of a checkpoint, file name -> bytes; remove newer files.

    Each file is replaced rather than truncated in place, in case another process still writes to the old one.
    """
    for path in event_files(folder):
        if path.name in sizes:
            replace_file(path, path.read_bytes()[: sizes[path.name]])
        else:
            path.unlink()
