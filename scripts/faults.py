"""Kill runs in every way, let them go on, and compare them bit for bit with runs that were left in peace.

python scripts/faults.py --kills 200

Each run is killed several times: by SIGKILL at a random step, by SIGKILL inside the writer of checkpoints, by
SIGTERM; the workers that some runs have are killed or stopped too. What a run has become at the end (weights,
optimizer, random numbers, episodes, every TensorBoard point) must be what an undisturbed run of the same
arguments has. The table is printed as Markdown.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tqdm import tqdm

from neoteny.configs.cli import cli, launch_script
from neoteny.envs import stream, wrappers
from neoteny.envs.single import workers
from neoteny.envs.single.workers import ProcessEnvs, Worker
from neoteny.runners import run
from neoteny.runners.disk import checkpoint
from neoteny.runners.disk.checkpoint import MANIFEST, STATE, TENSORS
from neoteny.runners.disk.events import event_files
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.replay import ReplayMemory

TOTAL, INTERVAL = 2048, 256  # steps of a run, and between checkpoints

# Steps of the writer of checkpoints at which a process is killed.
POINTS = (
    "begin", "inside tensors", "inside state", "before manifest", "inside manifest", "before rename",
    "after rename", "inside pruning",
)  # fmt: skip


@stream("FaultyWrappers-v0", period=700, tasks=3)
def faulty_wrappers(k: int, seed: int) -> gym.Env:
    """CartPole with everything that draws or remembers: drifting gravity, noise, failing actions."""
    env = gym.make("CartPole-v1", disable_env_checker=True)
    rules = {"gravity": wrappers.RandomWalk(0.05)}
    env = wrappers.drift(env, rules, seed=(seed, k))
    env = wrappers.noisy_observations(env, 0.01 * (k + 1), seed=seed)
    return wrappers.fail_actions(env, 0.1 * (k + 1), seed=seed)


# Their sub-environments live in workers, which are killed and stopped too; not so in the undisturbed run.
IN_WORKERS = {"acrobot-jumps", "grid-goals"}
WORKERS = 2
WORKER_FAULTS = {"worker killed": signal.SIGKILL, "worker stopped": signal.SIGSTOP}

# What is killed: streams, agents, and the flags that go with them.
STREAMS = {
    "cartpole-rotations": "",
    "cartpole-drift": "--stream.normalizer keep",
    "acrobot-jumps": "--stream.normalizer reset --stream.jitter 0.5",
    "mountaincar-drift": "",
    "FaultyWrappers-v0": "--stream.task-id onehot --stream.order random",
    "grid-layouts": "--stream.order random --stream.jitter 0.5",
    "grid-goals": "--stream.engine single",
    "grid-resampled-crossings": "",
    "grid-permuted-actions": "--network.activation maxmin",
    "atari": "--stream.games Breakout Pong",
}
AGENTS = {
    "ppo": "--num-steps 32 --epochs 2 --minibatches 2",
    "dqn": "--log-every 128 --train-every 16 --learning-starts 128 --batch-size 16 --buffer-size 1000 "
    "--n-step 3 --eps-steps 1000",
}
BOTH = {
    ("ppo", "mountaincar-drift"): "--anneal-lr",
    ("ppo", "grid-goals"): "--shared-torso",
    ("dqn", "grid-goals"): "--dueling --no-double",
    ("dqn", "cartpole-rotations"): "--eps-restart",
}
OPTIMIZERS = ("adamo", "adam", "muon", "adamw")


@dataclasses.dataclass(frozen=True)
class Faults:
    """Kill runs in every way and compare what becomes of them."""

    kills: int = 200
    """Kills of every kind, at least, in all."""
    agents: tuple[str, ...] = tuple(AGENTS)
    """Files in agents/."""
    streams: tuple[str, ...] = tuple(STREAMS)
    """Ids of streams."""
    jobs: int = os.cpu_count() or 1
    """Runs at a time."""
    seed: int = 1
    """Of the moments at which processes are killed."""
    keep: Path | None = None
    """Where to keep the run folders."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A run and the faults that it meets, one after the other."""

    agent: str
    stream: str
    optimizer: str
    seed: int
    faults: tuple[str, ...]


