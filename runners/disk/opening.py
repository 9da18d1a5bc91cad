"""Opening a run: whether it may begin or go on in its folder, and from what."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neoteny.runners.disk.checkpoint import (
    CheckpointError,
    load_checkpoint,
    newest_manifest,
    remove_unfinished,
)
from neoteny.runners.disk.events import check_event_files, cut_event_files
from neoteny.runners.disk.exit_codes import ExitCode, stop
from neoteny.runners.disk.files import write_json
from neoteny.runners.disk.folder import begin_attempt, check_folder, clear_folder, is_finished


def open_run(
    folder: Path, config: Mapping[str, Any], check: Callable[[Mapping[str, Any]], None], overwrite: bool
) -> tuple[int, dict[str, Any] | None]:
    """Make this process the one that works on a run, and put its folder where the last checkpoint left it.

    The checkpoint is read before the folder is taken, since a command that is refused must not disturb the
    process at work there, and not again, unless that process has written another one meanwhile.

    Args:
        folder: of the run.
        config: its arguments, as ``args.json`` shall hold them.
        check: raises ValueError if a checkpoint's state is of another run; the message follows the folder's
            name.
        overwrite: replace a finished run.

    Returns:
        How many processes have worked on the run, this one included, and the state of the last checkpoint;
        ``None`` if the run begins here.

    Raises:
        SystemExit: code 2 and a sentence, if a finished run is there and is not to be replaced, if an
            unfinished one is another's or of an older version, or if none of its checkpoints is whole.
        OSError: the folder cannot be written.
    """
    check_folder(folder, overwrite)
    read = newest_manifest(folder / "checkpoint")
    state = None if is_finished(folder) else _load(folder, check)
    attempt = begin_attempt(folder)
    check_folder(folder, overwrite)  # it may have been finished meanwhile
    remove_unfinished(folder / "checkpoint")
    if is_finished(folder):
        state = None
    elif newest_manifest(folder / "checkpoint") != read:
        state = _load(folder, check)
    if state is not None:
        cut_event_files(folder, state["event_files"])
        _remove_videos(folder, after=state["step"])
    else:
        if (folder / "args.json").exists() and not is_finished(folder):
            print(f"{folder} holds no checkpoint yet: it starts again", file=sys.stderr)
        clear_folder(folder)
    write_json(folder / "args.json", config)
    return attempt, state


def _load(folder: Path, check: Callable[[Mapping[str, Any]], None]) -> dict[str, Any] | None:
    """The last checkpoint's state, if there is one."""
    try:
        state = load_checkpoint(
            folder / "checkpoint", lambda state: check_event_files(folder, state["event_files"])
        )
        if state is not None:
            check(state)
    except CheckpointError as error:
        stop(ExitCode.BAD_INPUT, str(error))
    except ValueError as error:
        stop(ExitCode.BAD_INPUT, f"{folder} {error}")
    return state


def _remove_videos(folder: Path, after: int) -> None:
    """Remove videos that were made after a step: the run will make them again."""
    for path in (folder / "videos").glob("step_*.gif"):
        if int(path.stem.removeprefix("step_")) > after:
            path.unlink()
