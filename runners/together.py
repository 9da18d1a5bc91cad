"""Runs of several seeds in one process: each in its own folder, as if it were alone, and all at one step.

The runs share the progress bar and the signals, and each has its own random state. They are saved at the
same steps. A run that has values that are not finite ends, and the others go on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from neoteny.optim import MethodConfig
from neoteny.runners.args import RunArgs
from neoteny.runners.console import progress_bar
from neoteny.runners.disk.exit_codes import ExitCode, Stop, bad_input, stop
from neoteny.runners.disk.files import read_json
from neoteny.runners.disk.folder import is_finished, run_folder
from neoteny.runners.disk.opening import step_to_resume
from neoteny.runners.disk.preemption import Preemption
from neoteny.runners.identity import Identity


def check_together(seeds: Sequence[int], methods: Sequence[MethodConfig]) -> None:
    """Raise ValueError if these seeds cannot be trained together, with these methods."""
    if len(set(seeds)) < len(seeds) or any(not 0 <= seed < 2**63 for seed in seeds):
        raise ValueError(f"--seeds must differ and be at least 0, not {' '.join(map(str, seeds))}")
    if seeds and (alone := [method.name for method in methods if not method.stackable]):
        raise ValueError(f"with {alone[0]} seeds are trained one by one: use --seed")


def live_places(folders: Sequence[Path], overwrite: bool) -> list[int]:
    """The places of the runs to train: unfinished ones, without those that are broken unless all are.

    Raises:
        SystemExit: code 2 and one sentence, if all have finished and ``overwrite`` is false.
    """
    unfinished = [k for k, folder in enumerate(folders) if not is_finished(folder)]
    if unfinished:
        return [k for k in unfinished if not (folders[k] / "crash").exists()] or unfinished
    if not overwrite:
        reason = f"{folders[0]} and all others hold finished runs; --overwrite replaces them"
        stop(ExitCode.BAD_INPUT, f"{reason}, --note names others")
    return list(range(len(folders)))


def common_step(runs: Mapping[Path, Callable[[Mapping[str, Any]], None]], overwrite: bool) -> int:
    """The last step from which all runs can go on, 0 for the beginning; nothing is written.

    Args:
        runs: what raises ValueError if a checkpoint's state belongs to another run, by folder.
        overwrite: replace finished runs.

    Raises:
        SystemExit: code 2 and one sentence, if one of them cannot.
    """
    last = math.inf
    while True:
        steps = [step_to_resume(folder, check, overwrite, last) for folder, check in runs.items()]
        if min(steps) == max(steps):
            return min(steps)
        last = min(steps)


def _check_left_out(folder: Path, identity: Identity) -> None:
    """Raise ValueError if the run in a folder is not one of the command, alone or with other seeds."""
    before = {"methods": {}, **(read_json(folder / "args.json") or {})}
    if is_finished(folder):
        identity.check_finished(folder)
    elif difference := identity.difference(before, but=("seeds",)):
        raise ValueError(f"{folder} holds a run {difference}; --note names others")


class Together:
    """What the runs of several seeds share.

    Args:
        agent_file: file of the agent, or its name.
        of_seeds: arguments of each run, which differ in their seeds.

    Attributes:
        step: of the checkpoints from which all go on; 0 if they start from the beginning.
        live: the places of the seeds that are trained. A seed that has finished, or whose values were not
            finite, is left out, unless all are.

    Raises:
        SystemExit: code 2 and one sentence, before any folder is changed, if one of the runs cannot start or
            go on, or if all have finished and ``overwrite`` is false.
    """

    def __init__(self, agent_file: str, of_seeds: Sequence[RunArgs]) -> None:
        self.seeds = [args.seed for args in of_seeds]
        folders = [run_folder(agent_file, args) for args in of_seeds]
        overwrite = of_seeds[0].overwrite
        self.live = live_places(folders, overwrite)
        identities = [Identity(agent_file, args) for args in of_seeds]
        with bad_input():
            for k in set(range(len(folders))).difference(self.live):
                _check_left_out(folders[k], identities[k])
            runs = {folders[k]: identities[k].check for k in self.live}
            self.step = common_step(runs, overwrite)
        self.signal: str | None = None
        """The signal that asked to stop before the current update ended."""
        self.broken = False
        self._preemption = Preemption()
        self._random = [self._random_state() for _ in of_seeds]
        self._bar: tqdm | None = None

    @contextlib.contextmanager
    def random_state_of(self, k: int) -> Iterator[None]:
        """The random numbers in this block are those of a seed, by its place."""
        before = self._random_state()
        self._set_random_state(self._random[k])
        try:
            yield
        finally:
            self._random[k] = self._random_state()
            self._set_random_state(before)

    def each(self, act: Callable[[int], None], may_draw: bool = True) -> None:
        """Do something for every seed that is trained, by its place.

        A seed that ends because of values that are not finite is left out from now on.

        Args:
            act: what to do.
            may_draw: whether it may draw random numbers, which are then those of the seed.

        Raises:
            SystemExit: another reason to end, after all seeds had their turn; code 70 if none is left.
        """
        ends = []
        for k in list(self.live):
            try:
                with self.random_state_of(k) if may_draw else contextlib.nullcontext():
                    act(k)
            except Stop as end:
                if end.code == ExitCode.BROKEN:
                    self.live.remove(k)
                    self.broken = True
                else:
                    ends.append(end)
        if ends:
            raise ends[0]
        if not self.live:
            self.end()

    def end(self) -> None:
        """End with code 70 if the values of a seed were not finite."""
        if self.broken:
            raise Stop(int(ExitCode.BROKEN))

    def begin_saving(self) -> None:
        """Decide whether an update is the last, since a signal may come while the runs are saved."""
        self.signal = self._preemption.signal

    def bar(self, description: str, total_steps: int, step: int) -> tqdm:
        """The progress bar of all runs."""
        if self._bar is None:
            self._bar = progress_bar(description, total_steps, step)
        return self._bar

    def is_first(self, seed: int) -> bool:
        """Whether a seed is the first of those that are trained, whose run says what runs."""
        return seed == self.seeds[self.live[0]]

    def __enter__(self) -> Together:
        # The moments of dead units decay to numbers below 1e-38, with which processors are slow: without this
        # a step of dead networks takes four times as long, or more.
        torch.set_flush_denormal(True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._preemption.restore()
        torch.set_flush_denormal(False)

    @staticmethod
    def _random_state() -> tuple[Tensor, list[Tensor]]:
        return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    @staticmethod
    def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
        torch.set_rng_state(state[0])
        if state[1]:
            torch.cuda.set_rng_state_all(state[1])
