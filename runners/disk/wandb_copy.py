"""A copy of a run's events for Weights & Biases."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch.utils.tensorboard.writer as pytorch
from tensorboard.compat.proto.event_pb2 import Event

from neoteny.runners.disk.messages import warn

ORIGINAL = "tensorboard.summary.writer.event_file_writer"  # the module of PyTorch's class of event files


class WandbCopy:
    """Copies events for wandb, if ``wandb.init(sync_tensorboard=True)`` came before; else does nothing.

    wandb puts a class of its own in place of PyTorch's event files, and reads only what is written through
    this class. The copy is in the folder of wandb's run. Nothing else depends on it.
    """

    def __init__(self) -> None:
        self._writer: Any = None
        run = getattr(sys.modules.get("wandb"), "run", None)
        if run is not None and pytorch.EventFileWriter.__module__ != ORIGINAL:
            self._try(self._open, run)

    def add(self, event: Event) -> None:
        """Copy an event."""
        if self._writer is not None:
            self._try(self._writer.add_event, event)

    def close(self) -> None:
        """Write what is pending and close the file."""
        if self._writer is not None:
            self._try(self._writer.close)
        self._writer = None

    def _open(self, run: Any) -> None:
        self._writer = pytorch.EventFileWriter(str(Path(run.dir).parent / "tensorboard"))

    def _try(self, function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self._writer = None
            warn(f"warning: wandb gets no more points: {type(error).__name__}: {error}")
