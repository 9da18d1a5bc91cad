"""The folder of a run: where it is, who writes to it, and whether a run may go on from what it holds.

The README says what is in it. Each process that has worked on the run has a file in ``attempts/``, ``crash/``
is what led to a value that is not finite, and ``summary.json`` is there if, and only if, the run is finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from neoteny.optim import MethodConfigs
from neoteny.runners.checkpoint import replace_file
from neoteny.runners.exit_codes import ExitCode, check_numbers, stop
from neoteny.runners.probes import ProbeConfig

# What may differ when a run goes on: how long, how it is watched and kept, and what computes it. A change of
# threads or of the device is told as not exact.
FREE = {
    "total_steps", "checkpoint_every", "video_every", "runs_dir", "overwrite", "threads", "device",
    "allow_device_change", "stream.cycles", "stream.workers", "stream.worker_timeout", "stream.replay",
    *(f"probes.{field.name}" for field in dataclasses.fields(ProbeConfig)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """The flags that every agent has; an agent's ``Args`` add its own, its ``stream`` and its ``optim``."""

    seed: int = 1
    """Seed of the network, the actions and the stream."""
    device: str = "cpu"
    """Where the networks and what they learn from live: cpu, cuda, cuda:1, ..."""
    threads: int = 1
    """Threads of PyTorch on the CPU; small networks are fastest with one."""
    runs_dir: Path = Path("runs")
    """Where run folders are made."""
    note: str = ""
    """A word that tells this run's folder from others of the same optimizer."""
    overwrite: bool = False
    """Replace a finished run (an unfinished one goes on)."""
    checkpoint_every: int = 50_000
    """Environment steps between two checkpoints; 0 for none but those that a signal asks for."""
    video_every: int = 0
    """Environment steps between two videos of an episode of the policy as it is; 0 for none."""
    allow_device_change: bool = False
    """Let an unfinished run go on on another kind of device; its bits will differ."""
    amp: Literal["none", "bf16"] = "none"
    """Compute the networks in bfloat16; weights, losses and the optimizer stay in float32."""
    compile: bool = False
    """Compile the networks (torch.compile): a minute at the start, faster updates of large networks."""
    methods: MethodConfigs = ()
    """Plasticity methods, one of each."""
    probes: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)

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


def run_folder(agent: str, args: Any) -> Path:
    """Where the run of an agent's arguments lives."""
    stream = args.stream.id.rpartition(":")[2].replace("/", "-")
    methods = sorted(method.name for method in args.methods)
    optimizer = "-".join(filter(None, (args.optim.name, *methods, args.note)))
    return Path(args.runs_dir) / stream / agent / optimizer / f"s{args.seed}"


def check_folder(folder: Path, overwrite: bool) -> None:
    """Exit with code 2 if a run cannot begin or go on there."""
    if (folder / "summary.json").exists() and not overwrite:
        reason = f"{folder} holds a finished run; --overwrite replaces it, --note names another"
        stop(ExitCode.BAD_INPUT, reason)
    ours = any((folder / name).exists() for name in ("args.json", "attempts"))
    if folder.exists() and not ours and any(folder.iterdir()):
        stop(ExitCode.BAD_INPUT, f"{folder} is not empty and holds no run")


def clear_folder(folder: Path) -> None:
    """Remove a run, all but the count of its attempts."""
    # First the checkpoints, at once, so that no process goes on from them where the rest is gone; then the
    # summary, without which what is left is an unfinished run.
    if (folder / "checkpoint").exists():
        (folder / "checkpoint").rename(folder / f".old_{uuid.uuid4().hex}")
    for path in sorted(folder.iterdir(), key=lambda path: path.name != "summary.json"):
        if path.is_dir() and path.name != "attempts":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def begin_attempt(folder: Path) -> int:
    """Make this process the one that works on the run; returns how many have, it included."""
    attempts = folder / "attempts"
    attempts.mkdir(parents=True, exist_ok=True)
    who = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    while True:
        number = latest_attempt(folder) + 1
        # fails if another was faster
        with contextlib.suppress(FileExistsError), open(attempts / f"{number:06d}.json", "xb") as file:
            file.write(who)
            return number


def latest_attempt(folder: Path) -> int:
    """Number of the process that works on the run."""
    return max((int(path.stem) for path in (folder / "attempts").glob("*.json")), default=0)


def changed_arguments(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Which arguments differ from those of a checkpoint: name -> (before, now).

    Names that only one of them has, since a version added or removed them, do not count.
    """
    old, new = flatten(plain(before)), flatten(plain(now))
    return {name: (old[name], new[name]) for name in old if name in new and old[name] != new[name]}


def machine(device: str) -> dict[str, Any]:
    """What the bits of a result depend on, besides the arguments."""
    packages = ("neoteny", "torch", "numpy", "gymnasium", "minigrid")
    return {
        "device": torch.device(device).type,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str:
    """The version of a package; of a copied tree, which has no metadata, it is unknown."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write strict JSON, whole or not at all: paths as text, numbers that are not finite as null."""
    replace_file(path, (json.dumps(plain(data), indent=2, allow_nan=False) + "\n").encode())


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with names such as ``stream.id``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def plain(value: Any) -> Any:
    """A value as strict JSON can hold it: see :func:`write_json`."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
