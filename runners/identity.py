"""The identity of a run: its arguments, its code, and the machine, on which the exact results depend."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from neoteny.optim import methods_as_dict
from neoteny.runners.disk.files import flatten, read_json, to_json
from neoteny.runners.disk.folder import agent_name
from neoteny.runners.sources import Sources, agent_file, installed_versions, version

PACKAGES = ("neoteny", "torch", "numpy", "gymnasium", "minigrid")

RENAMED = {
    "stream.span": "stream.drift_fraction",
    "reward_scale": "rewards.scale",
    "clip_rewards": "rewards.clip",
}
"""Arguments that were renamed, old name -> new name, so that earlier checkpoints can still be resumed."""

ADDED = {"rewards.normalizer": "none"}
"""Arguments whose default is not what runs did before they were added, with the value for what they did."""


LENGTH = ("total_steps", "num_tasks")
"""Arguments that may grow when a run is resumed, and tell finished runs apart."""


class Identity:
    """The arguments, the code and the machine of a run, for comparison with those of its checkpoint.

    Args:
        agent: file of the agent, or its name.
        args: its arguments, a :class:`RunArgs` with ``stream`` and ``optim``.
    """

    def __init__(self, agent: str, args: Any) -> None:
        methods = methods_as_dict(args.methods)
        self.config = {"agent": agent_name(agent), **dataclasses.asdict(args), "methods": methods}
        self.config["optim"]["name"] = args.optim.name
        self.machine = machine(args.device)
        self.sources = Sources(agent_file(agent, args))
        self._args = args
        self._code_before: Mapping[str, Any] = {}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError, naming the difference, if a checkpoint's state belongs to another run."""
        if difference := self.difference(state["config"]):
            raise ValueError(
                f"holds an unfinished run {difference}; --note names another run, removing the folder "
                "starts this one over"
            )
        was, now = state["machine"]["device"], self.machine["device"]
        if was != now and not self._args.allow_device_change:
            raise ValueError(f"was on {was}, not on {now}; --allow-device-change moves it")
        code = state.get("code", {})
        if code.get("agent", self.sources.agent) != self.sources.agent and not self._args.allow_code_change:
            raise ValueError(
                f"holds an unfinished run of another version of {self.sources.agent_file.name}; --note names "
                "another run, --allow-code-change continues this one"
            )

    def difference(self, before: Mapping[str, Any], but: Sequence[str] = ()) -> str:
        """The first argument that makes this another run: ``with lr 0.1, not 0.2``; empty if there is none.

        Args:
            before: arguments of the run before.
            but: names of arguments that may differ, besides those that may when a run is resumed.
        """
        defaults = default_config(self._args, before["methods"])
        free = (*resumable(self._args), *(f"{name}." for name in but))
        changed = changed_arguments(before, self.config, defaults).items()
        return next((how for name, how in changed if not f"{name}.".startswith(free)), "")

    def check_finished(self, folder: Path) -> None:
        """Raise ValueError, naming the difference, if a finished run, of any seed, has other arguments."""
        before = {"methods": {}, **(read_json(folder / "args.json") or self.config)}
        lengths = (
            f"with {name} {before[name]}, not {self.config[name]}"
            for name in LENGTH
            if name in before and name in self.config and before[name] != self.config[name]
        )
        if difference := self.difference(before, but=("seed", "seeds")) or next(lengths, ""):
            raise ValueError(
                f"{folder} holds a finished run {difference}; --note names others, --overwrite replaces it"
            )

    def inexact(self, state: Mapping[str, Any] | None) -> list[str]:
        """Reasons why the resumed run might not be bit-identical to an uninterrupted one."""
        reasons = [] if self.machine["device"] == "cpu" else ["exact results are guaranteed on the CPU only"]
        if state is None:
            return reasons
        was, now = flatten(state["machine"]), flatten(self.machine)
        reasons += [
            f"{name} was {was.get(name)} and is {now[name]}"
            for name in now
            if name != "platform" and was.get(name) != now[name]
            # Packages may be imported later, and checkpoints of earlier versions have no kernels.
            if name in was or not name.startswith(("versions.", "kernels."))
        ]
        before, total = state["config"].get("total_steps"), self.config.get("total_steps")
        if self.config.get("anneal_lr") and before != total:
            reasons.append(f"the learning rate was annealed over {before:,} steps and now over {total:,}")
        self._code_before = state.get("code", {})
        return list(dict.fromkeys((*state["inexact"], *reasons, *self.changed_code())))

    def code(self) -> dict[str, Any]:
        """Hashes of all code that the run has executed so far."""
        code = self.sources.as_dict()
        return {**code, "modules": {**self._code_before.get("modules", {}), **code["modules"]}}

    def changed_code(self) -> list[str]:
        """Which code differs from the checkpoint's, of the modules that were imported so far."""
        self.sources.update()
        before, now = flatten(self._code_before), flatten(self.sources.as_dict())
        named = {"agent": self.sources.agent_file.name, "neoteny": "neoteny"}
        changed = (name for name in now if before.get(name, now[name]) != now[name])
        return [
            f"the code of {named.get(name, name.removeprefix('modules.'))} was changed" for name in changed
        ]


