"""Streams of supervised tasks: one dataset, changed anew in each task.

A *task* is a pure function of a dataset, the task's number and the run's seed. A :class:`SupervisedStream`
goes through the samples of the current task in minibatches, in a new random order in each epoch, and switches
the task after a number of epochs. A step is a sample, so that a period means the same with every batch size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from neoteny.envs.audit import DIGITS, Fingerprint
from neoteny.envs.auditor import LET_THROUGH, AuditMode
from neoteny.envs.datasets import DATASETS, INPUT_BITS, Dataset, TargetNetwork, random_bits
from neoteny.envs.registry import imported, task_rng
from neoteny.envs.schedule import Order, Schedule
from neoteny.envs.typed import Typed

FLIPPING = 15
"""Bits of an input that are the same in all samples of a task of slowly changing regression."""

SupervisedTask: TypeAlias = Callable[[Dataset, int, int], Dataset]
"""Makes task ``k`` from a dataset, ``k`` and the run's seed."""


class Batch(NamedTuple):
    """Samples to learn from, (B, ...)."""

    observations: Tensor
    targets: Tensor


def permuted_pixels(data: Dataset, k: int, seed: int) -> Dataset:
    """All numbers of an input, pixels and channels, in an order of the task's own."""
    order = torch.from_numpy(task_rng(seed, k).permutation(data.inputs[0].numel()))

    def permute(inputs: Tensor) -> Tensor:
        return inputs.flatten(1)[:, order].view_as(inputs)

    return data._replace(inputs=permute(data.inputs), validation_inputs=permute(data.validation_inputs))


def _classes(data: Dataset) -> int:
    """The number of classes.

    Raises:
        ValueError: targets are values.
    """
    if data.is_regression:
        raise ValueError("this --stream.change is of classes, and the targets of --stream.data are values")
    return data.outputs


def random_labels(data: Dataset, k: int, seed: int) -> Dataset:
    """A class for each sample that says nothing about it, to be memorized; there is nothing to validate."""
    labels = torch.from_numpy(task_rng(seed, k).integers(_classes(data), size=len(data.targets)))
    return data._replace(targets=labels, validation_inputs=data.inputs[:0], validation_targets=labels[:0])


def shuffled_labels(data: Dataset, k: int, seed: int) -> Dataset:
    """The classes under other numbers: one permutation for all samples."""
    numbers = torch.from_numpy(task_rng(seed, k).permutation(_classes(data)))
    return data._replace(targets=numbers[data.targets], validation_targets=numbers[data.validation_targets])


def noisy_labels(data: Dataset, k: int, seed: int) -> Dataset:
    """A random class in place of its own for half of the samples, which differ from task to task."""
    rng = task_rng(seed, k)
    labels = torch.from_numpy(rng.integers(_classes(data), size=len(data.targets)))
    noisy = torch.from_numpy(rng.random(len(labels)) < 0.5)
    return data._replace(targets=torch.where(noisy, labels, data.targets))


