"""Kill runs in many ways, resume them, and compare them bit for bit with undisturbed runs.

python scripts/faults.py --kills 200
python scripts/faults.py --kills 200 --methods
python scripts/faults.py --kills 5 --only "stopped, overtaken, woken" SIGTERM

Each run is disturbed several times: killed at a random step, while a checkpoint is written, when it starts,
at a switch, at its end or while it holds the lock; stopped, overtaken by another process and woken up;
started three times at once; written to by another process; asked to stop, also when nobody reads its
messages; given a NaN. The worker processes of some runs are killed or stopped too, and the code of some
streams is changed before a resume. At the end weights, optimizer state, random state, episodes, summary,
TensorBoard points and the names of all files must equal those of an undisturbed run with the same arguments,
unless ``meta.json`` says that the run is not exact. The table is printed as Markdown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from neoteny.configs.cli import launch_script
from neoteny.runners.disk import checkpoint
from neoteny.runners.disk.events import event_files
from neoteny.runners.disk.exit_codes import ExitCode
from neoteny.scripts.fault_cases import (
    AGENTS,
    FAULTS,
    FOREIGN,
    IN_WORKERS,
    POISON,
    STOPPED,
    STREAMS,
    TOGETHER,
    UNREAD,
    WORKER_FAULTS,
    Case,
    arguments,
    cases,
    write_code,
)
from neoteny.scripts.fault_outcomes import Outcome, compare, table
from neoteny.scripts.fault_processes import LOCKED, NEVER, PLACES, POINTS, WORKERS, Process
from neoteny.scripts.fault_sweeps import sweep_is_same
from neoteny.scripts.fault_switches import FEWEST, measure_switches

KILLED = -int(signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class Faults:
    """Kill and resume runs in many ways and compare them with undisturbed runs."""

    kills: int = 200
    """Minimum number of kills, over all kinds."""
    agents: tuple[str, ...] = tuple(AGENTS)
    """Agents to run, files in agents/."""
    streams: tuple[str, ...] = tuple(STREAMS)
    """Ids of the streams to run."""
    steps: int = 2048
    """Environment steps of each run."""
    only: tuple[str, ...] = ()
    """Faults of each run, such as "stopped, overtaken, woken"; by default all take turns."""
    methods: bool = False
    """Give each run one of the plasticity methods, and an optimizer of the project's."""
    sweeps: int = 0
    """Also kill so many sweeps, start each again, and compare what its runs leave."""
    switches: int = 0
    """Also measure what so many switches cost."""
    jobs: int = os.cpu_count() or 1
    """Number of runs in parallel."""
    seed: int = 1
    """Seed for the times at which processes are killed."""
    keep: Path | None = None
    """Folder in which to keep the run folders; by default they are temporary."""

    def __post_init__(self) -> None:
        if unknown := set(self.only) - set(FAULTS):
            raise ValueError(f"there is no fault {min(unknown)!r}; there are: {'; '.join(FAULTS)}")
        if self.switches and self.switches < FEWEST:
            raise ValueError(f"--switches must be 0 or at least {FEWEST}, not {self.switches}")


def resume_step(folder: Path) -> int:
    """The step from which a run would resume."""
    state, _ = checkpoint.find_checkpoint(folder / "checkpoint")
    return state["step"] if state else 0


