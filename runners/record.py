"""The files of a run that this process writes: events, visits, checkpoints, ``meta.json``, the summary."""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neoteny.runners.disk.appended import VISITS, Journal, changed_file
from neoteny.runners.disk.attempts import Attempt
from neoteny.runners.disk.checkpoint import save_checkpoint
from neoteny.runners.disk.events import EventWriter, event_files
from neoteny.runners.disk.exit_codes import ExitCode, stop
from neoteny.runners.disk.files import replace_file, to_json, write_json
from neoteny.runners.disk.messages import tell
from neoteny.runners.disk.opening import open_run
from neoteny.runners.identity import Identity
from neoteny.runners.parts import OnDisk


class Record:
    """The files of a run that this process owns, until a newer process takes it over.

    Args:
        attempt: the ownership.
        identity: of the run.
        state: of the checkpoint that the run goes on from; ``None`` if it begins.
    """

    def __init__(self, attempt: Attempt, identity: Identity, state: Mapping[str, Any] | None) -> None:
        self.attempt, self.folder, self.identity = attempt, attempt.folder, identity
        self.inexact = identity.inexact(state)
        """Why the run is not exact, if so."""
        with contextlib.ExitStack() as resources:
            resources.callback(attempt.close)
            with attempt.section():
                begin, counts = (state["step"] + 1, state.get("event_counts")) if state else (0, None)
                self.writer = EventWriter(self.folder, attempt.number, begin, counts, attempt.section)
                resources.callback(self.writer.close)
                path = self.folder / VISITS
                self.visits = Journal(path, new=not path.exists())
                resources.callback(self.visits.close)
            present = {path.name for path in event_files(self.folder)}  # the user may have removed some
            earlier = state["event_files"] if state else {}
            self._earlier_events = {name: size for name, size in earlier.items() if name in present}
            self.close = resources.pop_all().close

    def sizes(self) -> dict[str, int]:
        """The run's event files and their sizes in bytes, once pending events are written."""
        return {**self._earlier_events, **self.writer.sizes()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of the run's identity and of its files, whose pending lines are written."""
        return {
            "config": to_json(self.identity.config),
            "machine": self.identity.machine,
            "code": self.identity.code(),
            "inexact": self.inexact,
            "visits_size": self.visits.flush(),
            "event_files": self.sizes(),
            "event_counts": self.writer.counts,
        }

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint; OSError if it cannot be written, or the lines before it could not be."""
        if self.writer.failing or self.visits.failing:  # what is still in memory would be lost on resume
            raise OSError(errno.ENOSPC, "its events could not be")
        save_checkpoint(self.folder / "checkpoint", state["step"], state, self.attempt.section)

    def write(self, name: str, data: bytes | Mapping[str, Any]) -> None:
        """Write a file; a failure ends the run."""
        path = self.folder / name
        try:
            with self.attempt.section():
                path.parent.mkdir(exist_ok=True)
                if isinstance(data, bytes):
                    replace_file(path, data)
                else:
                    write_json(path, data)
        except OSError as error:
            reason = f"{path} could not be written ({error.strerror})"
            stop(ExitCode.IO, f"{reason}; the last checkpoint is intact")

    def write_meta(self) -> None:
        """Write whether the run is exact, its machine and its code."""
        meta = {"resume_exact": self.inexact or True, **self.identity.machine, "code": self.identity.code()}
        self.write("meta.json", meta)

    def report_inexact(self, reasons: Sequence[str]) -> None:
        """Report reasons why the run is not exact, and code that has changed since it was opened."""
        reasons = [*self.identity.changed_code(), *reasons]
        if new := [reason for reason in reasons if reason not in self.inexact]:
            self.inexact += new
            tell(f"{self.folder} continues, but not bit for bit: {'; '.join(new)}")
            self.write_meta()

    def finish(self, summary: Mapping[str, Any], on_disk: Sequence[OnDisk]) -> None:
        """Write the summary and discard the data files of parts on disk.

        Raises:
            SystemExit: code 74 if a file could not be written, or is not as it was written.
        """
        self.writer.flush()
        for file in (self.writer, self.visits):
            if file.failing:
                stop(ExitCode.IO, f"{file.path} could not be written; the last checkpoint is intact")
        with self.attempt.section():
            if changed := changed_file(self.folder, {**self.sizes(), VISITS: self.visits.flush()}):
                stop(ExitCode.IO, f"{changed} is not as it was written; the last checkpoint is intact")
            self.write("summary.json", summary)
            for part in on_disk:
                part.discard()


def open_record(
    folder: Path, identity: Identity, overwrite: bool, latest: float = math.inf
) -> tuple[Record, dict[str, Any] | None]:
    """Open the folder of a run, as `open_run` does, and new files for what this process writes.

    Args:
        folder: of the run.
        identity: of the run.
        overwrite: replace a finished run.
        latest: the step that the run goes on from at the latest.

    Returns:
        The files, and the state to resume from; ``None`` if the run begins.
    """
    try:
        attempt, state = open_run(folder, identity.config, identity.check, overwrite, latest)
        return Record(attempt, identity, state), state
    except OSError as error:
        stop(ExitCode.IO, f"{folder} cannot be written: {error}")