def new_classes(data: Dataset, k: int, seed: int) -> Dataset:
    """A twentieth of the classes, at least one, in the first task, and as many more in each later one."""
    order = torch.from_numpy(task_rng(seed, 0).permutation(_classes(data)))
    seen = order[: (k + 1) * max(1, data.outputs // 20)]
    chosen, validated = (torch.isin(targets, seen) for targets in (data.targets, data.validation_targets))
    return data._replace(
        inputs=data.inputs[chosen], targets=data.targets[chosen],
        validation_inputs=data.validation_inputs[validated],
        validation_targets=data.validation_targets[validated],
    )  # fmt: skip


def flipping_bits(data: Dataset, k: int, seed: int) -> Dataset:
    """Slowly changing regression: 15 input bits stay the same in a task, and one of them flips in the next.

    The others are drawn anew for each sample. The targets are those of one network in all tasks. (S. Dohare
    et al., "Loss of plasticity in deep continual learning", Nature 632, 2024, methods.)
    """
    if data.inputs.shape[1:] != (INPUT_BITS,):
        raise ValueError("--stream.change flipping-bits is for --stream.data bits")
    rng = task_rng(seed, 0)
    target_network, begin = TargetNetwork(INPUT_BITS, rng), random_bits((1, FLIPPING), rng)
    flips = np.bincount(rng.integers(FLIPPING, size=k), minlength=FLIPPING) % 2
    fixed, of_samples = (begin - torch.from_numpy(flips)).abs(), task_rng(seed, k + 1)

    def draw(count: int) -> Tensor:
        others = random_bits((count, INPUT_BITS - FLIPPING), of_samples)
        return torch.cat((fixed.expand(count, -1), others), 1)

    inputs, validation_inputs = (draw(len(targets)) for targets in (data.targets, data.validation_targets))
    return data._replace(
        inputs=inputs, targets=target_network(inputs),
        validation_inputs=validation_inputs, validation_targets=target_network(validation_inputs),
    )  # fmt: skip


TASKS: dict[str, SupervisedTask] = {
    function.__name__.replace("_", "-"): function
    for function in (
        permuted_pixels,
        random_labels,
        shuffled_labels,
        noisy_labels,
        new_classes,
        flipping_bits,
    )
}
"""Kinds of tasks, by name."""


class SupervisedStream:
    """Minibatches of supervised tasks.

    Everything is a function of the seed and the step: the task, its samples, and their order.

    Args:
        dataset: the samples of all tasks.
        task: what changes from task to task.
        schedule: its period is replaced by ``epochs``.
        epochs: passes over the samples in each visit to a task.
        batch_size: B. What is left of an epoch after whole minibatches is left out.
        samples: drawn anew in each task from its training samples; None for all of them.
        seed: the run's seed.
        device: of the samples.
        audit: refuse tasks that do not differ from the task before ("on"), warn of them, or do not compare.

    Raises:
        ValueError: there are fewer samples than a minibatch or than ``samples``; or the audit is on and the
            first two tasks are the same.
    """

    def __init__(
        self,
        dataset: Dataset,
        task: SupervisedTask,
        schedule: Schedule,
        epochs: int,
        batch_size: int,
        samples: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        audit: AuditMode = "on",
    ) -> None:
        self.dataset, self.make_task = dataset, task
        self.batch_size, self.samples, self.seed, self.device = batch_size, samples, seed, device
        self.audit, self.audit_seconds = audit, 0.0
        size = len(self._sampled(schedule.task_of(0)).targets)
        if size < batch_size:
            raise ValueError(f"a task has {size} samples, fewer than a minibatch of {batch_size}")
        self.batches = size // batch_size
        """Minibatches of an epoch."""
        self.epoch_steps = self.batches * batch_size
        """Samples of an epoch."""
        self.schedule = dataclasses.replace(schedule, period=epochs * self.epoch_steps, seed=seed)
        self.steps = 0
        """Samples so far."""
        self._compare_first()
        self._enter(0)

    def __str__(self) -> str:
        """Describe the schedule and the samples, with a warning if the files are not the published ones."""
        shape = "x".join(map(str, self.dataset.inputs.shape[1:]))
        size = f"{self.epoch_steps:,} samples of {shape} in {self.batches:,} minibatches an epoch"
        return "\n".join(filter(None, (f"{self.schedule}; {size}", self.dataset.remark)))

    @property
    def task(self) -> int:
        """The current task."""
        return self.schedule.task_at(self.steps)

    @property
    def visit_ends(self) -> bool:
        """Whether the current epoch is the last of its visit."""
        return self.schedule.visit_at(self.steps + self.epoch_steps) != self.schedule.visit_at(self.steps)

    def begin_epoch(self) -> dict[str, Any]:
        """Switch the task if it is time to; returns what :meth:`Run.record_episodes` takes as ``info``."""
        visit, old = self.schedule.visit_at(self.steps), self.fingerprint
        about: dict[str, Any] = {"task": self.task, "fingerprint": self.fingerprint}
        if visit != self._entered:
            self._enter(visit)
            about["fingerprint"] = self.fingerprint
            if self.audit != "off" and self.fingerprint.same_as(old):
                about["audit"] = f"the switch changed nothing: task {self.task} is the task before"
        return about

    def epoch(self) -> Iterator[Tensor]:
        """The numbers (B,) of the samples of each minibatch of the current epoch; counts them."""
        place = self.steps // self.epoch_steps
        order = np.random.default_rng([self.seed, place]).permutation(len(self.data.targets))
        numbers = torch.from_numpy(order[: self.epoch_steps]).to(self.device)
        for chosen in numbers.view(self.batches, self.batch_size):
            self.steps += self.batch_size
            yield chosen

    def next_data(self) -> Batch:
        """The training samples of the task after the current one."""
        data = self._sampled(self.schedule.task_of(self._entered + 1))
        return Batch(data.inputs.to(self.device), data.targets.to(self.device))

    def variant(self) -> int:
        """What distinguishes the kernels of a minibatch: where the samples of the visit are."""
        return self._entered

    def misfit_before(self, step: int) -> str:
        """Nothing: all tasks have the same shapes."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """The state: the number of samples so far, and the fingerprint of the current task."""
        return {"steps": self.steps, "fingerprint": self.fingerprint.rollout}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after an epoch.

        Raises:
            ValueError: the samples are not those of the state.
        """
        self.steps = state["steps"]
        self._enter(self.schedule.visit_at(max(0, self.steps - 1)))
        if self.fingerprint.rollout != state["fingerprint"]:
            raise ValueError(f"the samples of task {self.schedule.task_of(self._entered)} have changed")

    def _enter(self, visit: int) -> None:
        """Move the samples of a visit's task to the device."""
        k, started = self.schedule.task_of(visit), time.perf_counter()
        data = self._sampled(k)
        if len(data.targets) // self.batch_size != self.batches:
            raise ValueError(
                f"task {k} has {len(data.targets)} samples, not as many as the first: --stream.samples draws "
                "as many in each"
            )
        self._entered, self.fingerprint = visit, _fingerprint(data)
        self.data = Batch(data.inputs.to(self.device), data.targets.to(self.device))
        validation = (data.validation_inputs, data.validation_targets)
        self.validation = Batch(*(values.to(self.device) for values in validation))
        self.audit_seconds += time.perf_counter() - started

    def _sampled(self, k: int) -> Dataset:
        """Task ``k``, on the CPU, with its share of samples."""
        data = self.make_task(self.dataset, k, self.seed)
        if self.samples is None:
            return data
        if len(data.targets) < self.samples:
            raise ValueError(
                f"task {k} has {len(data.targets)} samples, fewer than --stream.samples {self.samples}"
            )
        rng = np.random.default_rng([self.seed, k, 1])
        chosen = torch.from_numpy(rng.permutation(len(data.targets))[: self.samples])
        return data._replace(inputs=data.inputs[chosen], targets=data.targets[chosen])

    def _compare_first(self) -> None:
        first, second = self.schedule.task_of(0), self.schedule.task_of(1)
        if self.audit != "on" or first == second:
            return
        if _fingerprint(self._sampled(first)).same_as(_fingerprint(self._sampled(second))):
            raise ValueError(f"the switch changed nothing: task {second} is task {first}; {LET_THROUGH}")


def minibatches_of(streams: Mapping[int, SupervisedStream], count: int) -> Iterator[Batch]:
    """The minibatches of an epoch of several seeds, (K, B, ...).

    Args:
        streams: by the place of their seed, from 0 to K - 1.
        count: K; places without a stream, whose seeds have ended, get the minibatches of the first.
    """
    orders = {k: torch.stack(list(stream.epoch())) for k, stream in streams.items()}
    first = next(iter(streams))
    for part in range(0, len(orders[first]), AT_ONCE):
        rows = {k: order[part : part + AT_ONCE] for k, order in orders.items()}
        chosen = {
            k: [field.index_select(0, rows[k].flatten()).unflatten(0, rows[k].shape) for field in stream.data]
            for k, stream in streams.items()
        }
        fields = zip(*(chosen.get(k, chosen[first]) for k in range(count)))
        yield from map(Batch, *(torch.stack(field, dim=1) for field in fields))


AT_ONCE = 32
"""Minibatches that are copied to where they are read in one operation."""


@dataclasses.dataclass(frozen=True)
class SupervisedStreamConfig:
    """Which supervised tasks the network learns."""

    data: Typed = "digits"
    """Dataset: digits, mnist1d, mnist, cifar10, cifar100, bits (a regression), or module:function(folder) of
    your own."""
    change: Typed = "random-labels"
    """What changes from task to task: permuted-pixels, random-labels, shuffled-labels, noisy-labels,
    new-classes, flipping-bits, or module:function(dataset, k, seed) of your own."""
    folder: Path = Path("data")
    """Folder with the files of mnist, cifar10 and cifar100."""
    samples: int | None = None
    """Training samples of a task, drawn anew in each (default: all)."""
    epochs: int = 15
    """Passes over the samples of each task."""
    tasks: tuple[int, ...] | None = None
    """Numbers of recurring tasks, visited in cycles in this order (default: each task is new)."""
    order: Order = "cycle"
    """Order of recurring tasks: the same in every cycle, or drawn anew for each."""
    audit: AuditMode = dataclasses.field(default="on", metadata={"resumable": True})
    """Check that tasks differ: refuse a second task that is the first, only warn, or do not check."""

    @property
    def id(self) -> str:
        """The name of the stream."""
        return "-".join(name.rpartition(":")[2] for name in (self.data, self.change))

    @property
    def wrap(self) -> None:
        """No wrapper."""

    def check(self) -> None:
        """Raise ValueError for an unknown name or a number out of range, before data are read."""
        _named(self.data, DATASETS, "data")
        _named(self.change, TASKS, "change")
        if self.epochs < 1 or (self.samples is not None and self.samples < 1):
            raise ValueError("--stream.epochs and --stream.samples must be at least 1")
        self.schedule()

    def schedule(self) -> Schedule:
        """Which task each visit is to; the period is one visit, as its samples are not known before data are.

        Raises:
            ValueError: a task is no number from 0 on, or there is none.
        """
        return Schedule(period=1, tasks=self.tasks, order="cycle" if self.tasks is None else self.order)

    def unused(self) -> dict[str, str]:
        """Flags that have no effect -> why."""
        return {"order": "tasks never recur without --stream.tasks"} if self.tasks is None else {}

    def make(self, batch_size: int, seed: int, device: torch.device | str = "cpu") -> SupervisedStream:
        """The stream.

        Raises:
            ValueError: a name is unknown, a file is missing, or the tasks do not fit, see the stream.
        """
        dataset = _named(self.data, DATASETS, "data")(self.folder)
        task = _named(self.change, TASKS, "change")
        return SupervisedStream(
            dataset, task, self.schedule(), self.epochs, batch_size, self.samples, seed, device, self.audit
        )


def _fingerprint(data: Dataset) -> Fingerprint:
    """A hash of the training targets of a task, and of 256 of its inputs."""
    digest = hashlib.blake2b(digest_size=DIGITS // 2)
    for values in (data.targets, data.inputs[:: max(1, len(data.inputs) // 256)]):
        digest.update(values.contiguous().numpy().tobytes())
    return Fingerprint(f"inputs {tuple(data.inputs.shape)}", {}, digest.hexdigest())


def _named(name: str, known: dict[str, Any], flag: str) -> Any:
    """The function with a name, or the user's own ``module:function``."""
    if ":" in name:
        return imported(name)
    if name not in known:
        raise ValueError(f"--stream.{flag} must be {', '.join(known)} or module:function, not {name!r}")
    return known[name]
