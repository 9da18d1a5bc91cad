"""A run: its folder, its checkpoints, its TensorBoard events, its progress bar, its episode returns."""

from __future__ import annotations

import dataclasses
import errno
import math
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
import safetensors.torch
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard.summary import custom_scalars, hparams, text
from tqdm import tqdm

from neoteny.envs.audit import Fingerprint
from neoteny.envs.stream import Stream
from neoteny.optim import methods_as_dict
from neoteny.runners.args import FREE
from neoteny.runners.disk.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from neoteny.runners.disk.events import EventWriter, check_event_files, cut_event_files, image_value
from neoteny.runners.disk.exit_codes import ExitCode, stop
from neoteny.runners.disk.files import flatten, plain, replace_file, write_bytes, write_json
from neoteny.runners.disk.folder import (
    begin_attempt,
    changed_arguments,
    check_folder,
    clear_folder,
    latest_attempt,
    machine,
    run_folder,
)
from neoteny.runners.disk.preemption import Preemption
from neoteny.runners.pictures import draw_pictures
from neoteny.runners.scores import Visit, level_to_recover, run_scores
from neoteny.runners.video import cut_films, film

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
        "plasticity lost (definition 2.1)": ["Multiline", ["plasticity/lost"]],
    },
    "isometry": {
        "log10 condition number, worst hidden layer": ["Multiline", ["isometry/log10_cond/max"]],
        "largest singular value, hidden layers": ["Multiline", ["isometry/sigma_max/max"]],
        "isometry penalty": ["Multiline", ["isometry/penalty"]],
        "log10 condition number of the tangent kernel": ["Multiline", ["isometry/ntk_log10_cond/.*"]],
    },
}

FAILED_SAVES = 3  # a run ends when so many checkpoints in a row could not be written


class Part(Protocol):
    """A part of a run's state: a network, an optimizer, a schedule, a stream, a replay memory.

    One that keeps data in files of its own offers ``open()``, called before it is restored, ``flush()``,
    called before each checkpoint, and may ask for one by ``due``. One that could not be restored exactly says
    ``exact = False``.
    """

    def state_dict(self) -> Any: ...  # noqa: D102
    def load_state_dict(self, state: Any) -> Any: ...  # noqa: D102