def changed_arguments(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, str]:
    """Arguments that differ from those of a checkpoint: name -> ``with lr 0.1, not 0.2``.

    An argument that the checkpoint lacks, because a later version added it, differs unless it has the value
    that keeps the earlier behaviour: the default, or that of `ADDED`.
    """
    old, new, default = (flatten(to_json(config)) for config in (before, now, defaults))
    default = {**default, **ADDED}
    old = {RENAMED.get(name, name): value for name, value in old.items()}
    changed = {}
    for name in {**old, **new}:
        if name not in new:
            changed[name] = f"with {name} {old[name]}, which is no argument of it now"
        elif name not in old:
            if name not in default or new[name] != default[name]:
                changed[name] = f"without {name}, which now is {new[name]}"
        elif old[name] != new[name]:
            changed[name] = f"with {name} {old[name]}, not {new[name]}"
    return changed


def default_config(args: Any, methods: Mapping[str, Any]) -> dict[str, Any]:
    """The default arguments, for the same kinds of optimizer and for the ``methods`` of these names."""
    default = type(args)()
    other_kinds = {
        name: _defaults(type(value))
        for name, value in vars(args).items()
        if dataclasses.is_dataclass(value) and type(value) is not type(getattr(default, name))
    }
    known = zip(methods_as_dict(args.methods), args.methods)
    of_methods = {name: _defaults(type(method)) for name, method in known if name in methods}
    return {**dataclasses.asdict(default), **other_kinds, "methods": of_methods}


def _defaults(kind: type[Any]) -> dict[str, Any]:
    """The defaults of a dataclass's fields, by name; fields without a default are left out."""
    values = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(kind)
    }
    return {name: value for name, value in values.items() if value is not dataclasses.MISSING}


def resumable(config: Any, prefix: str = "") -> Iterator[str]:
    """Prefixes, each ending in a dot, of the names of arguments that may change when a run is resumed."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("resumable"):
            yield f"{prefix}{field.name}."
        elif dataclasses.is_dataclass(value):
            yield from resumable(value, f"{prefix}{field.name}.")


def machine(device: str) -> dict[str, Any]:
    """What exact results depend on, besides the arguments; a copied source tree has no known version."""
    return {
        "device": torch.device(device).type,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": {
            "processor": _processor(),
            "variables": " ".join(
                f"{name}={os.environ[name]}" for name in sorted(os.environ) if _chooses(name)
            ),
            "computation": _computation(torch.get_num_threads()),
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": installed_versions() | {name: version(name) or "unknown" for name in PACKAGES},
    }


CHOOSE_KERNELS = (
    "ATEN_CPU_CAPABILITY", "MKL_", "ONEDNN_", "DNNL_", "OPENBLAS_", "BLIS_", "CUBLAS_", "CUDNN_",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip
"""Beginnings of the names of environment variables with which libraries choose their kernels."""
ONLY_THREADS = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS")  # see `threads`


def _chooses(name: str) -> bool:
    return name.startswith(CHOOSE_KERNELS) and name not in ONLY_THREADS


def _processor() -> str:
    """The model of the processor."""
    try:
        with open("/proc/cpuinfo") as file:
            names = dict(line.split(":", 1) for line in file if ":" in line)
        values = {name.strip(): value.strip() for name, value in names.items()}
        return values.get("model name") or platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


@functools.lru_cache
def _computation(threads: int) -> str:
    """A hash of products, a convolution and exponentials of fixed numbers, which depends on the kernels."""
    with torch.no_grad():
        numbers = (torch.arange(64 * 144, dtype=torch.float64) * 0.7390851332151607).sin().float()
        rows, planes = numbers.view(64, 144), numbers.view(4, 16, 12, 12)
        results = [
            rows @ rows.T,
            rows.T @ rows[:, 0],
            F.linear(rows, rows[:10]),
            F.conv2d(planes, numbers[: 8 * 16 * 9].view(8, 16, 3, 3)),
            rows.exp(),
            rows.tanh(),
            rows.log_softmax(1),
            rows.sum(0),
        ]
    data = b"".join(result.contiguous().numpy().tobytes() for result in results)
    return hashlib.sha256(data).hexdigest()[:16]
