"""The folder of a run: its path, and whether a run may start or resume there.

docs/runs.md describes its contents. ``crash/`` holds the crash bundle, and ``summary.json`` exists if, and
only if, the run is finished.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from neoteny.optim import optimizer_name
from neoteny.runners.disk.exit_codes import ExitCode, stop

LONGEST_NAME = 255  # bytes, of common file systems
LONGEST_PATH = 4_096 - 256  # bytes, which leaves room for what a run writes


def agent_name(agent: str) -> str:
    """The name of an agent, from its file or its name."""
    return Path(agent).stem if agent.endswith(".py") else agent


def run_folder(agent: str, args: Any, optimizer: Optimizer | None = None) -> Path:
    """The folder of a run; a wrapper is part of the stream's name: ``stream+wrapper``.

    Args:
        agent: file of the agent, or its name.
        args: its arguments, a :class:`RunArgs` with ``stream`` and ``optim``.
        optimizer: the run's, if it may be another than that of the arguments.
    """
    names = [name.rpartition(":")[2] for name in (args.stream.id, args.stream.wrap) if name]
    stream = "+".join(names).replace("/", "-")
    methods = sorted(method.name for method in args.methods)
    kind = args.optim.name if optimizer is None else optimizer_name(optimizer)
    variant = "-".join(filter(None, (kind, *methods, args.note)))
    return Path(args.runs_dir) / stream / agent_name(agent) / variant / f"s{args.seed}"


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return finished_at(folder) is not None


def finished_at(folder: Path) -> int | None:
    """When the folder's run finished, in nanoseconds; ``None`` if it has not."""
    try:
        return (folder / "summary.json").stat().st_mtime_ns
    except OSError:
        return None


def check_path(folder: Path) -> None:
    """Raise ValueError if no folder of this name can be made, or nothing can be written into it."""
    folder = folder.absolute()
    for name in folder.parts:
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise ValueError(f"{name[:40]}... is longer than the {LONGEST_NAME} bytes of a folder's name")
    if len(os.fsencode(folder)) > LONGEST_PATH:
        raise ValueError(f"{str(folder)[:40]}... is longer than the {LONGEST_PATH:,} bytes of a run's path")
    above = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if not above.is_dir():
        raise ValueError(f"{above} is not a folder, so no run can be written there")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{above} cannot be written")


def check_file(path: Path) -> None:
    """Raise ValueError if no file of this name can be written, in a folder that may have to be made."""
    check_path(path.absolute().parent)
    if len(os.fsencode(path.name)) > LONGEST_NAME - 8:  # which leaves room for an ending
        raise ValueError(f"{path.name[:40]}... is longer than the {LONGEST_NAME - 8} bytes of a file's name")
    if path.is_dir() or not path.name:
        raise ValueError(f"{path} is a folder, not a file")


def check_folder(folder: Path, overwrite: bool) -> None:
    """Exit with code 2 if a run cannot start or resume in the folder."""
    if is_finished(folder) and not overwrite:
        reason = f"{folder} holds a finished run; --overwrite replaces it, --note names another"
        stop(ExitCode.BAD_INPUT, reason)
    ours = any((folder / name).exists() for name in ("args.json", "attempts"))
    links = [name for name in ("attempts", "checkpoint") if (folder / name).is_symlink()]
    if links and is_finished(folder):
        stop(ExitCode.BAD_INPUT, f"{folder / links[0]} is a link: remove it to replace the run")
    if folder.exists() and not ours and any(folder.iterdir()):
        stop(ExitCode.BAD_INPUT, f"{folder} is not empty and holds no run")


def clear_folder(folder: Path) -> None:
    """Remove a run, except for its ``attempts/``."""
    # First the checkpoints, in one rename, so that no process resumes from them when the rest is gone; then
    # the summary, so that what is left counts as unfinished.
    if (folder / "checkpoint").exists():
        (folder / "checkpoint").rename(folder / f".old_{uuid.uuid4().hex}")
    for path in sorted(folder.iterdir(), key=lambda path: path.name != "summary.json"):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif path.name != "attempts":
            shutil.rmtree(path)