class Run:
    """One run on disk and on the board, from its beginning or from its last checkpoint.

    Args:
        agent: name of the algorithm.
        args: the agent's arguments, a :class:`RunArgs` with ``stream`` and ``optim``.
        total_steps: environment steps that will be made.

    Raises:
        SystemExit: code 2 and one sentence, if a finished run is there and ``--overwrite`` is not given, if
            an unfinished one has other arguments, or if none of its checkpoints is whole.
    """

    def __init__(self, agent: str, args: Any, total_steps: int) -> None:
        self.folder = run_folder(agent, args)
        self.config = {"agent": agent, **dataclasses.asdict(args), "methods": methods_as_dict(args.methods)}
        self.config["optim"]["name"] = args.optim.name
        self.args, self.video_every = args, args.video_every
        self.machine = machine(args.device)
        self.inexact = [] if self.machine["device"] == "cpu" else ["bits are promised on the CPU only"]
        self.visits: list[Visit] = []
        self.seconds: dict[str, float] = {}
        self.parts: dict[str, Part] = {}
        self._ended: list[tuple[int, Tensor]] = []
        self._episodes: list[tuple[float, int, str | None]] = []  # return, length and game of each
        self._step = self._saved = self._filmed = self._failed_saves = 0
        self._video_lost = False

        try:
            self.restored = self._open()
            self.writer = self._open_events()
        except OSError as error:
            stop(ExitCode.IO, f"{self.folder} cannot be written: {error}")
        name = "/".join(self.folder.parts[-2:])
        self._first = self.restored["step"] if self.restored else 0
        self.bar = tqdm(total=total_steps, initial=self._first, unit="step", unit_scale=True, desc=name)
        self.preemption = Preemption()
        # Also called if the run ends by an error, so that what was measured is kept.
        self.close = weakref.finalize(self, _close, self.writer, self.bar, self.preemption)
        self._start = self._lap = time.perf_counter()

    def say(self, *remarks: str) -> None:
        """Print remarks on the run's set-up, if not empty, and keep them on TensorBoard's text page."""
        remark = "\n".join(filter(None, remarks))
        print(remark, flush=True)
        if self.restored is None:
            self.writer.add(text("setup", remark.replace("\n", "  \n")))

    def resume(self, **parts: Part) -> int:
        """Name the parts of the run's state, and put them where the last checkpoint left them.

        Returns:
            How many updates were made: 0 if the run begins here.

        Raises:
            SystemExit: code 2 if the checkpoint does not fit the parts, 74 if the disk is full.
        """
        self.parts, state = parts, self.restored
        for name, part in parts.items():
            try:
                if hasattr(part, "open"):
                    part.open()
                if state:
                    # Checkpoints of before there were methods have none.
                    part.load_state_dict({"methods": {}, **state["parts"]}[name])
                    if isinstance(part, torch.optim.Optimizer):
                        _fit(part)
            except (KeyError, RuntimeError, ValueError) as error:
                stop(ExitCode.BAD_INPUT, f"{self.folder} cannot go on: {name}: {error}")
            except OSError as error:
                stop(ExitCode.IO, f"{name} could not be made: {error}")
            if state and not getattr(part, "exact", True):
                self.inexact.append(f"{name} could not be restored exactly")
        if state:
            self._restore(state)
        self._write("meta.json", {"resume_exact": self.inexact or True, **self.machine})
        if not state:
            return 0
        exactly = "exactly" if not self.inexact else f"but not bit for bit: {'; '.join(self.inexact)}"
        print(f"{self.folder} goes on at step {self._step:,}, {exactly}", flush=True)
        self._lap = time.perf_counter()
        return int(state["update"])

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Go back to where a checkpoint left all but the parts."""
        torch.set_rng_state(state["rng"]["cpu"])
        if self.machine["device"] == "cuda" and "cuda" in state["rng"]:
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
        self.visits = [_visit(row) for row in state["visits"]]
        self.seconds = state["seconds"]
        self._step = self._saved = self._filmed = state["step"]
        self._write("stream.json", self._tasks())
        self.inexact = list(dict.fromkeys((*state["inexact"], *self.inexact)))

    def checkpoint(self, update: int) -> None:
        """Save the run's state after ``update`` updates, if it is time to or a signal asks the run to stop.

        Raises:
            SystemExit: code 75 after a signal, 73 if another process has taken the run over, 74 if
                checkpoints could not be written three times in a row.
        """
        every = self.args.checkpoint_every
        due = every > 0 and self._step // every > self._saved // every
        due = due or any(getattr(part, "due", False) for part in self.parts.values())
        if not due and not self.preemption.signal:
            return
        self._check_attempt()
        try:
            for part in self.parts.values():
                if hasattr(part, "flush"):
                    part.flush()
            state = self._state(update)
            if self.writer.failing:  # it would not know of the points that wait
                raise OSError(errno.ENOSPC, "its events could not be")
            save_checkpoint(self.folder / "checkpoint", self._step, state)
        except OSError as error:
            self._failed_saves += 1
            told = f"checkpoint at step {self._step:,} could not be written ({error.strerror})"
            if self._failed_saves == FAILED_SAVES or self.preemption.signal:
                stop(ExitCode.IO, f"{told}; the last one is whole")
            print(f"warning: {told}; the next one is tried", file=sys.stderr)
        else:
            self._failed_saves = 0
        self._saved = self._step
        self.lap("save")
        if self.preemption.signal:
            reason = f"stopped by {self.preemption.signal} at step {self._step:,}; the same command goes on"
            stop(ExitCode.PREEMPTED, reason)

    def record_video(self, stream: Stream, act: Callable[[Tensor], Tensor]) -> None:
        """Film an episode of the policy ``act``, observations (1, ...) -> actions (1,), if it is time to.

        Call it before :meth:`checkpoint`, which counts on it. Nothing else of the run depends on it: what
        cannot be filmed, or not be written, is told once.

        Raises:
            SystemExit: code 73 if another process has taken the run over.
        """
        every, before, self._filmed = self.video_every, self._filmed, self._step
        if every == 0 or self._step // every == before // every:
            return
        self._check_attempt()
        try:
            gif, summary = film(stream, act)
        except Exception as error:
            print(f"there will be no videos: {type(error).__name__}: {error}", flush=True)
            self.video_every = 0
            return
        path = self.folder / "videos" / f"step_{self._step:09d}.gif"
        try:
            path.parent.mkdir(exist_ok=True)
            replace_file(path, gif)
        except OSError as error:
            if not self._video_lost:
                print(f"warning: {path} could not be written ({error.strerror})", file=sys.stderr)
            self._video_lost = True
        else:
            self.writer.add(summary, self._step)
        self.lap("video")

    def check_finite(self, **values: Tensor | nn.Module) -> None:
        """End the run if a NaN or an infinity is anywhere in tensors or networks.

        The folder ``crash`` then holds all of them, and the checkpoint from which ``scripts/replay_crash.py``
        comes to the same end. Call it before :meth:`checkpoint`, which must not save them.

        Raises:
            SystemExit: code 70, naming what is not finite.
        """
        tensors: dict[str, Tensor] = {}
        for name, value in values.items():
            items = value.state_dict().items() if isinstance(value, nn.Module) else [("", value)]
            tensors |= {f"{name}.{item}".rstrip("."): tensor for item, tensor in items}
        floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
        finite = torch.stack([tensor.isfinite().all() for tensor in floats.values()])
        if not finite.all():
            bad = [name for name, fine in zip(floats, finite.tolist()) if not fine]
            self._crash(bad, tensors)

    def lap(self, section: str) -> None:
        """Count the time since the last lap as spent in ``section`` (env, act, learn, probe, ...)."""
        now = time.perf_counter()
        self.seconds[section] = self.seconds.get(section, 0.0) + now - self._lap
        self._lap = now

    def record_episodes(self, step: int, info: Mapping[str, Any]) -> None:
        """Take the returns of ended episodes, and the task they belong to, from a stream's ``info``.

        Those on a GPU stay there until the next :meth:`log_update`.
        """
        if not self.visits or info["task"] != self.visits[-1].task:
            self._count_episodes()
            self._begin_visit(info["task"], info.get("fingerprint"), info.get("game"))
        self._step = self.visits[-1].end = step
        if "audit_seconds" in info:
            self.seconds["audit"] = info["audit_seconds"]
        if "episode_return" in info:
            row = (info[name] for name in ("_episode_return", "episode_return", "episode_length"))
            self._ended.append((step, torch.stack([torch.as_tensor(part).double() for part in row])))

    def log_update(self, step: int, metrics: Mapping[str, float | Sequence[float]]) -> None:
        """Write what an update yields, with the episodes that ended in it, speed and time; move the bar."""
        self._count_episodes()
        charts = {"charts/SPS": (step - self._first) / (time.perf_counter() - self._start)}
        if self._episodes:
            returns, lengths, games = zip(*self._episodes)
            charts["charts/episodic_return"] = float(np.mean(returns))
            charts["charts/episodic_length"] = float(np.mean(lengths))
            progress = f"task {self.visits[-1].task}, return {charts['charts/episodic_return']:.2f}"
            self.bar.set_postfix_str(progress, refresh=False)
            for game in filter(None, dict.fromkeys(games)):
                charts[f"game/{game}"] = float(np.mean([row[0] for row in self._episodes if row[2] == game]))
            self._episodes.clear()
        times = {f"time/{section}": seconds for section, seconds in self.seconds.items()}
        self.writer.metrics({**charts, **metrics, **times, "stream/task": self.visits[-1].task}, step)
        self.bar.update(step - self.bar.n)

    def finish(self, network: nn.Module) -> dict[str, Any]:
        """Save the weights, log the scores, write ``summary.json`` and close.

        Returns:
            The summary: scores, one row a visit, seconds by section.

        Raises:
            SystemExit: code 73 if another process has taken the run over, 74 if the disk is full.
        """
        self._check_attempt()
        self._count_episodes()
        self._write("stream.json", self._tasks())  # once more: the disk may have been full at a switch
        self._end_visit()
        weights = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
        self._write("checkpoint/weights.safetensors", safetensors.torch.save(weights))
        self.lap("save")
        scores = run_scores(self.visits)
        self.writer.metrics({tag: score for tag, score in scores.items() if math.isfinite(score)}, self._step)
        self.writer.add(hparams({"seed": 0}, dict.fromkeys(scores, 0.0))[2])
        if self.args.probes.pictures:
            self._draw()
        total = sum(seconds for name, seconds in self.seconds.items() if name != "audit")  # a part of env
        rows = [_row(visit) for visit in self.visits]
        summary = {**scores, "visits": rows, "seconds": {**self.seconds, "total": total}}
        self.writer.flush()
        if self.writer.failing:
            stop(ExitCode.IO, f"{self.writer.path} could not be written; the last checkpoint is whole")
        self.close()
        self._write("summary.json", summary)
        return summary

    def _draw(self) -> None:
        """Draw what the run went through. Nothing else depends on it: what fails is told in one line."""
        self.writer.flush()
        try:
            switches = [visit.start for visit in self.visits[1:]]
            for name, png in draw_pictures(self.folder, switches).items():
                path = self.folder / "pictures" / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                replace_file(path, png)
                self.writer.add(Summary(value=[image_value(f"pictures/{name}", png)]), self._step)
        except ModuleNotFoundError:
            print('pictures of the run need matplotlib: pip install -e ".[analysis]"', flush=True)
        except Exception as error:
            print(f"there are no pictures of the run: {type(error).__name__}: {error}", flush=True)
        self.lap("pictures")

    def _open(self) -> dict[str, Any] | None:
        """Take the folder; returns the last checkpoint's state, if the run goes on from one."""
        check_folder(self.folder, self.args.overwrite)
        if not (self.folder / "summary.json").exists():
            self._load(sweep=False)  # what is refused must not disturb a process that is at work here
        self.attempt = begin_attempt(self.folder)
        finished = (self.folder / "summary.json").exists()
        restored = None if finished else self._load()
        if restored is None:
            if (self.folder / "args.json").exists() and not finished:
                print(f"{self.folder} holds no checkpoint yet: it starts again", file=sys.stderr)
            clear_folder(self.folder)
        else:
            cut_films(self.folder / "videos", restored["step"])
        write_json(self.folder / "args.json", self.config)
        return restored

    def _load(self, sweep: bool = True) -> dict[str, Any] | None:
        """The last checkpoint's state, if there is one and it is of this run."""

        def check(state: dict[str, Any]) -> None:
            check_event_files(self.folder, state["event_files"])

        try:
            state = load_checkpoint(self.folder / "checkpoint", sweep, check)
        except CheckpointError as error:
            stop(ExitCode.BAD_INPUT, str(error))
        if state is None:
            return None
        for name, (before, now) in changed_arguments(state["config"], self.config).items():
            if name not in FREE:
                stop(
                    ExitCode.BAD_INPUT,
                    f"{self.folder} holds an unfinished run with {name} {before}, not {now}; "
                    "--note names another run, removing the folder starts this one over",
                )
        for name, now in flatten(self.machine).items():
            before = flatten(state["machine"]).get(name)
            if before != now and name == "device" and not self.args.allow_device_change:
                reason = f"{self.folder} was on {before}, not on {now}; --allow-device-change moves it"
                stop(ExitCode.BAD_INPUT, reason)
            if before != now and name != "platform":
                self.inexact.append(f"{name} was {before} and is {now}")
        return state

    def _open_events(self) -> EventWriter:
        """Cut earlier event files back to the checkpoint, and begin one of this attempt's."""
        step, sizes = (self.restored["step"], self.restored["event_files"]) if self.restored else (-1, {})
        cut_event_files(self.folder, sizes)
        writer = EventWriter(self.folder, self.attempt, purge_step=step + 1)
        if self.restored is None:
            writer.add(custom_scalars(CHARTS))
            # SummaryWriter.add_hparams would open a second run for these.
            flat = {
                name: value if isinstance(value, bool | int | float) else str(value)
                for name, value in flatten(self.config).items()
            }
            for summary in hparams(flat, dict.fromkeys(run_scores([]), 0.0))[:2]:
                writer.add(summary)
        return writer

    def _state(self, update: int) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        rng: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.machine["device"] == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state_all()
        before = self.restored["event_files"] if self.restored else {}
        return {
            "step": self._step,
            "update": update,
            "config": plain(self.config),
            "machine": self.machine,
            "inexact": self.inexact,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "rng": rng,
            "visits": [dataclasses.asdict(visit) for visit in self.visits],
            "seconds": self.seconds,
            "event_files": {**before, self.writer.path.name: self.writer.flush()},
        }

    def _check_attempt(self) -> None:
        if latest_attempt(self.folder) != self.attempt:
            stop(ExitCode.TAKEN, f"{self.folder} was taken over by another process")

    def _write(self, name: str, data: bytes | Mapping[str, Any]) -> None:
        """Write a file that the run cannot do without."""
        path = self.folder / name
        try:
            path.parent.mkdir(exist_ok=True)
            if isinstance(data, bytes):
                write_bytes(path, data)
            else:
                write_json(path, data)
        except OSError as error:
            stop(ExitCode.IO, f"{path} could not be written ({error.strerror}); the last checkpoint is whole")

    def _crash(self, bad: list[str], tensors: dict[str, Tensor]) -> NoReturn:
        self._check_attempt()
        crash = self.folder / "crash"
        again = f"python scripts/replay_crash.py {crash} shows it again"
        try:
            shutil.rmtree(crash, ignore_errors=True)
            crash.mkdir()
            kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
            write_bytes(crash / "tensors.safetensors", safetensors.torch.save(kept))
            shutil.copy(self.folder / "args.json", crash)
            for newest in sorted((self.folder / "checkpoint").glob("step_*"))[-1:]:
                shutil.copytree(newest, crash / "checkpoint" / newest.name)
            write_json(crash / "crash.json", {"step": self._step, "not_finite": bad})
        except OSError as error:
            again = f"{crash} could not be written ({error.strerror})"
        self.close()
        told = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        stop(ExitCode.BROKEN, f"not finite at step {self._step:,}: {told}; {again}")

    def _count_episodes(self) -> None:
        """Add the episodes that ended to the visit that is on."""
        if self._ended:
            steps, rows = zip(*self._ended)
            ended, *numbers = torch.stack(rows, 1).cpu()
            returns, lengths = (number[ended > 0].tolist() for number in numbers)
            for (row, _), total, length in zip(ended.nonzero().tolist(), returns, lengths):
                self._episodes.append((total, int(length), self.visits[-1].game))
                self.visits[-1].add(total, int(length), steps[row])
            self._ended.clear()

    def _begin_visit(self, task: int, fingerprint: Fingerprint | None, game: str | None) -> None:
        self._check_attempt()
        if self.visits:
            self._end_visit()
            old = self.visits[-1].fingerprint
            if old and fingerprint:
                self.writer.metrics({"stream/fingerprint_changed": not fingerprint.same_as(old)}, self._step)
                change = f"task {self.visits[-1].task} -> {task}: {fingerprint.changes(old)}"
                self.writer.add(text("stream/switch", change), self._step)
        level = level_to_recover(self.visits, task)
        self.visits.append(Visit(task, self._step, level, fingerprint, game=game))
        try:
            write_json(self.folder / "stream.json", self._tasks())
        except OSError as error:
            print(f"warning: stream.json could not be written ({error.strerror})", file=sys.stderr)

    def _end_visit(self) -> None:
        row = _row(self.visits[-1])
        tags = ("return_at_end", "return_auc", "human_normalized", "recovery_steps", "recovered")
        scores = {f"task/{tag}": row[tag] for tag in tags if row.get(tag) is not None}
        finite = {tag: score for tag, score in scores.items() if math.isfinite(score)}
        self.writer.metrics(finite, len(self.visits) - 1)

    def _tasks(self) -> dict[str, Any]:
        """Which task began when."""
        rows = map(dataclasses.asdict, self.visits)
        names = ("task", "start", "fingerprint")
        return {"visits": [{name: row[name] for name in names if row[name] is not None} for row in rows]}


