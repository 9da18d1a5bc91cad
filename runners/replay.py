"""Replay memory of an off-policy agent, with each frame stored once, as tensors or as files on disk.

Each environment has a ring buffer of *places*, numbered from its first observation on. A place holds an
observation, the action taken there, its reward and whether the episode ended; the next observation is in the
next place. After a truncated episode, the next place holds its final observation without an action, since
the one after it belongs to the next episode.

Of stacked frames only the last is stored; they are stacked again when sampled.

Files on disk are memory-mapped, and a checkpoint does not copy them: it holds only the position of each ring.
The rings have slack for the places that are written after a checkpoint, so that a killed run that resumes
from the checkpoint finds all of its data intact; newer places are overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import math
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from neoteny.envs.transfer import to_device
from neoteny.runners.disk.attempts import Attempt
from neoteny.runners.disk.files import replace_file
from neoteny.runners.memory import check_memory

# Two checkpoints are kept. Slack for two intervals lets both be restored, the older one if the newest is
# damaged. With three this holds even if a checkpoint between them could not be written, and the newest can be
# restored after two failed saves in a row; the third one ends the run.
PROTECTED = 3  # checkpoint intervals that the slack covers

GOES_ON, TERMINATED, CUT, NO_STEP = range(4)  # outcome of a step; NO_STEP: a final observation without one
INDEX = "index"
TASKS = "tasks"

# PyTorch has few operations for these types, so their bits are stored as signed numbers.
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class Batch(NamedTuple):
    """Transitions of up to n steps, on the agent's device, (B, ...)."""

    observations: Tensor  # raw
    actions: Tensor
    returns: Tensor  # discounted sum of rewards, of fewer than n where the episode ended
    discounts: Tensor  # factor of the next observation's value: gamma ** steps made, 0 if terminated
    next_observations: Tensor  # after these steps; the final one if truncated, arbitrary if terminated
    weights: Tensor  # weight in the loss: 1; 0 for a place without a step


