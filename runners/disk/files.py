"""Atomic writing of files, and conversion of values to strict JSON."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Write a new file and sync it to disk; raises FileExistsError if there is one, or a link."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file atomically: even if the process is killed, it has either the old or the new contents."""
    temporary = path.with_name(f".tmp_{uuid.uuid4().hex}")  # which no other process writes to
    try:
        write_bytes(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove what a killed process left half written or half removed; no other process may use the folder."""
    for pattern in (".tmp_*", ".old_*"):
        for rest in folder.glob(pattern):
            if rest.is_dir() and not rest.is_symlink():
                shutil.rmtree(rest, ignore_errors=True)
            else:
                rest.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write strict JSON atomically: paths as strings, numbers that are not finite as null."""
    replace_file(path, (json.dumps(to_json(data), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; ``None`` if there is no such file or it holds something else."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts into one, with names such as ``stream.id``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def to_json(value: Any) -> Any:
    """Convert a value to what strict JSON can hold: see :func:`write_json`."""
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