def _fit(optimizer: torch.optim.Optimizer) -> None:
    """Give moments their parameters' layout in memory, and refuse those of another shape.

    Fused kernels take both for granted, and would mix up entries or write beyond their ends.
    """
    for param, state in optimizer.state.items():
        for name, value in state.items():
            counts = name in ("step", "skipped", "guarded") and value.ndim == 0
            if not counts and value.shape != param.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)} instead of {tuple(param.shape)}")
            if not counts and value.stride() != param.stride():
                state[name] = torch.empty_like(param, dtype=value.dtype).copy_(value)


def _row(visit: Visit) -> dict[str, Any]:
    """What there is to say of a visit that is over."""
    names = ["task", "start", "end", "episodes", "return_at_end", "return_auc", "recovery_steps", "recovered"]
    names += ["game", "human_normalized"] if visit.game else []
    nothing_to_recover = {"recovery_steps": None, "recovered": None} if visit.level is None else {}
    return {name: getattr(visit, name) for name in names} | nothing_to_recover


def _visit(row: dict[str, Any]) -> Visit:
    """A visit as a checkpoint holds it."""
    fingerprint = row["fingerprint"]
    return Visit(**{**row, "fingerprint": Fingerprint(**fingerprint) if fingerprint else None})


def _close(writer: EventWriter, bar: tqdm, preemption: Preemption) -> None:
    writer.close()
    bar.close()
    preemption.restore()
