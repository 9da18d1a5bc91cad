"""Whether what a run needs fits in the memory, asked before it is allocated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

OF_A_WEIGHT = 4 * 4
"""Bytes: float32 of the weight, its gradient and two moments."""


def check_memory(what: str, size: int, device: torch.device | str = "cpu") -> None:
    """Refuse what cannot fit.

    Args:
        what: needs the memory, with its flags, for the message.
        size: bytes that it needs.
        device: whose memory it needs.

    Raises:
        ValueError: more than is free.
    """
    free = free_memory(torch.device(device))
    if free is not None and size > free:
        raise ValueError(f"{what} needs {size:,} bytes and {free:,} are free in the memory of {device}")


def free_memory(device: torch.device) -> int | None:
    """Free bytes of memory on a device; ``None`` if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            available = next(line for line in file if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return None


@contextlib.contextmanager
def checked_weights() -> Iterator[None]:
    """Refuse networks that do not fit in the memory, whatever makes them, before their weights are filled.

    Raises:
        ValueError: a weight, its gradient and moments need more than is free.
    """

    def check(module: nn.Module, name: str, weight: Tensor | None) -> None:
        if weight is not None:
            shape = " x ".join(map(str, weight.shape))
            check_memory(f"a {name} of {shape} (--network.hidden)", weight.numel() * OF_A_WEIGHT)

    hook = register_module_parameter_registration_hook(check)
    try:
        yield
    except RuntimeError as error:  # of an allocation, whose address space alone is too large
        if "alloc" not in str(error) and "overflow" not in str(error):
            raise
        raise ValueError("the networks do not fit in the memory (--network.hidden)") from error
    finally:
        hook.remove()


def check_minibatch(network: nn.Module, size: int, flags: str) -> None:
    """Raise ValueError if the activations of a minibatch do not fit in the memory of the network's device.

    Args:
        network: of an agent, with an ``example`` of its observations, (1, ...).
        size: of a minibatch.
        flags: that say its size.
    """
    example: Any = network.example
    made: list[int] = [example.numel()]
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: made.append(output.numel()))
        for name, module in network.named_modules()
        if not list(module.children()) and "parametrizations" not in name  # whose outputs are weights
    ]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    needed = 2 * 4 * sum(made) * size  # floats, and their gradients
    check_memory(f"a minibatch of {size:,} ({flags})", needed, example.device)
