"""Kill runs in many ways, resume them, and compare them bit for bit with undisturbed runs.

python scripts/faults.py --kills 200
python scripts/faults.py --kills 200 --methods

Each run is disturbed several times: killed at a random step, while a checkpoint is written, when it starts,
at a switch or at its end; stopped, overtaken by another process and woken up; started three times at once;
asked to stop, also when nobody reads its messages; given a NaN. The worker processes of some runs are killed
or stopped too, and the code of some streams is changed before a resume. At the end weights, optimizer state,
random state, episodes and TensorBoard points must equal those of an undisturbed run with the same arguments,
unless ``meta.json`` says that the run is not exact. The table is printed as Markdown.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tqdm import tqdm

from neoteny.configs.cli import launch_script
from neoteny.runners.disk import checkpoint
from neoteny.runners.disk.events import event_files
from neoteny.runners.disk.exit_codes import ExitCode
from neoteny.scripts.fault_cases import (
    AGENTS,
    CHECKPOINTS,
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
from neoteny.scripts.fault_processes import PLACES, POINTS, WORKERS, Process
from neoteny.scripts.fault_sweeps import sweep_is_same
from neoteny.scripts.fault_switches import measure_switches

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


@dataclasses.dataclass
class Outcome:
    """The result of a case."""

    case: Case
    met: list[str] = dataclasses.field(default_factory=list)
    """Faults that hit a living process."""
    recomputed: list[int] = dataclasses.field(default_factory=list)
    """Steps that were repeated after each fault."""
    latency: list[float] = dataclasses.field(default_factory=list)
    """Seconds from each SIGTERM to the end of the process."""
    lost: str = ""
    exact: bool = True
    """Whether the run called itself exact."""
    different: list[str] = dataclasses.field(default_factory=list)
    duplicated: int = 0
    missing: int = 0


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

    def run(self) -> Outcome:
        """Make the run."""
        for fault in self.case.faults:
            if (self.folder / "summary.json").exists():
                break
            code, allowed = self._suffer(fault)
            if code not in (0, *allowed):
                self.outcome.lost = f"exit code {code} after {fault}; see {self.log}"
                return self.outcome
            if code in allowed:
                self._met(fault)
                self._change_code()
        if not (self.folder / "summary.json").exists() and (code := self._process().wait()) != 0:
            self.outcome.lost = f"exit code {code} after the last resume; see {self.log}"
        return self.outcome

    def _suffer(self, fault: str) -> tuple[int | None, tuple[int, ...]]:
        """Let a fault happen; returns how the process has ended, and how it may end if it was hit."""
        self.process = None
        if fault == TOGETHER:
            return self._start_together(), (0,)
        if fault.startswith(STOPPED):
            return self._overtake(fault.removeprefix(STOPPED).strip()), (ExitCode.TAKEN, KILLED)
        moment = self._moment()
        if fault in POISON:
            self.process = self._process(poison=(fault.split()[1], moment))
            return self.process.wait(), (ExitCode.BROKEN,)
        point = fault if fault in POINTS else fault.removeprefix("SIGKILL").strip()
        point = point if point in (*POINTS, *PLACES) else ""
        nth = self.rng.choice((1, 3)) if point in POINTS else 1
        self.process = self._process(log=None if fault == UNREAD else self.log, point=point, nth=nth)
        return self._strike(fault, point, moment)

    def _strike(self, fault: str, point: str, moment: int) -> tuple[int | None, tuple[int, ...]]:
        """Kill the process or ask it to stop, and before that lose one of its workers, if it has any."""
        process, terminates = self.process, fault in ("SIGTERM", UNREAD)
        assert process is not None
        if self.case.stream in IN_WORKERS and process.wait(self._moment(moment)) is None:
            loss = self.rng.choice(list(WORKER_FAULTS))
            process.send(WORKER_FAULTS[loss], self.rng.choice(process.workers))
            self._met(loss, 0)
        code = process.wait(2**62 if point else moment)
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

        Returns how the older one has ended. The newer is killed.
        """
        older = self._process(point=place, number=signal.SIGSTOP)
        if not place and older.wait(self._moment()) is None:
            older.send(signal.SIGSTOP)
        if older.wait() is not None:
            return older.code
        self.process = newer = self._process()
        newer.wait(self._moment())
        older.send(signal.SIGCONT)
        code = older.wait()
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

    def _process(self, log: Path | bool | None = True, **options: Any) -> Process:
        return Process(self.case, self.args, self.log if log is True else log or None, **options)

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