class ReplayMemory:
    """The latest steps of N environments.

    It is a part of a run's state, which :class:`~neoteny.runners.run.Run` opens, saves and restores. On disk
    each place stores its number too, so that files that do not match a checkpoint are refused instead of
    being learned from. The contents are not hashed.

    Args:
        capacity: steps of all environments that are sampled (final observations of truncated episodes count).
        num_envs: N.
        observation_space: of one environment, an array.
        action_space: of one environment, an array.
        frame_stack: number of frames stacked along the first axis of observations, the newest last and zeros
            before an episode's first; 1 for none.
        device: of the tensors; with ``folder``, of the agent.
        folder: of the files, used for nothing else; ``None`` for tensors, which are saved in full with each
            checkpoint.
        interval: for a memory on disk, the most places of all environments that may be filled between two
            checkpoints; when seven eighths are, it asks for a checkpoint. With 0 there is no slack and no
            limit, and a killed run can resume only if nothing was added since its checkpoint.

    Raises:
        ValueError: an argument is invalid, or memory or disk space does not suffice.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        observation_space: gym.Space,
        action_space: gym.Space,
        frame_stack: int = 1,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
        interval: int = 0,
    ) -> None:
        if capacity < num_envs or num_envs < 1 or interval < 0 or frame_stack < 1:
            raise ValueError(
                f"no replay memory can have {capacity=}, {num_envs=}, {frame_stack=}, {interval=}"
            )
        shape = observation_space.shape
        if shape is None or action_space.shape is None:
            raise ValueError(f"a replay memory holds arrays, not {observation_space} and {action_space}")
        if frame_stack > 1 and shape[:1] != (frame_stack,):
            raise ValueError(f"observations of shape {shape} are not stacks of {frame_stack} frames")
        self.num_envs, self.frame_stack, self.folder = num_envs, frame_stack, folder
        self.agent_device = torch.device(device)
        self.device = torch.device("cpu") if folder else self.agent_device
        self.kept = -(-capacity // num_envs)  # sampled places per environment
        self.interval = -(-interval // num_envs) if folder else 0
        # Besides those: earlier frames of the oldest stack, the next observation, and the slack.
        self.places = self.kept + frame_stack + 1 + PROTECTED * self.interval
        frame = shape if frame_stack == 1 else shape[1:]
        self.fields: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            "frames": (frame, np.dtype(observation_space.dtype)),
            "actions": (action_space.shape, np.dtype(action_space.dtype)),
            "rewards": ((), np.dtype(np.float32)),
            "ends": ((), np.dtype(np.uint8)),
            "ages": ((), np.dtype(np.uint8)),
            TASKS: ((), np.dtype(np.int64)),
        }
        if folder:
            self.fields[INDEX] = (), np.dtype(np.int64)
        for name, (_, dtype) in self.fields.items():
            if dtype.kind not in "biuf" or dtype.itemsize > 8:
                raise ValueError(f"{name} cannot be of {dtype}")
        empty = {name: np.empty(0, dtype) for name, (_, dtype) in self.fields.items()}
        self.types = {name: torch.from_numpy(array).dtype for name, array in empty.items()}
        # (N,): number of places ever filled per environment, and steps so far of the running episodes
        self.head = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.age = torch.zeros_like(self.head)
        self.added = self._pending = 0  # steps per environment; places since the last checkpoint
        self.envs = torch.arange(num_envs, device=self.device)
        self._check_room()

    @property
    def size(self) -> int:
        """Size in bytes, slack included."""
        entry = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.fields.values())
        return entry * self.num_envs * self.places

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.interval > 0 and 8 * self._pending >= 7 * self.interval

    def open(self, attempt: Attempt | None = None) -> None:
        """Allocate the tensors, or create or map the files; load a checkpoint's state afterwards.

        Files that an earlier process may still write to, since it has not ended, are copied.

        Args:
            attempt: this process's ownership of the run.

        Raises:
            ValueError: the existing files are damaged or have another layout.
            OSError: the disk space, all of which is allocated now, does not suffice.
        """
        rows = self.num_envs * self.places
        layout = {name: ((rows, *shape), dtype) for name, (shape, dtype) in self.fields.items()}
        if self.folder is None:
            self._tensors = {
                name: torch.zeros(shape, dtype=_stored(self.types[name]), device=self.device)
                for name, (shape, _) in layout.items()
            }
            return
        files = {f"{name}.npy": entry for name, entry in layout.items()}
        exist = (self.folder / f"{INDEX}.npy").exists()
        if not exist:
            _replace(self.folder, functools.partial(_allocate, files), attempt)
        elif attempt is not None and not attempt.is_alone():
            _replace(self.folder, functools.partial(_copy, self.folder), attempt)
        _widen_tasks(self.folder / f"{TASKS}.npy", rows)
        self._files = [_open(self.folder / name, *entry) for name, entry in files.items()]
        tensors = map(torch.from_numpy, self._files)
        self._tensors = {name: tensor.view(_stored(tensor.dtype)) for name, tensor in zip(layout, tensors)}

    def add(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        next_observations: Tensor,
        task: int = 0,
    ) -> None:
        """Add a step of all environments, (N, ...), with the number of its task.

        The next observation of an ended episode is its final one.

        Raises:
            RuntimeError: it would overwrite data that a checkpoint relies on. Nothing was written.
        """
        cut = (truncated & ~terminated).to(self.device)
        if self.interval:
            pending = self._pending + 1 + int(cut.any())
            if pending > self.interval:
                raise RuntimeError(
                    f"the replay memory has room for {self.interval:,} steps of each environment between two "
                    f"checkpoints, not for more"
                )
            self._pending = pending
        at, after = (self._rows(self.envs, place) for place in (self.head, self.head + 1))
        if self.folder:  # first, so that a half-written place never has its old number
            self._write(INDEX, at, self.head + 1)
            self._write(INDEX, after, self.head + 2)
        ends = torch.where(terminated, TERMINATED, CUT * truncated)
        self._write("frames", at, self._frame(observations))
        self._write("frames", after, self._frame(next_observations))
        self._write("actions", at, actions)
        self._write("rewards", at, rewards)
        self._write("ends", at, ends)
        self._write("ends", after, torch.full_like(ends, NO_STEP))
        self._write("ages", at, self.age.clamp(max=self.frame_stack - 1))
        self._write(TASKS, at, torch.full_like(self.head, task))
        self.age.add_(1).masked_fill_((terminated | truncated).to(self.device), 0)
        self.head += 1 + cut
        if not torch.compiler.is_compiling():
            self.count_replay()

    def count_replay(self) -> None:
        """Count a step that was added, see :mod:`neoteny.runners.capture`."""
        self.added += 1

    def cut(self) -> None:
        """Mark the running episodes as truncated, because the environments have started new ones."""
        last = self._rows(self.envs, self.head - 1)
        running = (self.age > 0) & (self._read("ends", last) == GOES_ON)
        self._write("ends", last, self._read("ends", last).masked_fill(running, CUT))
        self.head += running  # their next observations are stored already
        self.age.zero_()
        self._pending += 1

    def sample(
        self,
        batch: int,
        n_step: int = 1,
        gamma: float = 0.99,
        normalize: Callable[[Tensor], Tensor] | None = None,
    ) -> Batch:
        """Transitions of up to ``n_step`` steps, drawn uniformly and with replacement.

        Uses PyTorch's global random generator, whose state is in each checkpoint.

        Args:
            batch: number of transitions, B.
            n_step: most steps of a transition.
            gamma: discount factor.
            normalize: applied to the returns, (B,), if given.

        Raises:
            RuntimeError: there are fewer than ``n_step`` steps per environment.
        """
        longest = n_step if torch.compiler.is_compiling() else min(self.added, self.kept)
        if longest < n_step:
            raise RuntimeError(f"{n_step}-step transitions need more than {longest} steps per environment")
        oldest, end = self.bounds(n_step)
        envs = torch.randint(self.num_envs, (batch,), device=self.device)
        share = torch.rand(batch, dtype=torch.float64, device=self.device)
        places = oldest[envs] + (share * (end - oldest)[envs]).long()
        return self.gather(envs, places, n_step, gamma, normalize)

    def bounds(self, n_step: int = 1) -> tuple[Tensor, Tensor]:
        """First sampled place of each environment, and one past the last, (N,) each."""
        return (self.head - self.kept).clamp(min=0), self.head - n_step + 1

    def gather(
        self,
        envs: Tensor,
        places: Tensor,
        n_step: int = 1,
        gamma: float = 0.99,
        normalize: Callable[[Tensor], Tensor] | None = None,
    ) -> Batch:
        """Transitions that start at these places of these environments, (B,), within :meth:`bounds`."""
        ahead = torch.arange(n_step, device=self.device)
        window = self._rows(envs[:, None], places[:, None] + ahead)
        first, ends = window[:, 0], self._read("ends", window)
        # A step counts if no earlier one of the window ended the episode.
        counts = (ends == GOES_ON).cumprod(1).roll(1, 1)
        counts[:, 0].fill_(1)
        steps = counts.sum(1)
        returns = (self._read("rewards", window) * counts * gamma**ahead).sum(1)
        terminated = (ends * counts == TERMINATED).any(1)
        discounts = (gamma**steps).masked_fill(terminated, 0.0)
        if self.frame_stack == 1:
            observations = self._read("frames", first)
            following = self._read("frames", self._rows(envs, places + steps))
        else:
            ages = self._read("ages", first).long()
            observations = self._stacks(envs, places, ages)
            following = self._stacks(envs, places + steps, ages + steps)
        fields = (
            observations.view(self.types["frames"]),
            self._read("actions", first).view(self.types["actions"]),
            returns,
            discounts,
            following.view(self.types["frames"]),
            (ends[:, 0] != NO_STEP).float(),
        )
        seen, taken, returns, *after = [to_device(field, self.agent_device) for field in fields]
        return Batch(seen, taken, returns if normalize is None else normalize(returns), *after)

    def latest(self, count: int) -> Tensor:
        """About ``count`` observations, the latest of each environment, or all if there are fewer."""
        last = min(-(-count // self.num_envs), self.added, self.kept)
        places = (self.head[:, None] - 1 - torch.arange(last, device=self.device)).flatten()
        return self.gather(self.envs.repeat_interleave(last), places).observations

    def newest(self, steps: int) -> dict[str, Tensor]:
        """Stored frames and rewards of at least the latest ``steps`` steps, if they are not whole numbers.

        All that these steps have added is among them, the observations after the last one too.
        """
        last = min(2 * steps + 1, self.places)  # a truncated episode takes two places for its last step
        # At the head is the observation after the last step, unless an episode has ended there.
        newest = self.head - (self.age == 0).long()
        rows = self._rows(
            self.envs[:, None], newest[:, None] - torch.arange(last, device=self.device)
        ).flatten()
        kinds = {name: self.types[name] for name in ("frames", "rewards")}
        return {name: self._read(name, rows) for name, kind in kinds.items() if kind.is_floating_point}

    def tasks(self) -> dict[int, float]:
        """Share of each task among the steps that can be sampled."""
        oldest, end = self.bounds()
        places = oldest[:, None] + torch.arange(self.kept, device=self.device)
        rows = self._rows(self.envs[:, None], places)
        steps = (places < end[:, None]) & (self._read("ends", rows) != NO_STEP)
        tasks, counts = self._read(TASKS, rows)[steps].unique(return_counts=True)
        return dict(zip(tasks.tolist(), (counts / counts.sum()).tolist()))

    def flush(self) -> None:
        """Sync the files to disk, before a checkpoint relies on them.

        Raises:
            OSError: they could not be written.
        """
        self._pending = 0  # even if this fails: the slack allows for failed checkpoints
        for file in self._files if self.folder else ():
            file.flush()

    def discard(self) -> None:
        """Remove the files of a finished run."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def state_dict(self) -> dict[str, Any]:
        """Positions and layout of the rings; also their contents, unless they are on disk."""
        state = {
            "head": self.head.clone(),
            "age": self.age.clone(),
            "added": self.added,
            "layout": self._layout(),
        }
        if not self.folder:
            used = min(self.places, int(self.head.max()) + 1)
            state["fields"] = {
                name: tensor.unflatten(0, (self.num_envs, self.places))[:, :used].clone()
                for name, tensor in self._tensors.items()
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint; newer places in the files are ignored.

        Raises:
            ValueError: the layout differs, or the files lack places of the checkpoint.
        """
        fields = {**state["layout"]["fields"], TASKS: self._layout()["fields"][TASKS]}  # they had 32 bits
        if {**state["layout"], "fields": fields} != self._layout():
            raise ValueError(f"its layout was {state['layout']} and is {self._layout()}")
        head = state["head"].to(self.device)
        if self.folder:
            counted = self.kept + self.frame_stack - 1
            places = head[:, None] - 1 - torch.arange(counted)
            held = self._read(INDEX, self._rows(self.envs[:, None], places)) == places + 1
            if lost := int((~held & (places >= 0)).sum()):
                counted = int((places >= 0).sum())
                raise ValueError(f"{lost:,} of the checkpoint's {counted:,} places are not in the files")
        else:
            for name, tensor in self._tensors.items():
                saved = state["fields"][name]
                tensor.unflatten(0, (self.num_envs, self.places))[:, : saved.shape[1]] = saved.to(self.device)
        self.head.copy_(head)
        self.age.copy_(state["age"])
        self.added, self._pending = state["added"], 0

    def _layout(self) -> dict[str, Any]:
        fields = {name: f"{dtype.str} {shape}" for name, (shape, dtype) in self.fields.items()}
        return {"num_envs": self.num_envs, "kept": self.kept, "places": self.places, "fields": fields}

    def _check_room(self) -> None:
        """Raise ValueError, before anything is allocated, if memory or disk space does not suffice."""
        if self.folder is None:
            check_memory("the replay memory", self.size, self.device)
        elif not self.folder.exists():  # a resumed run has its space already
            above = next(path for path in self.folder.absolute().parents if path.exists())
            free = shutil.disk_usage(above).free
            if self.size > free:
                raise ValueError(
                    f"the replay memory needs {self.size:,} bytes and {free:,} are free on the disk"
                )

    def _rows(self, envs: Tensor, places: Tensor) -> Tensor:
        """Row numbers of places of environments in the tensors."""
        return envs * self.places + places % self.places

    def _frame(self, observations: Tensor) -> Tensor:
        return observations if self.frame_stack == 1 else observations[:, -1]

    def _write(self, name: str, rows: Tensor, values: Tensor) -> None:
        tensor = self._tensors[name]
        tensor.index_copy_(0, rows, values.to(self.device, self.types[name]).view(tensor.dtype))

    def _read(self, name: str, rows: Tensor) -> Tensor:
        """Entries of a field as they are stored, (*rows.shape, ...)."""
        tensor = self._tensors[name]
        return tensor.index_select(0, rows.flatten()).view(*rows.shape, *tensor.shape[1:])

    def _stacks(self, envs: Tensor, places: Tensor, ages: Tensor) -> Tensor:
        """Stacks of stored frames, (B, stack, ...), at places whose episodes are ``ages`` steps old, (B,)."""
        back = torch.arange(self.frame_stack - 1, -1, -1, device=self.device)
        frames = self._read("frames", self._rows(envs[:, None], places[:, None] - back))
        began = (back <= ages[:, None]).view(*frames.shape[:2], *(1,) * (frames.dim() - 2))
        return frames.mul_(began)  # zeros before the episode's first frame


def _stored(kind: torch.dtype) -> torch.dtype:
    """The type in which numbers of a type are stored."""
    return SIGNED.get(kind, kind)


def _replace(folder: Path, make: Callable[[Path], None], attempt: Attempt | None) -> None:
    """Put a new folder in the place of an old one, if there is one, in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f".{kind}_{uuid.uuid4().hex}") for kind in ("tmp", "old"))
    try:
        new.mkdir()
        make(new)
        with attempt.section() if attempt else contextlib.nullcontext():
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
    finally:
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)


