"""Opening the folder of a run: to start it, or to resume it from its last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neoteny.runners.disk.checkpoint import (
    CheckpointError,
    DamagedError,
    load_checkpoint,
    newest_manifest,
    remove_later,
    remove_unfinished,
)
from neoteny.runners.disk.events import check_event_files, cut_event_files
from neoteny.runners.disk.exit_codes import ExitCode, stop
from neoteny.runners.disk.files import write_json
from neoteny.runners.disk.folder import begin_attempt, check_folder, clear_folder, is_finished
from neoteny.runners.disk.forms import check_state
from neoteny.runners.disk.messages import warn


def open_run(
    folder: Path,
    config: Mapping[str, Any],
    check: Callable[[Mapping[str, Any]], None],
    overwrite: bool,
    step: float = math.inf,
) -> tuple[int, dict[str, Any] | None]:
    """Make this process the owner of a run, and restore its folder to the state of the last checkpoint.

    The checkpoint is read before ownership is taken, since a refused command must not disturb a process that
    is working there. It is read again only if that process has written a newer one meanwhile.

    Args:
        folder: of the run.
        config: its arguments, to be written to ``args.json``.
        check: raises ValueError if a checkpoint's state belongs to another run; the folder's name is put
            before the message.
        overwrite: replace a finished run.
        step: that the run goes on from at the latest; checkpoints after it are removed.

    Returns:
        The number of this process among those that have worked on the run, and the state of the last
        checkpoint; ``None`` if the run starts from the beginning.

    Raises:
        SystemExit: code 2 and a sentence, if the folder holds a finished run and ``overwrite`` is false, an
            unfinished run with other arguments or of an older version, or only damaged checkpoints.
        OSError: the folder cannot be written.
    """
    check_folder(folder, overwrite)
    read = newest_manifest(folder / "checkpoint")
    state = None if is_finished(folder) else _load(folder, check, step)
    attempt = begin_attempt(folder)
    check_folder(folder, overwrite)  # it may have been finished meanwhile
    remove_unfinished(folder / "checkpoint")
    if is_finished(folder):
        state = None
    elif newest_manifest(folder / "checkpoint") != read:
        state = _load(folder, check, step)
    remove_later(folder / "checkpoint", step)
    if state is not None:
        cut_event_files(folder, state["event_files"])
        _remove_videos(folder, after=state["step"])
    else:
        if (folder / "args.json").exists() and not is_finished(folder):
            warn(f"{folder} holds no checkpoint yet: the run starts from the beginning")
        clear_folder(folder)
    write_json(folder / "args.json", config)
    return attempt, state


def _load(folder: Path, check: Callable[[Mapping[str, Any]], None], step: float) -> dict[str, Any] | None:
    """Read and check the state of the last checkpoint up to a step; ``None`` if there is none."""
    try:
        state = load_checkpoint(folder / "checkpoint", lambda state: _check_contents(folder, state), step)
        if state is not None:
            check(state)
    except CheckpointError as error:
        stop(ExitCode.BAD_INPUT, str(error))
    except ValueError as error:
        stop(ExitCode.BAD_INPUT, f"{folder} {error}")
    return state


def _check_contents(folder: Path, state: Any) -> None:
    """Raise DamagedError if a state is not one of a run, or the run's event files do not match it."""
    try:
        check_state(state)
    except (ValueError, TypeError) as error:
        raise DamagedError(f"a checkpoint in {folder} is not one of a run ({error})") from error
    check_event_files(folder, state["event_files"])


def _remove_videos(folder: Path, after: int) -> None:
    """Remove videos of later steps, which the resumed run will record again."""
    for path in (folder / "videos").glob("step_*.gif"):
        if int(path.stem.removeprefix("step_")) > after:
            path.unlink()