class Torment:
    """A run with its faults, one after the other, until it finishes."""

    def __init__(self, case: Case, runs_dir: Path) -> None:
        self.case, self.rng, self.outcome = case, random.Random(f"{case}"), Outcome(case)
        workers = f"--stream.single.workers {WORKERS}" * (case.stream in IN_WORKERS)
        self.args, self.log = arguments(case, runs_dir, workers), runs_dir / "log.txt"
        self.runs_dir, self.folder = runs_dir, case.folder(self.args)
        self.log.touch()

    def run(self) -> Outcome:
        """Make the run."""
        self._run()
        if "could not be written" in self.log.read_text():
            self.outcome.lost = self.outcome.lost or f"a file could not be written; see {self.log}"
        elif not self.outcome.met:
            self.outcome.lost = self.outcome.lost or "no fault has hit it"
        return self.outcome

    def _run(self) -> None:
        for fault in self.case.faults:
            if (self.folder / "summary.json").exists():
                break
            code, allowed = self._suffer(fault)
            if code not in (0, *allowed):
                self.outcome.lost = f"exit code {code} after {fault}; see {self.log}"
                return
            if code in allowed:
                self._met(fault)
                if code == ExitCode.PREEMPTED and self.outcome.recomputed[-1]:
                    self.outcome.lost = f"it was not saved after {fault}; see {self.log}"
                    return
                self._change_code()
        if not (self.folder / "summary.json").exists() and (code := self._process().wait()) != 0:
            self.outcome.lost = f"exit code {code} after the last resume; see {self.log}"

    def _suffer(self, fault: str) -> tuple[int | None, tuple[int, ...]]:
        """Let a fault happen; returns how the process has ended, and how it may end if it was hit."""
        self.process = None
        if fault == TOGETHER:
            return self._start_together(), (0,)
        if fault == FOREIGN:
            return self._write_to_it(), (ExitCode.IO,)
        if fault.startswith(STOPPED):
            place = fault.removeprefix(STOPPED).strip()
            # Who is stopped while it has the lock must not go on.
            return self._overtake(place), (KILLED,) if place == LOCKED else (ExitCode.TAKEN, KILLED)
        moment = self._moment()
        if fault in POISON:
            self.process = self._process(poison=fault.split()[1])
            self.process.poison_from.value = moment
            return self.process.wait(), (ExitCode.BROKEN,)
        point = fault if fault in POINTS else fault.removeprefix("SIGKILL").strip()
        point = point if point in (*POINTS, *PLACES) else ""
        log = None if fault == UNREAD else self.log
        self.process = self._process(log, point=point, nth=self._nth(point))
        return self._strike(fault, point, moment)

    def _strike(self, fault: str, point: str, moment: int) -> tuple[int | None, tuple[int, ...]]:
        """Kill the process or ask it to stop, and before that lose one of its workers, if it has any."""
        process, terminates = self.process, fault in ("SIGTERM", UNREAD)
        assert process is not None
        if self.case.stream in IN_WORKERS and process.wait(self._moment(moment)) is None:
            loss = self.rng.choice(list(WORKER_FAULTS))
            process.send(WORKER_FAULTS[loss], self.rng.choice(process.workers))
            self._met(loss, 0)
        code = process.wait(NEVER if point else moment)
        if code is None:
            time.sleep(self.rng.uniform(0, 0.06))
            sent = time.perf_counter()
            process.send(signal.SIGTERM if terminates else signal.SIGKILL)
            code = process.wait()
            if terminates and code == ExitCode.PREEMPTED:
                self.outcome.latency.append(time.perf_counter() - sent)
        return code, (int(ExitCode.PREEMPTED) if terminates else KILLED,)

    def _overtake(self, place: str) -> int | None:
        """Stop a process, at a place or a random step, let a newer one go on, and wake the older.

        The older one then meets a NaN, so that whatever it still does is seen. If it was stopped within a
        checkpoint, the newer is at the same place meanwhile. The newer is killed later.

        Returns:
            How the older one has ended.
        """
        older = self._process(point=place, nth=self._nth(place), number=signal.SIGSTOP)
        if not place and older.wait(self._moment()) is None:
            older.send(signal.SIGSTOP)
        if older.wait() is not None:
            return older.code
        within = place if place in POINTS else ""
        self.process = newer = self._process(point=within, nth=1, number=signal.SIGSTOP)
        newer.wait(NEVER if within else self._moment())
        older.poison_from.value = 0
        older.send(signal.SIGCONT)
        code = older.wait()
        newer.send(signal.SIGCONT)
        newer.wait(self._moment())
        newer.send(signal.SIGKILL)
        if newer.wait() not in (0, KILLED):
            return newer.code
        return code

    def _start_together(self) -> int | None:
        """Start three processes at once; returns 0 if one of them finishes and the others are told so."""
        started = [self._process() for _ in range(3)]
        codes = [process.wait() for process in started]
        others = [code for code in codes if code not in (ExitCode.TAKEN, KILLED, ExitCode.BAD_INPUT)]
        return others[0] if len(others) == 1 else 1000 + len(others)

    def _write_to_it(self) -> int | None:
        """Write to a file of a process at its end; returns how it has ended."""
        self.process = process = self._process(point="finish: summary", number=signal.SIGSTOP)
        if process.wait() is None:
            point = Summary(value=[Summary.Value(tag="foreign", simple_value=1.0)])
            path = self.rng.choice((self.folder / "visits.jsonl", event_files(self.folder)[-1]))
            with open(path, "ab") as file:
                RecordWriter(file).write(Event(summary=point).SerializeToString())
            process.send(signal.SIGCONT)
        return process.wait()

    def _process(self, log: Path | bool | None = True, **options: Any) -> Process:
        return Process(self.case, self.args, self.log if log is True else log or None, **options)

    def _nth(self, point: str) -> int:
        """At which time a process is killed or stopped at a point."""
        if point == LOCKED:
            return self.rng.randint(1, 8)
        return self.rng.choice((1, 3)) if point in POINTS else 1

    def _moment(self, before: int = 0) -> int:
        """A random step from where the run resumes to its end, or to an earlier one."""
        end = before or self.case.steps
        return self.rng.randrange(min(resume_step(self.folder), end - 1), end)

    def _met(self, fault: str, recomputed: int | None = None) -> None:
        """Record a fault that has hit a process."""
        if recomputed is None:
            made = self.process.progress.value if self.process else 0
            recomputed = max(0, made - resume_step(self.folder))
        self.outcome.met.append(fault)
        self.outcome.recomputed.append(recomputed)

    def _change_code(self) -> None:
        """Change the code of FaultyCode-v0, once, when there is a checkpoint."""
        changed = "code changed" in self.outcome.met
        if self.case.stream == "FaultyCode-v0" and not changed and resume_step(self.folder):
            write_code(self.runs_dir, pay=2.0)
            self._met("code changed", 0)