@dataclasses.dataclass
class Outcome:
    """What became of a case."""

    case: Case
    met: list[str] = dataclasses.field(default_factory=list)
    """Faults that hit a living process."""
    recomputed: list[int] = dataclasses.field(default_factory=list)
    """Steps that had to be made again, for each fault."""
    latency: list[float] = dataclasses.field(default_factory=list)
    """Seconds from each SIGTERM to the end of the process."""
    lost: str = ""
    different: list[str] = dataclasses.field(default_factory=list)
    duplicated: int = 0
    missing: int = 0


def arguments(case: Case, runs_dir: Path, more: str = "") -> Any:
    """A short run with many switches, checkpoints and probes."""
    module = importlib.import_module(f"neoteny.agents.{case.agent}")
    words = (
        f"--stream.id {case.stream} optim:{case.optimizer} --seed {case.seed} --runs-dir {runs_dir} "
        f"--total-steps {TOTAL} --checkpoint-every {INTERVAL} --num-envs 4 --probes.every 5 "
        f"--network.hidden 32 32 --stream.period 700 {AGENTS[case.agent]} {STREAMS.get(case.stream, '')} "
        f"{BOTH.get((case.agent, case.stream), '')} {more}"
    )
    if case.agent == "dqn" and case.seed % 4 < 2:
        words += " --memory disk"
    return cli(module.Args, {}, words.split())


