"""Runs of several seeds in one process: each in its own folder, as if it were alone, and all at one step.

The runs share the progress bar and the signals, and each has its own random state. They are saved at the
same steps. A run that has values that are not finite ends, and the others go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from neoteny.optim import MethodConfig
from neoteny.runners.console import progress_bar
from neoteny.runners.disk.checkpoint import checkpoints, step_of
from neoteny.runners.disk.exit_codes import ExitCode, Stop, stop
from neoteny.runners.disk.folder import is_finished
from neoteny.runners.disk.preemption import Preemption


def check_together(seeds: Sequence[int], methods: Sequence[MethodConfig]) -> None:
    """Raise ValueError if these seeds cannot be trained together, with these methods."""
    if len(set(seeds)) < len(seeds) or any(not 0 <= seed < 2**63 for seed in seeds):
        raise ValueError(f"--seeds must differ and be at least 0, not {' '.join(map(str, seeds))}")
    if seeds and (alone := [method.name for method in methods if not method.stackable]):
        raise ValueError(f"with {alone[0]} seeds are trained one by one: use --seed")


class Together:
    """What the runs of several seeds share.

    Args:
        seeds: of the runs.
        folders: of the runs, in the order of the seeds.
        overwrite: replace runs that have all finished.

    Attributes:
        step: of the checkpoints from which all go on; 0 if they start from the beginning.
        live: the places of the seeds that are trained. A seed that has finished, or whose values were not
            finite, is left out, unless all are.

    Raises:
        SystemExit: code 2 and one sentence, if all runs have finished and ``overwrite`` is false.
    """

    def __init__(self, seeds: Sequence[int], folders: Sequence[Path], overwrite: bool) -> None:
        self.seeds = seeds
        self.live = [k for k, folder in enumerate(folders) if not is_finished(folder)]
        if not self.live:
            if not overwrite:
                reason = f"{folders[0]} and all others hold finished runs; --overwrite replaces them"
                stop(ExitCode.BAD_INPUT, f"{reason}, --note names others")
            self.live = list(range(len(folders)))
        elif whole := [k for k in self.live if not (folders[k] / "crash").exists()]:
            self.live = whole
        saved = [set(map(step_of, checkpoints(folders[k] / "checkpoint"))) for k in self.live]
        # A finished run is replaced from the beginning.
        is_new = any(is_finished(folders[k]) for k in self.live)
        self.step = 0 if is_new else max(set.intersection(*saved), default=0)
        self.signal: str | None = None
        """The signal that asked to stop before the current update ended."""
        self.broken = False
        self._preemption = Preemption()
        self._random = [self._random_state() for _ in seeds]
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
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._preemption.restore()

    @staticmethod
    def _random_state() -> tuple[Tensor, list[Tensor]]:
        return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    @staticmethod
    def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
        torch.set_rng_state(state[0])
        if state[1]:
            torch.cuda.set_rng_state_all(state[1])
