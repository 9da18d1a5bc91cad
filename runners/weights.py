"""The final weights of a run: its network, and the statistics of the stream's normalizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from neoteny.envs.stream import Stream
from neoteny.optim.injection import inject_as_saved

NORMALIZER = "normalizer."
"""Prefix of the names of the normalizer's statistics."""


def policy_as_bytes(network: nn.Module, stream: Any) -> bytes:
    """All tensors that acting needs, in the format of safetensors; ``stream`` need not be a `Stream`."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    known = stream.statistics() if isinstance(stream, Stream) else {}
    statistics = {NORMALIZER + name: tensor for name, tensor in known.items()}
    return safetensors.torch.save(tensors | statistics)


def load_policy(path: Path, network: nn.Module, stream: Stream) -> None:
    """Load the final weights of a run into a network, and its normalizer's statistics into a stream.

    Args:
        path: ``checkpoint/weights.safetensors`` in the run's folder.
        network: of the same structure as the run's.
        stream: made from the run's arguments; its ``reset`` keeps the statistics.

    Raises:
        ValueError: only one of file and stream has a normalizer.
        RuntimeError: the network has another structure.
    """
    tensors = safetensors.torch.load(path.read_bytes())
    names = [name for name in tensors if name.startswith(NORMALIZER)]
    statistics = {name.removeprefix(NORMALIZER): tensors.pop(name) for name in names}
    if statistics.keys() != stream.statistics().keys():
        found = "has" if statistics else "has no"
        raise ValueError(f"{path} {found} statistics of a normalizer, unlike the stream")
    inject_as_saved(network, tensors)
    network.load_state_dict(tensors)
    stream.load_statistics(statistics)