class Process:
    """One attempt at a run, forked from here so that it starts at once."""

    def __init__(self, case: Case, args: Any, log: Path, point: str = "", nth: int = 1) -> None:
        context = multiprocessing.get_context("fork")
        self.code: int | None = None
        self.progress, self.workers = context.RawValue("q", -1), context.RawArray("q", WORKERS)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
                os.dup2(1, 2)
                tqdm.set_lock(threading.RLock())  # one that is killed would keep the forks' own
                self._watch()
                setattr(ReplayMemory, "discard", lambda memory: None)  # noqa: B010  (it is compared)
                kill_at(point, nth)
                importlib.import_module(f"neoteny.agents.{case.agent}").main(args)
                code = 0
            except SystemExit as exit:
                code = int(exit.code or 0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                os._exit(code)

    def _watch(self) -> None:
        """Let the parent see how many steps were made, and the newest workers."""
        record, spawn = run.Run.record_episodes, ProcessEnvs._spawn

        def recorded(self: run.Run, info: Any, progress: Any = self.progress) -> None:
            progress.value = self.stream.steps
            record(self, info)

        def spawned(self: ProcessEnvs, envs: range, workers: Any = self.workers) -> Worker:
            worker = spawn(self, envs)
            workers[:] = [*workers[1:], worker.process.pid]
            return worker

        run.Run.record_episodes = recorded  # type: ignore[method-assign]
        ProcessEnvs._spawn = spawned  # type: ignore[method-assign]
        workers.WORKER_SECONDS = 3.0  # those that are stopped are waited for

    def wait(self, until: int = 2**62) -> int | None:
        """Wait until it has made so many steps (``None``) or has ended (exit code, negative if killed)."""
        while self.code is None and self.progress.value < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.001)
        return self.code

    def send(self, number: int, pid: int = 0) -> None:
        """Send a signal to it, or to one of its workers; one that has ended takes none."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or self.pid, number)


def kill_at(point: str, nth: int) -> None:
    """Let this process kill itself when it comes to a point of the writer of checkpoints the nth time."""
    if not point:
        return
    count = 0

    def reached() -> bool:
        nonlocal count
        count += 1
        return count == nth

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    write, sync, remove = checkpoint.write_bytes, checkpoint.sync_folder, checkpoint._remove
    file = {"tensors": TENSORS, "state": STATE, "manifest": MANIFEST}
    where, _, what = point.partition(" ")
    before = {"begin": TENSORS, "before manifest": MANIFEST}.get(point)
    inside = file.get(what) if where == "inside" else None

    def write_bytes(path: Path, data: bytes) -> None:
        if path.name == before and reached():
            die()
        if path.name == inside and reached():
            write(path, data[: len(data) // 2])
            die()
        write(path, data)

    def sync_folder(folder: Path) -> None:
        sync(folder)
        is_temporary = folder.name.startswith(".tmp_")
        if point == ("before rename" if is_temporary else "after rename") and reached():
            die()

    def remove_checkpoint(checkpoint: Path) -> None:
        if point == "inside pruning" and reached():
            old = checkpoint.with_name(".old_half")
            checkpoint.rename(old)
            (old / STATE).unlink()
            die()
        remove(checkpoint)

    checkpoint.write_bytes, checkpoint.sync_folder = write_bytes, sync_folder
    checkpoint._remove = remove_checkpoint


def resume_step(folder: Path) -> int:
    """The step at which a run would go on."""
    state = checkpoint.load_checkpoint(folder / "checkpoint")
    return state["step"] if state else 0


def torment(case: Case, runs_dir: Path, reference: Path) -> Outcome:
    """Run a case through its faults to its end, and compare it with the undisturbed run."""
    outcome = Outcome(case)
    rng = random.Random(f"{case}")
    args = arguments(
        case,
        runs_dir,
        f"--stream.single.workers {WORKERS}" * (case.stream in IN_WORKERS),
    )
    folder = run_folder(case.agent, args)
    log = runs_dir / "log.txt"
    for fault in case.faults:
        begun = resume_step(folder)
        point = fault if fault in POINTS else ""
        process = Process(case, args, log, point, nth=rng.choice((1, 3)))
        moments = sorted(rng.randrange(min(begun, TOTAL - 1), TOTAL) for _ in range(2))
        if case.stream in IN_WORKERS and process.wait(moments[0]) is None:
            loss = rng.choice(list(WORKER_FAULTS))
            process.send(WORKER_FAULTS[loss], rng.choice(process.workers))
            outcome.met.append(loss)
            outcome.recomputed.append(0)
        code = process.wait(2**62 if point else moments[1])
        if code is None:
            time.sleep(rng.uniform(0, 0.06))
            sent = time.perf_counter()
            process.send(signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)
            code = process.wait()
            if fault == "SIGTERM":
                outcome.latency.append(time.perf_counter() - sent)
        if code not in (0, 75 if fault == "SIGTERM" else -signal.SIGKILL):
            outcome.lost = f"exit code {code} after {fault}; see {log}"
            return outcome
        if code == 0:
            break  # it was faster
        outcome.met.append(fault)
        outcome.recomputed.append(max(0, process.progress.value - resume_step(folder)))
    code = Process(case, args, log).wait() if not (folder / "summary.json").exists() else 0
    if code != 0:
        outcome.lost = f"exit code {code} at last; see {log}"
        return outcome
    compare(folder, reference, outcome)
    return outcome


def compare(folder: Path, reference: Path, outcome: Outcome) -> None:
    """Note whatever differs between two finished runs."""
    ours, theirs = (dict(contents(path)) for path in (folder, reference))
    outcome.different = sorted(name for name in ours.keys() | theirs if ours.get(name) != theirs.get(name))
    points, expected = (collections.Counter(all_points(path)) for path in (folder, reference))
    counts, known = (
        collections.Counter((tag, step) for tag, step, _ in c.elements()) for c in (points, expected)
    )
    outcome.duplicated = (counts - known).total()
    outcome.missing = (known - counts).total()
    outcome.different += sorted({tag for tag, *_ in (points - expected) + (expected - points)})


def contents(folder: Path) -> Iterator[tuple[str, Any]]:
    """All that a finished run holds, but for times: name -> bytes or number."""
    yield "weights", (folder / "checkpoint" / "weights.safetensors").read_bytes()
    yield "stream.json", (folder / "stream.json").read_bytes()
    state = checkpoint.load_checkpoint(folder / "checkpoint")
    assert state is not None
    yield from leaves({name: state[name] for name in ("step", "update", "parts", "rng", "visits")}, "state")
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
            if key != "audit_seconds":
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


def cases(faults: Faults) -> Iterator[Case]:
    """Runs and their faults, without end, over all agents, streams, optimizers and kinds of faults."""
    rng, points = random.Random(faults.seed), itertools.cycle(POINTS)
    kinds = list(itertools.product(faults.agents, faults.streams))
    for number in itertools.count():
        agent, id = kinds[number % len(kinds)]
        optimizer = OPTIMIZERS[number // len(kinds) % len(OPTIMIZERS)]
        chosen = ["SIGKILL", next(points), "SIGTERM", next(points)]
        rng.shuffle(chosen)
        yield Case(agent, id, optimizer, number + 1, tuple(chosen))


def run_case(case: Case, folder: Path) -> Outcome:
    """One case, with the undisturbed run that it is compared with."""
    torch.set_num_threads(1)
    calm, wild = (folder / f"{case.seed}-{name}" for name in ("undisturbed", "killed"))
    for runs_dir in (calm, wild):
        runs_dir.mkdir(parents=True)
    reference = arguments(case, calm)
    code = Process(case, reference, calm / "log.txt").wait()
    if code != 0:
        return Outcome(case, lost=f"exit code {code} of the undisturbed run; see {calm / 'log.txt'}")
    outcome = torment(case, wild, run_folder(case.agent, reference))
    if not (outcome.lost or outcome.different):
        shutil.rmtree(calm)
        shutil.rmtree(wild)
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """The figures, as Markdown."""
    kinds: dict[str, Callable[[str], bool]] = {
        "SIGKILL at a random step": lambda fault: fault == "SIGKILL",
        "SIGKILL inside the writer of checkpoints": lambda fault: fault in POINTS,
        "SIGTERM": lambda fault: fault == "SIGTERM",
        "SIGKILL of an environment's worker": lambda fault: fault == "worker killed",
        "SIGSTOP of an environment's worker": lambda fault: fault == "worker stopped",
    }
    rows = [["fault", "times", "steps made again: median, most", "seconds to save and end: median, most"]]
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
    different = sum(bool(outcome.different) for outcome in outcomes)
    total = sum(len(outcome.met) for outcome in outcomes)
    names = " and ".join(sorted({outcome.case.agent.upper() for outcome in outcomes}))
    streams = len({outcome.case.stream for outcome in outcomes})
    return "\n".join(
        [
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"{total} faults in {len(outcomes)} runs of {names} over {streams} streams: "
            f"runs lost {lost}, runs different {different}, points duplicated "
            f"{sum(o.duplicated for o in outcomes)}, points missing {sum(o.missing for o in outcomes)}. "
            f"A run has {TOTAL:,} steps and a checkpoint every {INTERVAL}.",
        ]
    )


def main(faults: Faults) -> int:
    """Run cases until there were enough kills or a run is lost; returns 1 if any was lost or different."""
    planned, outcomes, running = cases(faults), list[Outcome](), set[Future[Outcome]]()
    with contextlib.ExitStack() as stack:
        folder = faults.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        context = multiprocessing.get_context("fork")
        pool = stack.enter_context(ProcessPoolExecutor(faults.jobs, mp_context=context))
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
                if outcome.lost or outcome.different:
                    told = f"lost: {outcome.lost or 'no'}, different: {outcome.different[:8]}"
                    bar.write(f"{outcome.case}: {told}")
    print(table(outcomes))
    return int(any(outcome.lost or outcome.different for outcome in outcomes))


if __name__ == "__main__":
    launch_script(main, Faults)
