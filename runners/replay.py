"""Replay memory in memory-mapped files: a killed run finds in them what its last checkpoint counted on.

Transition i, counted from the run's first, lies in slot i mod (capacity + slack). The newest ``capacity``
are what is learned from. The slack is room for what comes after a checkpoint, so that a run that is killed
and goes on from that checkpoint finds all of its transitions untouched; newer ones, which nothing in the
checkpoint knows of, are written again. Nothing is copied to make a checkpoint: it holds the counter only.
"""

from __future__ import annotations

import errno
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
            raise ValueError(f"no memory of {capacity} transitions, {interval} an interval, {len(fields)} fields")
        self.capacity, self.interval = capacity, interval
        self.slots = capacity + PROTECTED * interval
        self.fields = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in fields.items()}
        self.counter = self._flushed = 0
        for name, (_, dtype) in self.fields.items():
            if not name.isidentifier() or name.startswith("_"):
                raise ValueError(f"{name!r} cannot be the name of a field")
            if dtype.kind not in "biuf" or dtype.itemsize > 8 or not dtype.isnative:
                raise ValueError(f"{name} cannot be of {dtype}")
        files = {**self.fields, INDEX: ((), np.dtype(np.int64))}
        paths = {name: folder / f"{name}.npy" for name in files}
        if not paths[INDEX].exists():  # it is made last: whatever else is there was not finished
            _make_room(folder, {paths[name]: (self.slots, *files[name][0]) for name in files}, files.values())
        self._files = {
            name: _open(paths[name], (self.slots, *shape), dtype) for name, (shape, dtype) in files.items()
        }

    def __len__(self) -> int:
        """Transitions that can be sampled."""
        return min(self.counter, self.capacity)
