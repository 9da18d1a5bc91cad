"""Checkpoints: the state of a run on disk, written atomically and without pickle.

A checkpoint is a folder ``step_<steps>`` of three files: ``tensors.safetensors``, ``state.json`` (everything
else, with references to the tensors) and ``manifest.json`` (format, step, sizes and SHA-256 of the other
two). It is written into a temporary folder, each file synced to disk, the manifest last, and then renamed, so
that a reader finds a complete checkpoint whenever the process is killed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import TensorSpec, serialize
from torch import Tensor

from neoteny.runners.disk.files import sync_folder, write_bytes
from neoteny.runners.disk.messages import warn

FORMAT = 2  # version of the files' layout and contents; other versions are refused
KEEP = 2  # number of checkpoints: the newest, and one to fall back on if it is damaged
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
LARGEST_MANIFEST = 65_536  # bytes


class CheckpointError(Exception):
    """A run cannot be resumed from its folder; the message is one sentence for the user."""


class DamagedError(CheckpointError):
    """A checkpoint is truncated, changed or incomplete."""


def save_checkpoint(
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    section: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Path:
    """Write a checkpoint and remove all but the newest two.

    Args:
        folder: of the run's checkpoints; created if missing.
        step: environment steps so far; names the checkpoint.
        state: dicts, lists and tuples of tensors, arrays, numbers, strings and ``None``.
        section: entered when the checkpoint is written and takes its place: :meth:`Attempt.section`.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: it could not be written; older checkpoints are unchanged.
        TypeError: the state holds another type.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    files = {TENSORS: _serialize(tensors), STATE: json.dumps(tree).encode()}
    listed = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    files[MANIFEST] = json.dumps({"format": FORMAT, "step": step, "files": listed}, indent=2).encode()

    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(map(len, files.values()))
    if shutil.disk_usage(folder).free < needed + LARGEST_MANIFEST:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed", str(folder))
    temporary = folder / f".tmp_{uuid.uuid4().hex}"
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_bytes(temporary / name, data)
        sync_folder(temporary)
        checkpoint = folder / f"step_{step:012d}"
        with section():
            if checkpoint.exists():
                _remove(checkpoint)
            temporary.rename(checkpoint)
            sync_folder(folder)
            prune(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # unless it is the checkpoint now
    return checkpoint


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*"))


def step_of(checkpoint: Path) -> int:
    """Environment steps of a run when it was saved."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_manifest(folder: Path) -> bytes | None:
    """The manifest of the newest checkpoint, which identifies it; ``None`` if there is no checkpoint."""
    try:
        return (checkpoints(folder)[-1] / MANIFEST).read_bytes()
    except (IndexError, OSError):
        return None


def find_checkpoint(
    folder: Path, check: Callable[[dict[str, Any]], None] = lambda state: None, step: float = math.inf
) -> tuple[dict[str, Any] | None, dict[Path, DamagedError]]:
    """Read the newest intact checkpoint, and change nothing.

    Args:
        folder: of the run's checkpoints.
        check: raises :class:`DamagedError` if a state does not match the other files of the run.
        step: checkpoints after this one are left out.

    Returns:
        The state, tensors on the CPU, or ``None`` if there is none; and the newer, damaged checkpoints.

    Raises:
        CheckpointError: a checkpoint has another format.
    """
    damaged: dict[Path, DamagedError] = {}
    for checkpoint in reversed(checkpoints(folder)):
        if step_of(checkpoint) > step:
            continue
        try:
            state = read_checkpoint(checkpoint)
            check(state)
            return state, damaged
        except DamagedError as damage:
            damaged[checkpoint] = damage
    return None, damaged


def prune(folder: Path, step: float = math.inf) -> None:
    """Remove the checkpoints after a step, and all but the newest two of the others."""
    found = checkpoints(folder)
    kept = [checkpoint for checkpoint in found if step_of(checkpoint) <= step][-KEEP:]
    for checkpoint in found:
        if checkpoint not in kept:
            _remove(checkpoint)


def load_checkpoint(
    folder: Path, check: Callable[[dict[str, Any]], None] = lambda state: None
) -> dict[str, Any] | None:
    """Read the newest intact checkpoint as :func:`find_checkpoint` does, and set damaged ones aside.

    Returns:
        The state, tensors on the CPU; ``None`` if there never was a checkpoint.

    Raises:
        CheckpointError: all checkpoints are damaged, or the newest has another format.
    """
    state, damaged = find_checkpoint(folder, check)
    if state is None:
        check_not_lost(folder, damaged)
    set_aside(damaged)
    return state


def set_aside(damaged: Mapping[Path, DamagedError]) -> None:
    """Report damaged checkpoints and rename them to ``.corrupt_*``."""
    for checkpoint, damage in damaged.items():
        warn(f"warning: {damage}; it is set aside")
        checkpoint.rename(checkpoint.with_name(f".corrupt_{checkpoint.name}_{uuid.uuid4().hex[:8]}"))


def check_not_lost(folder: Path, damaged: Mapping[Path, DamagedError]) -> None:
    """Report damaged checkpoints and raise CheckpointError if there is, or was, any."""
    if damaged or any(folder.glob(".corrupt_*")):
        for damage in damaged.values():
            warn(f"warning: {damage}")
        raise CheckpointError(
            f"all checkpoints in {folder} are damaged; remove the run's folder to start over"
        )


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Read the state of one checkpoint.

    Raises:
        DamagedError: it is truncated, changed or incomplete.
        CheckpointError: it has another format.
    """
    try:
        with open(checkpoint / MANIFEST, "rb") as file:
            manifest = json.loads(file.read(LARGEST_MANIFEST))
        if manifest["format"] > FORMAT:
            raise CheckpointError(
                f"{checkpoint} was made by a newer version: format {manifest['format']} instead of {FORMAT}"
            )
        if manifest["format"] < FORMAT:
            raise CheckpointError(
                f"{checkpoint} was made by neoteny 0.1: finish the run with that version, or remove its "
                "folder to start over"
            )
        if manifest["files"].keys() != {TENSORS, STATE}:
            raise DamagedError(f"{checkpoint} lists unexpected files")
        contents = {name: _read(checkpoint / name, listed) for name, listed in manifest["files"].items()}
        tensors = safetensors.torch.load(contents[TENSORS])
        state = _decode(json.loads(contents[STATE]), tensors)
        assert isinstance(state, dict)
        return state
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise DamagedError(f"{checkpoint} lacks {Path(error.filename).name}") from error
    except Exception as error:
        raise DamagedError(f"{checkpoint} is damaged ({error})") from error


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; it is renamed first, so that no partial checkpoint ever has its name."""
    old = checkpoint.with_name(f".old_{uuid.uuid4().hex}")
    checkpoint.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _read(path: Path, listed: Mapping[str, Any]) -> bytes:
    """Read a file and compare it with the manifest's entry, the size before anything is read."""
    if path.stat().st_size != listed["size"]:
        raise DamagedError(f"{path} has {path.stat().st_size:,} bytes instead of {listed['size']:,}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != listed["sha256"]:
        raise DamagedError(f"{path} was changed: its SHA-256 differs")
    return data


def _serialize(tensors: Mapping[str, Tensor]) -> bytes:
    """What ``safetensors.torch.save`` returns, in a fifteenth of the time.

    The tensors are contiguous, on the CPU, and share no memory, as those of :func:`_encode` are.
    """
    specs = {
        name: TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tensor.shape,
            data_ptr=tensor.data_ptr(),
            data_len=tensor.nbytes,
        )
        for name, tensor in tensors.items()
    }
    return serialize(specs)


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Encode a value as JSON; tensors and arrays are put into ``tensors`` under their ``path``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(value, np.ndarray | np.generic):
        tensors[path] = torch.from_numpy(np.array(value, order="C"))
        return {"array": path}
    if isinstance(value, Mapping):
        items = [[key, _encode(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        if all(isinstance(key, str) for key in value):
            return {"dict": dict(items)}
        return {"items": items}
    if isinstance(value, list | tuple):
        encoded = [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return encoded if isinstance(value, list) else {"tuple": encoded}
    raise TypeError(f"a checkpoint cannot hold {path}, a {type(value).__name__}")


def _decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`_encode`."""
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy().copy()
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return {key: _decode(item, tensors) for key, item in (content if kind == "items" else content.items())}
