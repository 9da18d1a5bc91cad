"""Copies to the device, which are not waited for, and reads from it, which wait for all that it computes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the host to a GPU by way of pinned memory, without waiting for the GPU."""
    if tensor.device == device:  # asked first, since `to` takes five times as long to do nothing
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@torch.no_grad()
def read_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of floats on the host, flat, with a single read from the device."""
    device = max((each.device for each in tensors), key=lambda device: device.type == "cuda")
    floats = (each if each.is_floating_point() else each.double() for each in tensors)
    vectors = [to_device(each.reshape(-1), device) for each in floats]
    # Those of one type first, since each of another type takes a launch of its own.
    joined = [torch.cat(list(alike)) for _, alike in groupby(vectors, key=lambda each: each.dtype)]
    flat = torch.cat(joined).cpu()
    return list(flat.split([each.numel() for each in tensors]))


def to_host(tensors: Sequence[Tensor]) -> list[Any]:
    """The numbers of scalars, and lists of those of vectors, with a single read from the device."""
    pieces = read_together(tensors) if tensors else []
    return [piece.tolist() if each.dim() else piece.item() for piece, each in zip(pieces, tensors)]
