"""TensorBoard event files; on resume they are truncated to the checkpoint, so no point appears twice."""

from __future__ import annotations

import io
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from neoteny.runners.disk.appended import AppendedFile, check_size, cut
from neoteny.runners.disk.wandb_copy import WandbCopy

LONGEST = 512  # most numbers of a vector that are stored
LARGEST = 1 << 24  # bytes of a file after which another begins
SCALARS, VECTORS, TEXTS = 5_000, 250, 5_000  # points of a tag after which its series is thinned


class EventWriter:
    """Writes summaries into new event files.

    PyTorch's writer names its file by the clock, and its thread ends when the disk is full. This one numbers
    its files, so that they sort in order whatever the clock says, begins another when one is large, and keeps
    events in memory while the disk is full. It thins long series: see :func:`is_kept`.

    Args:
        folder: of the run.
        number: of the files; larger than those of the run's earlier files.
        purge_step: running TensorBoards shall discard points from this step on.
        counts: number of points of each tag so far.
        section: entered when another file is made: :meth:`Attempt.section`.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        purge_step: int | None = None,
        counts: Mapping[str, int] | None = None,
        section: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._first, self._section = folder / f"events.out.tfevents.{number:010d}", section
        self.counts = dict(counts or {})
        """Number of points of each tag so far, those left out too."""
        self._complete: dict[str, int] = {}  # sizes of the files before the current one
        self._wandb = WandbCopy()
        self._open(self._first)
        if purge_step is not None:
            self._add(Event(session_log=SessionLog(status=SessionLog.START), step=purge_step))
        self.flush()

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._file.path

    @property
    def failing(self) -> bool:
        """Whether the disk did not take the latest events, which are kept in memory."""
        return self._file.failing

    def add(self, summary: Summary, step: int = 0) -> None:
        """Add a summary; pending ones are written to disk about every five seconds."""
        kept = [value for value in summary.value if self._keeps(value.tag, _limit(value))]
        self._write(summary if len(kept) == len(summary.value) else Summary(value=kept), step)

    def metrics(self, values: Mapping[str, float | Sequence[float]], step: int) -> None:
        """Add scalars, and vectors as histograms, tag -> value, in one event.

        Vectors that are empty or not finite are skipped.
        """
        made = []
        for tag, value in values.items():
            if isinstance(value, Sequence):
                if self._keeps(tag, VECTORS) and (vector := histogram_value(tag, value)) is not None:
                    made.append(vector)
            elif self._keeps(tag, SCALARS):
                made.append(Summary.Value(tag=tag, simple_value=float(value)))
        self._write(Summary(value=made), step)

    def flush(self) -> int:
        """Write pending events; returns the size of the file. If that fails, warn once and retry later."""
        return self._file.flush()

    def sizes(self) -> dict[str, int]:
        """Write pending events; returns all files of this writer, name -> bytes."""
        size = self._file.flush()
        return {**self._complete, self.path.name: size}

    def close(self) -> None:
        """Write pending events and close the file."""
        if self._file.is_open:
            self._file.close()
            self._wandb.close()

    def _keeps(self, tag: str, limit: int) -> bool:
        """Count a point, and say whether it is kept."""
        self.counts[tag] = count = self.counts.get(tag, 0) + 1
        return is_kept(count, limit)

    def _write(self, summary: Summary, step: int) -> None:
        if summary.value:
            self._add(Event(summary=summary, step=step))
        if self._file.flush_if_due() > LARGEST and not self.failing:
            self._begin_next()

    def _begin_next(self) -> None:
        """Begin the next file."""
        full = self._file
        try:
            with self._section():
                self._open(self._first.with_name(f"{self._first.name}.{len(self._complete) + 1:04d}"))
        except OSError:  # on a full disk, say: this file grows on
            return
        self._complete[full.path.name] = full.flush()
        full.close()

    def _open(self, path: Path) -> None:
        self._file = AppendedFile(path)
        self._records = RecordWriter(self._file.pending)
        self._add(Event(file_version="brain.Event:2"))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._wandb.add(event)


def is_kept(count: int, limit: int) -> bool:
    """Whether the point of this number, counted from 1, of a series is kept: the rule that thins long ones.

    All of the first ``limit`` points are kept, every second of the next ``limit``, every fourth of the next
    ``2 * limit``, and so on. So of n points about limit * (1 + log2(n / limit) / 2) are kept.
    """
    stride = 1 << ((count - 1) // limit).bit_length()
    return count % stride == 0


def _limit(value: Summary.Value) -> int:
    """How many points of the kind of a value are kept before its series is thinned; all images are."""
    kind = value.WhichOneof("value")
    return {"simple_value": SCALARS, "histo": VECTORS, "tensor": TEXTS}.get(kind or "", sys.maxsize)


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
    """Raise DamagedError if event files are shorter than in a checkpoint, file name -> bytes."""
    for path in event_files(folder):
        check_size(path, sizes.get(path.name, 0))


def cut_event_files(folder: Path, sizes: Mapping[str, int]) -> None:
    """Cut the event files of a run to the sizes of a checkpoint, file name -> bytes; remove newer files."""
    for path in event_files(folder):
        if path.name in sizes:
            cut(path, sizes[path.name])
        else:
            path.unlink()