def run_case(case: Case, folder: Path) -> Outcome:
    """One case, with the undisturbed run that it is compared with."""
    torch.set_num_threads(1)
    calm, wild = (folder / f"{case.seed}-{name}" for name in ("undisturbed", "killed"))
    for runs_dir in (calm, wild):
        runs_dir.mkdir(parents=True)
        write_code(runs_dir, pay=1.0)
    reference = arguments(case, calm)
    code = Process(case, reference, calm / "log.txt").wait()
    if code != 0:
        return Outcome(case, lost=f"exit code {code} of the undisturbed run; see {calm / 'log.txt'}")
    torment = Torment(case, wild)
    outcome = torment.run()
    if not outcome.lost:
        outcome.exact = json.loads((torment.folder / "meta.json").read_text())["resume_exact"] is True
        outcome.differences = compare(torment.folder, case.folder(reference))
    if not outcome.is_fault:
        shutil.rmtree(calm)
        shutil.rmtree(wild)
    return outcome


@contextlib.contextmanager
def killed_if_interrupted() -> Iterator[None]:
    """If the block is interrupted, kill the processes of the pool and their runs."""
    try:
        yield
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            os.killpg(worker.pid or 0, signal.SIGKILL)
        raise


def main(faults: Faults) -> int:
    """Run cases until there are enough kills, or a run is lost or different.

    Returns:
        1 if a run is lost, or called itself exact and is different; else 0.
    """
    planned = cases(faults.agents, faults.streams, faults.steps, faults.seed, faults.methods, faults.only)
    outcomes, running = list[Outcome](), set[Future[Outcome]]()
    with contextlib.ExitStack() as stack:
        folder = faults.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        context = multiprocessing.get_context("fork")
        # In groups of their own, so that they and their runs can be killed together.
        pool = stack.enter_context(ProcessPoolExecutor(faults.jobs, context, initializer=os.setpgrp))
        stack.enter_context(killed_if_interrupted())
        bar = stack.enter_context(tqdm(total=faults.kills, unit="kill"))
        failed = False
        while running or (bar.n < faults.kills and not failed):
            while len(running) < faults.jobs and bar.n < faults.kills and not failed:
                running.add(pool.submit(run_case, next(planned), folder))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for outcome in (future.result() for future in done):
                outcomes.append(outcome)
                bar.update(len(outcome.met))
                failed |= outcome.is_fault
                if outcome.is_fault:
                    message = f"lost: {outcome.lost or 'no'}, different: {outcome.differences.names[:8]}"
                    bar.write(f"{outcome.case}: {message}")
        if outcomes:
            print(table(outcomes))
        same = [sweep_is_same(seed, folder) for seed in range(1, faults.sweeps + 1)]
        if faults.sweeps:
            print(
                f"{len(same)} sweeps of two runs, each killed three times: {sum(same)} as undisturbed ones."
            )
        if faults.switches:
            sentence, within = measure_switches(faults.switches, folder)
            print(sentence)
            failed |= not within
    return int(failed or not all(same))


if __name__ == "__main__":
    launch_script(main, Faults)
