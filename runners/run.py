"""A run: its folder, its TensorBoard events, its progress bar, its episode returns.

A run lives in ``<runs_dir>/<stream>/<agent>/<optimizer[-note]>/s<seed>/`` and nowhere else: ``args.json``,
``meta.json``, ``stream.json`` (which task began when), one event file and, once it is finished,
``checkpoint/weights.safetensors`` and ``summary.json``.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
import re
import shutil
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams, text
from tqdm import tqdm

from neoteny.runners.scores import Visit, recovery, run_scores

# One chart each on TensorBoard's custom-scalars page, all runs over one another.
CHARTS = {
    "learning": {
        "return": ["Multiline", ["charts/episodic_return"]],
        "return at the end of each task": ["Multiline", ["task/return_at_end"]],
        "area under the return curve of each task": ["Multiline", ["task/return_auc"]],
        "steps to be as good as before": ["Multiline", ["task/recovery_steps"]],
    },
    "plasticity": {
        "dormant units (0.025), worst layer": ["Multiline", ["plasticity/dormant_0.025/max"]],
        "dead units, worst layer": ["Multiline", ["plasticity/dead/max"]],
        "effective rank of the features": ["Multiline", ["plasticity/feature_effective_rank/.*"]],
    },
    "isometry": {
        "log10 condition number, worst hidden layer": ["Multiline", ["isometry/log10_cond/max"]],
        "largest singular value, hidden layers": ["Multiline", ["isometry/sigma_max/max"]],
        "isometry penalty": ["Multiline", ["isometry/penalty"]],
    },
}


class RunArgs(Protocol):
    """What a run needs of an agent's ``Args``, a dataclass."""

    @property
    def stream(self) -> Any: ...  # noqa: D102
    @property
    def optim(self) -> Any: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def runs_dir(self) -> Path: ...  # noqa: D102
    @property
    def note(self) -> str: ...  # noqa: D102
    @property
    def overwrite(self) -> bool: ...  # noqa: D102


def check_run(args: RunArgs) -> None:
    """Refuse what would fail, or be put in the wrong place, once the run has begun.

    Raises:
        ValueError: the device is not there (another is never taken instead), the seed is negative, or the
            note cannot be part of a folder's name.
    """
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device} cannot be used: {str(error).splitlines()[0]}") from error
    if args.seed < 0:
        raise ValueError(f"--seed must be at least 0, not {args.seed}")
    if not re.fullmatch(r"[\w.-]*", args.note):
        raise ValueError(f"--note must be of letters, digits, '.', '_' and '-', not {args.note!r}")


def run_folder(agent: str, args: RunArgs) -> Path:
    """Where the run of these arguments lives."""
    stream = args.stream.id.rpartition(":")[2].replace("/", "-")
    optimizer = "-".join(filter(None, (args.optim.name, args.note)))
    return Path(args.runs_dir) / stream / agent / optimizer / f"s{args.seed}"