def _allocate(files: Mapping[str, tuple[tuple[int, ...], np.dtype]], folder: Path) -> None:
    """Create files of zeros with allocated disk space, so that a full disk cannot end a run midway."""
    needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in files.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        message = f"the replay memory needs {needed:,} bytes and {free:,} are free"
        raise OSError(errno.ENOSPC, message, str(folder))
    for name, (shape, dtype) in files.items():
        np.lib.format.open_memmap(folder / name, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            with open(folder / name, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _copy(folder: Path, new: Path) -> None:
    """Copy files, and sync the copies to disk."""
    for path in folder.glob("*.npy"):
        shutil.copyfile(path, new / path.name)
        with open(new / path.name, "r+b") as file:
            os.fsync(file.fileno())


def _widen_tasks(path: Path, rows: int) -> None:
    """Give the numbers of tasks 64 bits in a file of 0.2, which has 32."""
    with contextlib.suppress(ValueError, OSError):  # the file is newer, or damaged
        tasks = _open(path, (rows,), np.dtype(np.int32)).astype(np.int64)
        data = io.BytesIO()
        np.save(data, tasks)
        replace_file(path, data.getvalue())


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """Map a file of exactly this layout."""
    if not path.exists():
        raise ValueError(f"{path} is missing")
    with open(path, "rb") as file:
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            found, fortran, kind = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # NumPy's parser raises many types
            raise ValueError(f"{path} is damaged ({error})") from error
        start = file.tell()
    if (found, kind) != (shape, dtype) or fortran:
        raise ValueError(f"{path} holds {kind} {found}, not {dtype} {shape}")
    if path.stat().st_size != start + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path} is damaged: it has {path.stat().st_size:,} bytes")
    return np.memmap(path, dtype, "r+", start, shape)