def compare(folder: Path, reference: Path, outcome: Outcome) -> None:
    """Record all differences between two finished runs in the outcome."""
    outcome.exact = json.loads((folder / "meta.json").read_text())["resume_exact"] is True
    ours, theirs = (dict(contents(path)) for path in (folder, reference))
    outcome.different = sorted(name for name in ours.keys() | theirs if ours.get(name) != theirs.get(name))
    points, expected = (collections.Counter(all_points(path)) for path in (folder, reference))
    counts, known = (
        collections.Counter((tag, step) for tag, step, _ in c.elements()) for c in (points, expected)
    )
    outcome.duplicated = (counts - known).total()
    outcome.missing = (known - counts).total()
    outcome.different += sorted({tag for tag, *_ in (points - expected) + (expected - points)})


def compare_folders(folder: Path, reference: Path) -> bool:
    """Whether two finished runs are the same."""
    outcome = Outcome(None)  # type: ignore[arg-type]
    compare(folder, reference, outcome)
    return not (outcome.different or outcome.duplicated or outcome.missing)


def contents(folder: Path) -> Iterator[tuple[str, Any]]:
    """The contents of a finished run, except for times: name -> bytes or number."""
    yield "weights", (folder / "checkpoint" / "weights.safetensors").read_bytes()
    yield "visits.jsonl", (folder / "visits.jsonl").read_bytes()
    state = checkpoint.load_checkpoint(folder / "checkpoint")
    assert state is not None
    names = ("step", "update", "parts", "rng", "visit", "visits_size", "event_counts")
    yield from leaves({name: state[name] for name in names}, "state")
    if (folder / "replay").exists():
        memory = state["parts"]["memory"]
        kept, places = memory["layout"]["kept"], memory["layout"]["places"]
        rows = [
            env * places + np.arange(max(0, head - kept), head) % places
            for env, head in enumerate(memory["head"].tolist())
        ]
        for path in sorted((folder / "replay").glob("*.npy")):
            yield f"replay/{path.name}", np.load(path, mmap_mode="r")[np.concatenate(rows)].tobytes()


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The leaves of a state, by their paths."""
    if isinstance(tree, dict | list | tuple):
        for key, item in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if key != "audit_seconds" and not str(key).startswith("time/"):
                yield from leaves(item, f"{path}/{key}")
    elif isinstance(tree, torch.Tensor | np.ndarray):
        yield path, (str(tree.dtype), tuple(tree.shape), np.asarray(tree).tobytes())
    else:
        yield path, repr(tree)


def all_points(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    """Every point in the event files, superseded ones included, but for times: tag, step, value."""
    for path in event_files(folder):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                tag = value.tag
                if not tag.startswith(("time/", "_hparams_")) and tag != "charts/SPS":
                    yield tag, event.step, value.tensor.SerializeToString(deterministic=True)


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
        compare(torment.folder, case.folder(reference), outcome)
    if not (outcome.lost or (outcome.exact and outcome.different)):
        shutil.rmtree(calm)
        shutil.rmtree(wild)
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """The results as a Markdown table."""
    kinds: dict[str, Callable[[str], bool]] = {
        "SIGKILL at a random step": lambda fault: fault == "SIGKILL",
        "SIGKILL while a checkpoint is written": lambda fault: fault in POINTS,
        "SIGKILL at the start": lambda fault: fault.startswith("SIGKILL start"),
        "SIGKILL at a switch and in its audit": lambda fault: fault.startswith("SIGKILL switch"),
        "SIGKILL at the end and in its pictures": lambda fault: fault.startswith("SIGKILL finish"),
        "SIGTERM": lambda fault: fault == "SIGTERM",
        UNREAD: lambda fault: fault == UNREAD,
        f"{STOPPED} at a random step": lambda fault: fault == STOPPED,
        f"{STOPPED} at the start": lambda fault: fault.startswith(f"{STOPPED} start"),
        f"{STOPPED} at a switch": lambda fault: fault.startswith(f"{STOPPED} switch"),
        f"{STOPPED} at the end": lambda fault: fault.startswith(f"{STOPPED} finish"),
        TOGETHER: lambda fault: fault == TOGETHER,
        "NaN in rewards or observations": lambda fault: fault in POISON,
        "SIGKILL of an environment's worker": lambda fault: fault == "worker killed",
        "SIGSTOP of an environment's worker": lambda fault: fault == "worker stopped",
        "code changed before a resume": lambda fault: fault == "code changed",
    }
    rows = [["fault", "times", "repeated steps: median, max", "seconds to save and exit: median, max"]]
    for name, of_kind in kinds.items():
        again = [
            steps
            for outcome in outcomes
            for fault, steps in zip(outcome.met, outcome.recomputed)
            if of_kind(fault)
        ]
        latency = (
            [seconds for outcome in outcomes for seconds in outcome.latency] if name == "SIGTERM" else []
        )
        rows.append(
            [
                name,
                str(len(again)),
                f"{statistics.median(again):.0f}, {max(again)}" if again else "-",
                f"{statistics.median(latency):.2f}, {max(latency):.2f}" if latency else "-",
            ]
        )
    rows.insert(1, ["---"] * len(rows[0]))
    lost = sum(bool(outcome.lost) for outcome in outcomes)
    exact = [outcome for outcome in outcomes if outcome.exact]
    different = sum(bool(outcome.different) for outcome in exact)
    others = [outcome for outcome in outcomes if not outcome.exact]
    total = sum(len(outcome.met) for outcome in outcomes)
    names = " and ".join(sorted({outcome.case.agent.upper() for outcome in outcomes}))
    streams, steps = len({outcome.case.stream for outcome in outcomes}), outcomes[0].case.steps
    methods = len({outcome.case.method for outcome in outcomes} - {""})
    with_methods = f" with {methods} methods" if methods else ""
    return "\n".join(
        [
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"{total} faults in {len(outcomes)} runs of {names} over {streams} streams{with_methods}: "
            f"runs lost {lost}, runs different {different}, points duplicated "
            f"{sum(o.duplicated for o in exact)}, points missing {sum(o.missing for o in exact)}. "
            f"Not counted as different are {len(others)} runs that said they were not exact; "
            f"{sum(bool(o.different) for o in others)} of them were different. A run has {steps:,} steps "
            f"and a checkpoint every {steps // CHECKPOINTS}.",
        ]
    )


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
    """Run cases until there are enough kills or a run is lost.

    Returns:
        1 if a run is lost, or called itself exact and is different; else 0.
    """
    planned = cases(faults.agents, faults.streams, faults.steps, faults.seed, faults.methods)
    outcomes, running = list[Outcome](), set[Future[Outcome]]()
    with contextlib.ExitStack() as stack:
        folder = faults.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        context = multiprocessing.get_context("fork")
        # In groups of their own, so that they and their runs can be killed together.
        pool = stack.enter_context(ProcessPoolExecutor(faults.jobs, context, initializer=os.setpgrp))
        stack.enter_context(killed_if_interrupted())
        bar = stack.enter_context(tqdm(total=faults.kills, unit="kill"))
        lost = 0
        while running or (bar.n < faults.kills and not lost):
            while len(running) < faults.jobs and bar.n < faults.kills and not lost:
                running.add(pool.submit(run_case, next(planned), folder))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for outcome in (future.result() for future in done):
                outcomes.append(outcome)
                bar.update(len(outcome.met))
                lost += bool(outcome.lost)
                if outcome.lost or (outcome.exact and outcome.different):
                    message = f"lost: {outcome.lost or 'no'}, different: {outcome.different[:8]}"
                    bar.write(f"{outcome.case}: {message}")
        if outcomes:
            print(table(outcomes))
        failed = any(outcome.lost or (outcome.exact and outcome.different) for outcome in outcomes)
        same = [sweep_is_same(seed, folder, compare_folders) for seed in range(1, faults.sweeps + 1)]
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
