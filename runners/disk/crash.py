"""Detection of values that are not finite, and the crash bundle that reproduces them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from neoteny.runners.disk.checkpoint import checkpoints
from neoteny.runners.disk.files import write_bytes, write_json


def named_tensors(values: Mapping[str, Tensor | nn.Module]) -> dict[str, Tensor]:
    """Flatten tensors and networks into tensors by name."""
    tensors: dict[str, Tensor] = {}
    for name, value in values.items():
        items = value.state_dict().items() if isinstance(value, nn.Module) else [("", value)]
        tensors |= {f"{name}.{item}".rstrip("."): tensor for item, tensor in items}
    return tensors


def magnitudes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Largest magnitude in each tensor of floats, (), which is finite only if all numbers in it are.

    Networks compute in float32, so what is infinite there counts too.
    """
    floats = {name: each for name, each in tensors.items() if each.is_floating_point() and each.numel()}
    if not floats:
        return {}
    # On a GPU one launch for all tensors, where a check of each takes several.
    largest = torch._foreach_norm([tensor.detach().float() for tensor in floats.values()], math.inf)
    return dict(zip(floats, largest))


def save_crash(folder: Path, step: int, bad: Sequence[str], tensors: Mapping[str, Tensor]) -> Path:
    """Write the bundle with which ``scripts/replay_crash.py`` reproduces the crash; returns its folder.

    Args:
        folder: of the run.
        step: of the run.
        bad: names of the tensors that are not finite.
        tensors: all tensors that were checked.

    Raises:
        OSError: it could not be written.
    """
    crash = folder / "crash"
    shutil.rmtree(crash, ignore_errors=True)
    crash.mkdir()
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(crash / "tensors.safetensors", safetensors.torch.save(kept))
    shutil.copy(folder / "args.json", crash)
    for newest in checkpoints(folder / "checkpoint")[-1:]:
        shutil.copytree(newest, crash / "checkpoint" / newest.name)
    write_json(crash / "crash.json", {"step": step, "not_finite": list(bad)})
    return crash