class Run:
    """One run on disk and on the board.

    Args:
        agent: name of the algorithm.
        args: the agent's arguments; they name the folder and are kept in it.
        total_steps: environment steps that will be made.

    Raises:
        SystemExit: code 2 and one sentence, if a finished run is there and ``--overwrite`` is not given.
    """

    def __init__(self, agent: str, args: RunArgs, total_steps: int) -> None:
        self.folder = run_folder(agent, args)
        self._clear_folder(args.overwrite)
        config = {"agent": agent, **dataclasses.asdict(args)}  # type: ignore[call-overload]
        config["optim"]["name"] = args.optim.name
        write_json(self.folder / "args.json", config)
        write_json(self.folder / "meta.json", _environment(args.device))

        self.writer = FileWriter(str(self.folder), flush_secs=5)
        self.writer.add_summary(custom_scalars(CHARTS))
        self._log_hparams(config)
        name = "/".join(self.folder.parts[-2:])
        self.bar = tqdm(total=total_steps, unit="step", unit_scale=True, desc=name)
        # Also called if the run ends by an error, so that what was measured is kept.
        self.close = weakref.finalize(self, _close, self.writer, self.bar)
        self.visits: list[Visit] = []
        self.seconds: dict[str, float] = {}
        self._returns: list[float] = []
        self._lengths: list[int] = []
        self._step = 0
        self._start = self._lap = time.perf_counter()

    def say(self, remark: str) -> None:
        """Print a remark on the run's set-up, and keep it on TensorBoard's text page."""
        print(remark, flush=True)
        self.writer.add_summary(text("setup", remark.replace("\n", "  \n")))

    def lap(self, section: str) -> None:
        """Count the time since the last lap as spent in ``section`` (env, act, learn, probe, ...)."""
        now = time.perf_counter()
        self.seconds[section] = self.seconds.get(section, 0.0) + now - self._lap
        self._lap = now

    def record_episodes(self, step: int, info: Mapping[str, Any]) -> None:
        """Take the returns of ended episodes, and the task they belong to, from a stream's ``info``."""
        if not self.visits or info["task"] != self.visits[-1].task:
            self._begin_visit(Visit(info["task"], start=self._step, fingerprint=info.get("fingerprint")))
        self._step = self.visits[-1].end = step
        if "audit_seconds" in info:
            self.seconds["audit"] = info["audit_seconds"]
        if "episode_return" in info:
            ended = info["_episode_return"]
            returns, lengths = (info[key][ended].tolist() for key in ("episode_return", "episode_length"))
            self._returns += returns
            self._lengths += lengths
            self.visits[-1].returns += returns
            self.visits[-1].lengths += lengths
            self.visits[-1].ends += [step] * len(returns)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write scalars at ``step``, all of them in one event."""
        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in metrics.items()]
        self.writer.add_summary(Summary(value=values), step)

    def log_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write what an update yields, with the episodes that ended in it, speed and time; move the bar."""
        charts = {"charts/SPS": step / (time.perf_counter() - self._start)}
        if self._returns:
            charts["charts/episodic_return"] = float(np.mean(self._returns))
            charts["charts/episodic_length"] = float(np.mean(self._lengths))
            progress = f"task {self.visits[-1].task}, return {charts['charts/episodic_return']:.2f}"
            self.bar.set_postfix_str(progress, refresh=False)
            self._returns.clear()
            self._lengths.clear()
        times = {f"time/{section}": seconds for section, seconds in self.seconds.items()}
        self.log(step, {**charts, **metrics, **times, "stream/task": self.visits[-1].task})
        self.bar.update(step - self.bar.n)

    def finish(self, network: nn.Module) -> dict[str, Any]:
        """Save the weights, log the scores, write ``summary.json`` and close.

        Returns:
            The summary: scores, one row a visit, seconds by section.
        """
        self._end_visit()
        (self.folder / "checkpoint").mkdir(exist_ok=True)
        weights = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
        save_file(weights, self.folder / "checkpoint" / "weights.safetensors")
        scores = run_scores(self.visits)
        self.log(self._step, {tag: score for tag, score in scores.items() if math.isfinite(score)})
        self.writer.add_summary(hparams({"seed": 0}, dict.fromkeys(scores, 0.0))[2])
        summary = {
            **scores,
            "visits": [self._row(i) for i in range(len(self.visits))],
            "seconds": {**self.seconds, "total": time.perf_counter() - self._start},
        }
        self.close()
        write_json(self.folder / "summary.json", summary)
        return summary

    def _begin_visit(self, visit: Visit) -> None:
        if self.visits:
            self._end_visit()
            old, new = self.visits[-1].fingerprint, visit.fingerprint
            if old and new:
                self.log(self._step, {"stream/fingerprint_changed": not new.same_as(old)})
                change = f"task {self.visits[-1].task} -> {visit.task}: {new.changes(old)}"
                self.writer.add_summary(text("stream/switch", change), self._step)
        self.visits.append(visit)
        rows = [
            {"task": v.task, "start": v.start}
            | ({"fingerprint": dataclasses.asdict(v.fingerprint)} if v.fingerprint else {})
            for v in self.visits
        ]
        write_json(self.folder / "stream.json", {"visits": rows})

    def _end_visit(self) -> None:
        row = self._row(len(self.visits) - 1)
        tags = ("return_at_end", "return_auc", "recovery_steps", "recovered")
        scores = {f"task/{tag}": row[tag] for tag in tags if row[tag] is not None}
        self.log(len(self.visits) - 1, {tag: score for tag, score in scores.items() if math.isfinite(score)})

    def _row(self, index: int) -> dict[str, Any]:
        """What there is to say of a visit that is over."""
        visit = self.visits[index]
        steps, recovered = recovery(self.visits[: index + 1])
        return {
            "task": visit.task,
            "start": visit.start,
            "end": visit.end,
            "episodes": len(visit.returns),
            "return_at_end": visit.return_at_end,
            "return_auc": visit.return_auc,
            "recovery_steps": None if math.isnan(steps) else steps,
            "recovered": None if math.isnan(steps) else recovered,
        }

    def _clear_folder(self, overwrite: bool) -> None:
        if (self.folder / "summary.json").exists() and not overwrite:
            refuse(f"{self.folder} holds a finished run; --overwrite replaces it, --note names another")
        if (self.folder / "args.json").exists():
            if not overwrite:
                print(f"{self.folder} holds an unfinished run, which starts again", file=sys.stderr)
            shutil.rmtree(self.folder)
        elif self.folder.exists() and any(self.folder.iterdir()):
            refuse(f"{self.folder} is not empty and holds no run")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _log_hparams(self, config: dict[str, Any]) -> None:
        # SummaryWriter.add_hparams would open a second run for these.
        flat = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in _flatten(config).items()
        }
        for summary in hparams(flat, dict.fromkeys(run_scores([]), 0.0))[:2]:
            self.writer.add_summary(summary)


def refuse(reason: str) -> NoReturn:
    """Say in one sentence why a run cannot start, and exit with code 2, as argparse does."""
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(2)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write strict JSON: paths as text, numbers that are not finite as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, Path):
            return str(value)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def _environment(device: str) -> dict[str, Any]:
    packages = ("neoteny", "torch", "numpy", "gymnasium", "minigrid")
    return {
        "resume_exact": False,
        "device": device,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _close(writer: FileWriter, bar: tqdm) -> None:
    writer.close()
    bar.close()
