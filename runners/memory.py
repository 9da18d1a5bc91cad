"""Whether what a run needs fits in the memory, asked before it is allocated."""

from __future__ import annotations

import torch


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
