"""The flags that every agent has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

import torch

from neoteny.optim import MethodConfigs
from neoteny.runners.disk.exit_codes import check_numbers
from neoteny.runners.probes import ProbeConfig

RESUMABLE = {"resumable": True}
"""Metadata of fields that may differ when an unfinished run goes on: how long, how it is watched and kept,
and what computes it. A change of threads or of the device is told as not exact."""


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """The flags that every agent has; an agent's ``Args`` add its own, its ``stream`` and its ``optim``."""

    seed: int = 1
    """Seed of the network, the actions and the stream."""
    device: str = dataclasses.field(default="cpu", metadata=RESUMABLE)
    """Where the networks and what they learn from live: cpu, cuda, cuda:1, ..."""
    threads: int = dataclasses.field(default=1, metadata=RESUMABLE)
    """Threads of PyTorch on the CPU; small networks are fastest with one."""
    runs_dir: Path = dataclasses.field(default=Path("runs"), metadata=RESUMABLE)
    """Where run folders are made."""
    note: str = ""
    """A word that tells this run's folder from others of the same optimizer."""
    overwrite: bool = dataclasses.field(default=False, metadata=RESUMABLE)
    """Replace a finished run (an unfinished one goes on)."""
    checkpoint_every: int = dataclasses.field(default=50_000, metadata=RESUMABLE)
    """Environment steps between two checkpoints; 0 for none but those that a signal asks for."""
    video_every: int = dataclasses.field(default=0, metadata=RESUMABLE)
    """Environment steps between two videos of an episode of the policy as it is; 0 for none."""
    allow_device_change: bool = dataclasses.field(default=False, metadata=RESUMABLE)
    """Let an unfinished run go on on another kind of device; its bits will differ."""
    amp: Literal["none", "bf16"] = "none"
    """Compute the networks in bfloat16; weights, losses and the optimizer stay in float32."""
    compile: bool = False
    """Compile the networks (torch.compile): a minute at the start, faster updates of large networks."""
    methods: MethodConfigs = ()
    """Plasticity methods, one of each."""
    probes: ProbeConfig = dataclasses.field(default_factory=ProbeConfig, metadata=RESUMABLE)

    def __post_init__(self) -> None:
        """Refuse what would fail, or be put in the wrong place, once the run has begun.

        Raises:
            ValueError: names the flag. A device that is not there is never replaced by another.
        """
        check_numbers(self, ("seed", "checkpoint_every", "video_every"), at_least=0)
        check_numbers(self, ("threads",), at_least=1)
        if not re.fullmatch(r"[\w.-]*", self.note):
            raise ValueError(f"--note must be of letters, digits, '.', '_' and '-', not {self.note!r}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"--device {self.device} cannot be used: {reason}") from error
