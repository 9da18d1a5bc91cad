"""Opening the folder of a run: to start it, or to resume it from its last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neoteny.runners.disk.appended import VISITS, check_size, cut
from neoteny.runners.disk.attempts import Attempt, begin_attempt, locked
from neoteny.runners.disk.checkpoint import (
    CheckpointError,
    DamagedError,
    check_not_lost,
    find_checkpoint,
    newest_manifest,
    prune,
    set_aside,
)
from neoteny.runners.disk.events import check_event_files, cut_event_files
from neoteny.runners.disk.exit_codes import ExitCode, stop
from neoteny.runners.disk.files import remove_temporary, write_json
from neoteny.runners.disk.folder import check_folder, check_path, clear_folder, is_finished
from neoteny.runners.disk.forms import check_state
from neoteny.runners.disk.messages import warn

State = dict[str, Any]
Seen = tuple[bool, bytes | None]


def open_run(
    folder: Path,
    config: Mapping[str, Any],
    check: Callable[[Mapping[str, Any]], None],
    overwrite: bool,
    step: float = math.inf,
) -> tuple[Attempt, State | None]:
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
        The ownership, and the state of the last checkpoint; ``None`` if the run starts from the beginning.

    Raises:
        SystemExit: code 2 and a sentence, if the folder holds a finished run and ``overwrite`` is false, an
            unfinished run with other arguments or of an older version, or only damaged checkpoints.
        OSError: the folder cannot be written.
    """
    while True:
        check_folder(folder, overwrite)
        seen = _seen(folder)
        state, damaged = _read(folder, check, step, seen)
        with locked(folder):
            if _seen(folder) != seen:
                continue
            attempt = begin_attempt(folder)
            try:
                _restore(attempt, state, damaged, step)
                write_json(folder / "args.json", config)
            except BaseException:
                attempt.close()
                raise
        return attempt, state


def step_to_resume(
    folder: Path, check: Callable[[Mapping[str, Any]], None], overwrite: bool, step: float = math.inf
) -> int:
    """The step from which `open_run`, with the same arguments, goes on; 0 for the beginning.

    Nothing is written: damaged checkpoints stay where they are.

    Raises:
        SystemExit: code 2 and a sentence, where `open_run` has one.
        ValueError: no folder of this name can be made, or nothing can be written into it.
    """
    check_path(folder)
    check_folder(folder, overwrite)
    state, _ = _read(folder, check, step, _seen(folder))
    return state["step"] if state else 0


def _seen(folder: Path) -> Seen:
    """Whether the run is finished, and what identifies its newest checkpoint."""
    return is_finished(folder), newest_manifest(folder / "checkpoint")


def _read(
    folder: Path, check: Callable[[Mapping[str, Any]], None], step: float, seen: Seen
) -> tuple[State | None, dict[Path, DamagedError]]:
    """Read and check the last checkpoint's state, as :func:`find_checkpoint` does; none if finished."""
    if is_finished(folder):
        return None, {}
    try:
        state, damaged = find_checkpoint(
            folder / "checkpoint", lambda state: _check_contents(folder, state), step
        )
        if state is not None:
            check(state)
        elif _seen(folder) == seen:  # else another process has removed what was being read
            check_not_lost(folder / "checkpoint", damaged)
    except CheckpointError as error:
        stop(ExitCode.BAD_INPUT, str(error))
    except ValueError as error:
        stop(ExitCode.BAD_INPUT, f"{folder} {error}")
    return state, damaged


def _restore(
    attempt: Attempt, state: State | None, damaged: Mapping[Path, DamagedError], step: float
) -> None:
    """Restore a folder to the state of a checkpoint, or clear it; what a killed process left is removed."""
    folder = attempt.folder
    for place in (folder, *(folder / name for name in ("checkpoint", "videos", "pictures"))):
        remove_temporary(place)
    set_aside(damaged)
    attempt.check()
    prune(folder / "checkpoint", step)
    if state is not None:
        cut_event_files(folder, state["event_files"])
        cut(folder / VISITS, state.get("visits_size", 0))
        (folder / "stream.json").unlink(missing_ok=True)  # of an earlier version
        _remove_videos(folder, after=state["step"])
        return
    if (folder / "args.json").exists() and not is_finished(folder):
        warn(f"{folder} holds no checkpoint yet: the run starts from the beginning")
    clear_folder(folder)


def _check_contents(folder: Path, state: Any) -> None:
    """Raise DamagedError if a state is not one of a run, or the run's event files do not match it."""
    try:
        check_state(state)
    except (ValueError, TypeError) as error:
        raise DamagedError(f"a checkpoint in {folder} is not one of a run ({error})") from error
    check_event_files(folder, state["event_files"])
    check_size(folder / VISITS, state.get("visits_size", 0))


def _remove_videos(folder: Path, after: int) -> None:
    """Remove videos of later steps, which the resumed run will record again."""
    for path in (folder / "videos").glob("step_*.gif"):
        if int(path.stem.removeprefix("step_")) > after:
            path.unlink()
