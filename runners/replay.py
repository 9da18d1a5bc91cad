"""Replay memory in memory-mapped files: a killed run finds in them what its last checkpoint counted on.

Transition i, counted from the run's first, lies in slot i mod (capacity + slack). The newest ``capacity``
are what is learned from. The slack is room for what comes after a checkpoint, so that a run that is killed
and goes on from that checkpoint finds all of its transitions untouched; newer ones, which nothing in the
checkpoint knows of, are written again. Nothing is copied to make a checkpoint: it holds the counter only.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # PyTorch takes seconds to import, and a process that only writes needs none of it
    import torch
    from torch import Tensor

PROTECTED = 3
"""Intervals that the slack covers.

Two checkpoints are kept: with two intervals both could be restored, the older one if the newest is damaged.
With three that holds even if a checkpoint between them could not be written, and the newest could be restored
even after the two failures in a row that a run puts up with; the third one ends it.
"""

INDEX = "_index"


class ReplayMemory:
    """A ring of transitions on disk, a ``.npy`` file for each field.

    It is a part of a run's state, which :class:`~neoteny.runners.run.Run` saves and restores. The number of
    each transition is kept beside it, so that a ring that does not hold what a checkpoint counted on is
    refused, never learned from. Their contents are not hashed.

    Args:
        folder: of the files, which are its own: ``replay/`` in the run's folder. Files that are there are
            opened, and hold nothing until :meth:`load_state_dict` says what.
        capacity: transitions that are learned from.
        interval: most transitions that are added between two checkpoints, so steps between checkpoints plus
            steps of an update. With 0 there is no slack and no limit, and a killed run can go on only if
            nothing was added since its checkpoint.
        fields: shape and dtype of one transition's entry, by name: ``{"frames": ((84, 84), np.uint8)}``.

    Raises:
        ValueError: an argument makes no sense, or the files there are damaged or of another layout.
        OSError: there is not enough room on the disk, all of which is taken now.
    """

    def __init__(
        self,
        folder: Path,
        capacity: int,
        interval: int,
        fields: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]],
    ) -> None:
        if capacity < 1 or interval < 0 or not fields:
            raise ValueError(f"no memory has {capacity=}, {interval=} and fields {', '.join(fields)}")
        self.capacity, self.interval = capacity, interval
        self.slots = capacity + PROTECTED * interval
        self.fields = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in fields.items()}
        for name, (_, dtype) in self.fields.items():
            if not name.isidentifier() or name.startswith("_"):
                raise ValueError(f"{name!r} cannot be the name of a field")
            if dtype.kind not in "biuf" or dtype.itemsize > 8 or not dtype.isnative:
                raise ValueError(f"{name} cannot be of {dtype}")
        self.counter = self._flushed = 0  # transitions ever added, and at the last flush
        files = {
            folder / f"{name}.npy": ((self.slots, *shape), dtype)
            for name, (shape, dtype) in {**self.fields, INDEX: ((), np.dtype(np.int64))}.items()
        }
        if not (folder / f"{INDEX}.npy").exists():  # it is made last: else the others are not all there
            _allocate(files)
        *entries, self._index = (_open(path, *layout) for path, layout in files.items())
        self._entries = dict(zip(self.fields, entries))

    def __len__(self) -> int:
        """Transitions that can be sampled."""
        return min(self.counter, self.capacity)

    def add(self, /, **batch: Tensor | np.ndarray) -> None:
        """Add N transitions.

        Args:
            **batch: every field, (N, ...), on any device.

        Raises:
            ValueError: the fields are not those of the memory, or N is more than fits.
            RuntimeError: they are too many since the last checkpoint, and would overwrite what a killed run
                needs. Nothing was written, in either case.
        """
        if batch.keys() != self.fields.keys():
            raise ValueError(f"a transition has {', '.join(self.fields)}, not {', '.join(batch)}")
        arrays = {name: _array(values) for name, values in batch.items()}
        count = len(np.atleast_1d(next(iter(arrays.values()))))
        for name, (shape, dtype) in self.fields.items():
            array = arrays[name]
            if array.shape != (count, *shape) or not np.can_cast(array.dtype, dtype, "same_kind"):
                expected = f"{dtype} {(count, *shape)}"
                raise ValueError(f"{name} must be {expected}, not {array.dtype} {array.shape}")
        if self.interval and self.counter + count - self._flushed > self.interval:
            raise RuntimeError(
                f"{self.counter + count - self._flushed:,} transitions since the last checkpoint are more "
                f"than the {self.interval:,} that the replay memory has room for"
            )
        if count > self.slots:
            raise ValueError(f"{count:,} transitions at once do not fit into {self.slots:,} slots")
        new = np.arange(self.counter, self.counter + count)
        self._index[new % self.slots] = new + 1  # first, so that no slot ever passes for what it was before
        for name, array in arrays.items():
            self._entries[name][new % self.slots] = array
        self.counter += count

    def sample_indices(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Numbers (batch,) of transitions, drawn uniformly and with replacement from those in the memory.

        Without a generator they come from PyTorch's own, whose state is in each checkpoint.

        Raises:
            RuntimeError: the memory is empty.
        """
        import torch

        if not self.counter:
            raise RuntimeError("there is nothing to sample from an empty replay memory")
        return torch.randint(self.counter - len(self), self.counter, (batch,), generator=generator)

    def gather(self, indices: Tensor, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """The transitions of these numbers, copied to a device: indices (B, ...) -> each field (B, ..., ...).

        Raises:
            IndexError: one was not added yet, or is not among the newest ``capacity``.
        """
        import torch

        numbers = indices.cpu().numpy()
        oldest = self.counter - len(self)
        if ((numbers < oldest) | (numbers >= self.counter)).any():
            raise IndexError(f"the replay memory holds transitions {oldest:,} to {self.counter - 1:,}")
        slots = numbers % self.slots
        return {name: torch.from_numpy(file[slots]).to(device) for name, file in self._entries.items()}

    def flush(self) -> None:
        """Force what is new to disk, where a checkpoint is about to rely on it.

        Raises:
            OSError: it could not be written.
        """
        self._flushed = self.counter  # whatever comes of it: failed checkpoints have their share of the slack
        for file in (*self._entries.values(), self._index):
            file.flush()

    def state_dict(self) -> dict[str, Any]:
        """How many transitions were ever added, and the layout of the files."""
        return {"counter": self.counter, "layout": self._layout()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a checkpoint; what the files hold beyond it no longer counts.

        Raises:
            ValueError: the layout is another, or the files do not hold what they did at the checkpoint.
        """
        if state["layout"] != self._layout():
            raise ValueError(f"its layout was {state['layout']} and is {self._layout()}")
        counter = int(state["counter"])
        newest = np.arange(max(0, counter - self.capacity), counter)
        lost = np.count_nonzero(self._index[newest % self.slots] != newest + 1)
        if lost:
            raise ValueError(f"{lost:,} of the checkpoint's {len(newest):,} transitions are not in the files")
        self.counter = self._flushed = counter

    def _layout(self) -> dict[str, Any]:
        fields = {name: f"{dtype.str} {shape}" for name, (shape, dtype) in self.fields.items()}
        return {"capacity": self.capacity, "interval": self.interval, "fields": fields}


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    """A batch of a field in the computer's memory."""
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()


def _allocate(files: Mapping[Path, tuple[tuple[int, ...], np.dtype]]) -> None:
    """Make files of zeros whose room on the disk is theirs: a full disk must not end a run midway."""
    folder = next(iter(files)).parent
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        path.unlink(missing_ok=True)
    needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in files.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        told = f"the replay memory needs {needed:,} bytes and {free:,} are free"
        raise OSError(errno.ENOSPC, told, str(folder))
    for path, (shape, dtype) in files.items():
        temporary = path.with_name(f".tmp_{path.name}")
        try:
            np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            if hasattr(os, "posix_fallocate"):
                with open(temporary, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """Map a file of exactly this layout."""
    if not path.exists():
        raise ValueError(f"{path} is missing")
    with open(path, "rb") as file:
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            found, fortran, kind = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # NumPy's parser has many
            raise ValueError(f"{path} is damaged ({error})") from error
        start = file.tell()
    if (found, kind) != (shape, dtype) or fortran:
        raise ValueError(f"{path} holds {kind} {found}, not {dtype} {shape}")
    if path.stat().st_size != start + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path} is damaged: it has {path.stat().st_size:,} bytes")
    return np.memmap(path, dtype, "r+", start, shape)
