"""The flags that all agents share."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Literal

import torch

from neoteny.optim import MethodConfigs
from neoteny.runners.disk.exit_codes import MOST, check_numbers
from neoteny.runners.probes import ProbeConfig

MOST_THREADS = 256
"""Of PyTorch, or as many as there are cores."""
LONGEST_UPDATE = 10**6
"""Gradient steps of an update, between which nothing is logged or saved."""
RESUMABLE = {"resumable": True}
"""Metadata of fields that may change when a run is resumed: its length, what is logged and saved, and the
hardware. After a change of threads or device, results are reported as not exact."""


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """The flags that all agents share.

    An agent's ``Args`` add its own, among them ``total_steps``, ``stream`` and ``optim``.
    """

    seed: int = 1
    """Seed of the network, the actions and the stream."""
    device: str = dataclasses.field(default="cpu", metadata=RESUMABLE)
    """Device of the networks and of their training data: cpu, cuda, cuda:1, ..."""
    threads: int = dataclasses.field(default=1, metadata=RESUMABLE)
    """PyTorch's CPU threads; small networks are fastest with one."""
    runs_dir: Path = dataclasses.field(default=Path("runs"), metadata=RESUMABLE)
    """Folder in which run folders are made."""
    note: str = ""
    """Suffix of the run folder's name, to distinguish runs with the same optimizer and methods."""
    overwrite: bool = dataclasses.field(default=False, metadata=RESUMABLE)
    """Replace a finished run (an unfinished one is resumed)."""
    checkpoint_every: int = dataclasses.field(default=50_000, metadata=RESUMABLE)
    """Environment steps between two checkpoints; 0 saves only when a signal stops the run."""
    video_every: int = dataclasses.field(default=0, metadata=RESUMABLE)
    """Environment steps between two videos of an episode of the current policy; 0 for none."""
    evaluate_at_switch: int = 0
    """Play this many episodes of every recurring task before training, at each switch and at the end, for the
    scores that need it; 0 for none. The time is that of tasks x episodes; no bit of training changes."""
    allow_device_change: bool = dataclasses.field(default=False, metadata=RESUMABLE)
    """Allow resuming on another kind of device; results then differ in their bits."""
    allow_code_change: bool = dataclasses.field(default=False, metadata=RESUMABLE)
    """Allow resuming after the agent's file was edited; the run is then a mixture of both."""
    amp: Literal["none", "bf16"] = "none"
    """Compute the networks in bfloat16; weights, losses and the optimizer stay in float32."""
    graphs: bool = dataclasses.field(default=True, metadata=RESUMABLE)
    """On a GPU, replay rollout and gradient steps as CUDA graphs, without Python in between."""
    compile: bool = False
    """Compile rollout steps and losses (torch.compile), which takes a minute or two at the first start."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products on a GPU: "high" allows TF32, "medium" bfloat16."""
    deterministic: bool = False
    """On a GPU, use kernels that give the same bits in every run, some of which are slower."""
    methods: MethodConfigs = ()
    """Plasticity methods, one of each."""
    probes: ProbeConfig = dataclasses.field(default_factory=ProbeConfig, metadata=RESUMABLE)

    def __post_init__(self) -> None:
        """Check flags that would make the run fail later, or put its folder in the wrong place.

        Raises:
            ValueError: names the flag. A missing device is never silently replaced by another.
        """
        check_numbers(self, ("seed",), at_least=0, at_most=2**63 - 1)  # the range of an int64 tensor
        check_numbers(self, ("checkpoint_every", "video_every"), at_least=0)
        check_numbers(self, ("evaluate_at_switch",), at_least=0, at_most=10_000)
        check_numbers(self, ("threads",), at_least=1, at_most=max(MOST_THREADS, os.cpu_count() or 1))
        if not re.fullmatch(r"[\w.-]*", self.note):
            raise ValueError(f"--note may contain only letters, digits, '.', '_' and '-', not {self.note!r}")
        self._check_device()
        if self.evaluate_at_switch and hasattr(self, "total_steps"):
            self._check_evaluation()

    def _check_device(self) -> None:
        """A device that holds no numbers, such as meta, cannot train either."""
        try:
            if torch.ones(1, device=self.device).item() != 1 or self.device.startswith("cpu:"):
                raise RuntimeError("use cpu, cuda or cuda:1")
        except Exception as error:  # each backend raises others
            lines = str(error).splitlines() or [type(error).__name__]
            raise ValueError(f"--device {self.device} cannot be used: {lines[0]}") from error

    def _check_evaluation(self: Any) -> None:
        if not self.stream.schedule().cycle:
            raise ValueError(f"--evaluate-at-switch: the tasks of {self.stream.id} never recur")
        if self.stream.normalizer == "reset":
            raise ValueError(
                "--evaluate-at-switch: at a switch --stream.normalizer reset discards what the policy needs"
            )

    def unused(self: Any) -> dict[str, str]:
        """Flags that have no effect with the current values of the others -> why."""
        found: dict[str, str] = {}
        if torch.device(self.device).type != "cuda":
            names = ("graphs", "matmul_precision", "deterministic")
            found |= dict.fromkeys(names, f"it is for GPUs, and --device is {self.device}")
        if not hasattr(self, "total_steps"):  # a supervised learner's length is a number of tasks
            return found
        if self.stream.total_steps() is not None:
            found["total_steps"] = f"--stream.cycles {self.stream.cycles} determines the length of the run"
        if self.video_every > self.total_steps:
            found["video_every"] = f"the run ends after {self.total_steps:,} steps"
        return found

    def without_switches(self: Any, *names: str) -> dict[str, str]:
        """Flags that act at switches, `names` and methods -> why they do nothing, if no task switches."""
        schedule = dataclasses.replace(self.stream.schedule(), seed=self.seed)
        if schedule.switched_at(self.total_steps - self.num_envs):
            return {}
        methods = (method.name for method in self.methods if method.name.endswith("_at_switch"))
        reason = f"{self.stream.id} does not switch before the run ends"
        return dict.fromkeys((*names, *(f"methods.{name}" for name in methods)), reason)

    def set_up(self) -> torch.device:
        """Set PyTorch up for the run; returns its device."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        device = torch.device(self.device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision(self.matmul_precision)
            if self.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
                torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(self.deterministic)
        return device

    def set_length(self: Any, update: int, flags: str) -> None:
        """Set ``total_steps`` from the stream's cycles, if given, in whole updates.

        Args:
            update: environment steps per update.
            flags: the flags that determine ``update``, for the error message.

        Raises:
            ValueError: the run is shorter than one update; names the flag.
        """
        steps = self.stream.total_steps()
        if steps is not None:
            object.__setattr__(self, "total_steps", steps // update * update)
        if self.total_steps > MOST:
            raise ValueError(f"--stream.cycles {self.stream.cycles} makes more than {MOST:,} steps")
        if self.total_steps < update:
            least = f"must make at least one update, of {update} steps ({flags}), not"
            if steps is None:
                raise ValueError(f"--total-steps {least} {self.total_steps}")
            raise ValueError(f"--stream.cycles {self.stream.cycles} {least} {steps}")

    def check_update(self, gradient_steps: int, flags: str) -> None:
        """Raise ValueError if an update makes too many gradient steps, of which ``flags`` say how many."""
        if gradient_steps > LONGEST_UPDATE:
            most = f"at most {LONGEST_UPDATE:,}, since nothing is saved in between"
            raise ValueError(f"an update makes {gradient_steps:,} gradient steps ({flags}) instead of {most}")

    def report_length(self: Any, update: int) -> str:
        """A message if the number of steps is rounded down to whole updates; else an empty string."""
        wanted, made = self.stream.total_steps() or self.total_steps, self.total_steps // update * update
        message = f"the run makes {made:,} steps instead of {wanted:,}: whole updates of {update:,}"
        return "" if made == wanted else message


def check_multiple(flag: str, value: int, of: str, factor: int) -> None:
    """Raise ValueError if the value of a flag is not a multiple of that of another."""
    if value % factor:
        raise ValueError(f"{flag} must be a multiple of {of}, {factor}, not {value}")
