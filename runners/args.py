"""The flags that every agent has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import torch

from neoteny.optim import MethodConfigs
from neoteny.runners.disk.exit_codes import check_numbers
from neoteny.runners.probes import ProbeConfig

RESUMABLE = {"resumable": True}
"""Metadata of fields that may differ when an unfinished run goes on: how long, how it is watched and kept,
and what computes it. Results after a change of threads or device are reported as not exact."""


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """The flags that every agent has.

    An agent's ``Args`` add their own, among them ``total_steps``, and their ``stream`` and ``optim``.
    """

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
        check_numbers(self, ("seed",), at_least=0, at_most=2**63 - 1)  # what a tensor can hold
        check_numbers(self, ("checkpoint_every", "video_every"), at_least=0)
        check_numbers(self, ("threads",), at_least=1)
        if not re.fullmatch(r"[\w.-]*", self.note):
            raise ValueError(f"--note must be of letters, digits, '.', '_' and '-', not {self.note!r}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"--device {self.device} cannot be used: {reason}") from error

    def unused(self: Any) -> dict[str, str]:
        """Names of flags that do nothing as the others stand, and why."""
        found = {}
        if self.stream.total_steps() is not None:
            found["total_steps"] = f"--stream.cycles {self.stream.cycles} says how long the run is"
        if self.video_every > self.total_steps:
            found["video_every"] = f"the run ends after {self.total_steps:,} steps"
        return found

    def set_length(self: Any, update: int, flags: str) -> None:
        """Let cycles of the stream say how long the run is, and refuse one of less than an update.

        Args:
            update: environment steps of an update.
            flags: that say so.

        Raises:
            ValueError: names the flag.
        """
        steps = self.stream.total_steps()
        if steps is not None:
            object.__setattr__(self, "total_steps", steps // update * update)
        if self.total_steps < update:
            least = f"must make at least one update, of {update} steps ({flags}), not"
            if steps is None:
                raise ValueError(f"--total-steps {least} {self.total_steps}")
            raise ValueError(f"--stream.cycles {self.stream.cycles} {least} {steps}")

    def report_length(self: Any, update: int) -> str:
        """A sentence on how many steps are made, if whole updates are not as many as asked for; else ''."""
        wanted, made = self.stream.total_steps() or self.total_steps, self.total_steps // update * update
        message = f"{made:,} steps will be made, not {wanted:,}, in whole updates of {update:,}"
        return "" if made == wanted else message
