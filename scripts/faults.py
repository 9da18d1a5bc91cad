"""Kill runs in many ways, resume them, and compare them bit for bit with undisturbed runs.

python scripts/faults.py --kills 200
python scripts/faults.py --kills 200 --methods

Each run is killed several times: by SIGKILL at a random step, by SIGKILL while a checkpoint is written, and
by SIGTERM; the worker processes of some runs are killed or stopped too, and the code of some streams is
changed before a resume. At the end its weights, optimizer state, random state, episodes and TensorBoard
points must equal those of an undisturbed run with the same arguments, unless ``meta.json`` says that the run
is not exact. The table is printed as Markdown.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import itertools
import json
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
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Goal, Wall
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import ImgObsWrapper
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tqdm import tqdm

from neoteny.configs.cli import cli, launch_script
from neoteny.envs import stream, wrappers
from neoteny.envs.audit import set_parameters
from neoteny.envs.single import workers
from neoteny.envs.single.workers import ProcessEnvs, Worker
from neoteny.optim import METHODS
from neoteny.runners import run
from neoteny.runners.disk import checkpoint
from neoteny.runners.disk.checkpoint import MANIFEST, STATE, TENSORS
from neoteny.runners.disk.events import event_files
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.replay import ReplayMemory

CHECKPOINTS = 8  # of a run

# Points in the writing of a checkpoint at which a process is killed.
POINTS = (
    "begin", "inside tensors", "inside state", "before manifest", "inside manifest", "before rename",
    "after rename", "inside pruning",
)  # fmt: skip


@stream("FaultyWrappers-v0", period=700, tasks=3)
def faulty_wrappers(k: int, seed: int) -> gym.Env:
    """CartPole with wrappers that have random or other state: drifting gravity, noise, failing actions."""
    env = gym.make("CartPole-v1", disable_env_checker=True)
    rules = {"gravity": wrappers.RandomWalk(0.05)}
    env = wrappers.drift(env, rules, seed=(seed, k))
    env = wrappers.noisy_observations(env, 0.01 * (k + 1), seed=seed)
    return wrappers.fail_actions(env, 0.1 * (k + 1), seed=seed)


@stream("FaultyMemory-v0", period=700, tasks=3)
def faulty_memory(k: int, seed: int) -> gym.Env:
    """CartPole with rewards divided by a standard deviation that is estimated over all episodes."""
    env = gym.make("CartPole-v1", disable_env_checker=True)
    set_parameters(env, {"gravity": 9.8 * (k + 1)})
    return gym.wrappers.NormalizeReward(env)


@stream("FaultyNoise-v0", period=700)
def faulty_noise(k: int, seed: int) -> gym.Env:
    """CartPole whose rewards come from the global generator."""
    env = gym.make("CartPole-v1", disable_env_checker=True)
    set_parameters(env, {"gravity": 9.8 * (k + 1)})
    return gym.wrappers.TransformReward(env, lambda reward: float(reward) + random.random())


@stream("FaultyCode-v0", period=700)
def faulty_code(k: int, seed: int) -> gym.Env:
    """CartPole that pays what a file says, which is changed between a stop and a resume."""
    pay = importlib.import_module(CODE).PAY
    env = gym.make("CartPole-v1", disable_env_checker=True)
    set_parameters(env, {"gravity": 9.8 * (k + 1)})
    return gym.wrappers.TransformReward(env, lambda reward: pay * float(reward))


class Room(MiniGridEnv):
    """A user's class of MiniGrid: a room with a few walls at random places, which runs on tensors."""

    def __init__(self, walls: int) -> None:
        self.walls = walls
        super().__init__(MissionSpace(lambda: "reach the goal"), grid_size=7, max_steps=60)

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.mission = "reach the goal"
        self.put_obj(Goal(), width - 2, height - 2)
        self.agent_pos, self.agent_dir = (1, 1), self._rand_int(0, 4)
        for _ in range(self.walls):
            self.put_obj(Wall(), self._rand_int(2, width - 1), self._rand_int(1, height - 2))


@stream("FaultyRooms-v0", period=700, tasks=3)
def faulty_rooms(k: int, seed: int) -> gym.Env:
    """Rooms with more and more walls."""
    return ImgObsWrapper(Room(walls=2 * k + 1))


# The module that FaultyCode-v0 imports, in the folder of each case.
CODE = "faulty_pay"

# Streams whose sub-environments run in worker processes, which are killed and stopped too; the undisturbed
# run has no workers.
IN_WORKERS = {"acrobot-jumps", "grid-goals"}
WORKERS = 2
WORKER_FAULTS = {"worker killed": signal.SIGKILL, "worker stopped": signal.SIGSTOP}

# Streams and agents of the runs, with flags for each.
STREAMS = {
    "cartpole-rotations": "",
    "cartpole-drift": "--stream.normalizer keep",
    "acrobot-jumps": "--stream.normalizer reset --stream.jitter 0.5",
    "mountaincar-drift": "",
    "FaultyWrappers-v0": "--stream.task-id onehot --stream.order random",
    "grid-layouts": "--stream.order random --stream.jitter 0.5",
    "grid-goals": "--stream.engine single",
    "grid-resampled-crossings": "",
    "grid-permuted-actions": "",
    "atari": "--stream.games Breakout Pong",
    "FaultyMemory-v0": "",
    "FaultyNoise-v0": "",
    "FaultyCode-v0": "",
    "FaultyRooms-v0": "",
}
AGENTS = {
    "ppo": "--num-steps 32 --epochs 2 --minibatches 2",
    "dqn": "--log-every 128 --train-every 16 --learning-starts 128 --batch-size 16 --buffer-size 1000 "
    "--n-step 3 --eps-steps 1000",
}
BOTH = {
    ("ppo", "mountaincar-drift"): "--anneal-lr",
    ("dqn", "grid-goals"): "--dueling --no-double",
    ("dqn", "cartpole-rotations"): "--eps-restart",
}
# What some methods refuse.
WITHOUT_METHODS = {
    ("ppo", "grid-goals"): "--shared-torso",
    ("ppo", "grid-permuted-actions"): "--network.activation maxmin",
    ("dqn", "grid-permuted-actions"): "--network.activation maxmin",
}
# The project's optimizers, and torch's, which a copied agent would use.
OURS = ("adamo", "adam", "muon", "adamw", "upgd", "muono", "trac")
TORCHS = ("NAdam", "ASGD", "Adafactor", "RMSprop", "Rprop", "Adagrad", "SGD", "RAdam", "Adamax", "Adadelta")
OPTIMIZERS = (*OURS, *TORCHS)
# Flags with which methods act several times in runs as short as these.
OF_METHODS = {
    "redo": "--methods.redo.every 7 --methods.redo.tau 0.5",
    "regrama": "--methods.regrama.every 7 --methods.regrama.tau 0.5",
    "snr": "--methods.snr.every 5 --methods.snr.longest 2",
    "continual_backprop": "--methods.continual-backprop.every 5 --methods.continual-backprop.rate 0.02 "
    "--methods.continual-backprop.maturity 7",
    "cpr": "--methods.cpr.every 7 --methods.cpr.rate 0.5",
    "reset": "--methods.reset.every 23",
    "shrink_perturb_every": "--methods.shrink-perturb-every.every 9",
    "hare_tortoise": "--methods.hare-tortoise.every 11 --methods.hare-tortoise.decay 0.9",
    "injection": "--methods.injection.after 21",
    "nap": "--methods.nap.every 3 --network.norm layer",
    "reorthogonalize": "--methods.reorthogonalize.every 7 --network.linear orthogonal",
}
# Those that set what AdamO's pull sets, or leave no weight to it.
NEED_ADAM = {"nap", "reorthogonalize", "isometry", "parseval", "spectral"}


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
    jobs: int = os.cpu_count() or 1
    """Number of runs in parallel."""
    seed: int = 1
    """Seed for the times at which processes are killed."""
    keep: Path | None = None
    """Folder in which to keep the run folders; by default they are temporary."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A run and its faults, one after the other."""

    agent: str
    stream: str
    optimizer: str
    seed: int
    steps: int
    faults: tuple[str, ...]
    method: str = ""


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


def arguments(case: Case, runs_dir: Path, more: str = "") -> Any:
    """A short run with many switches, checkpoints and probes."""
    module = importlib.import_module(f"neoteny.agents.{case.agent}")
    optimizer = case.optimizer if case.optimizer in OURS else "adam"
    others = WITHOUT_METHODS.get((case.agent, case.stream), "")
    if case.method:
        others = OF_METHODS.get(case.method, f"--methods.{case.method.replace('_', '-')}")
    words = (
        f"--stream.id {case.stream} optim:{optimizer} --seed {case.seed} --runs-dir {runs_dir} "
        f"--total-steps {case.steps} --checkpoint-every {case.steps // CHECKPOINTS} --num-envs 4 "
        f"--probes.every 5 "
        f"--network.hidden 32 32 --stream.period 700 {AGENTS[case.agent]} {STREAMS.get(case.stream, '')} "
        f"{BOTH.get((case.agent, case.stream), '')} {others} {more}"
    )
    if case.agent == "dqn" and case.seed % 4 < 2:
        words += " --memory disk"
    return cli(module.Args, {}, words.split())


def folder_of(case: Case, args: Any) -> Path:
    """The folder of a case's run."""
    if case.optimizer in OURS:
        return run_folder(case.agent, args)
    return run_folder(case.agent, args, torch_optimizer(case.optimizer, torch.nn.Linear(1, 1), args.lr))


def torch_optimizer(name: str, module: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """An optimizer of torch."""
    return getattr(torch.optim, name)(module.parameters(), lr=lr)


def write_code(runs_dir: Path, pay: float) -> None:
    """Write the module that FaultyCode-v0 imports."""
    (runs_dir / f"{CODE}.py").write_text(f"PAY = {pay}\n")


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
                tqdm.set_lock(threading.RLock())  # a killed process would keep the shared lock
                self._watch()
                setattr(ReplayMemory, "discard", lambda memory: None)  # noqa: B010  (it is compared)
                kill_at(point, nth)
                sys.dont_write_bytecode = True
                sys.path.insert(0, str(log.parent))  # where the code of FaultyCode-v0 is
                if case.optimizer not in OURS:
                    self._replace_optimizer(case, args)
                importlib.import_module(f"neoteny.agents.{case.agent}").main(args)
                code = 0
            except SystemExit as exit:
                code = int(exit.code or 0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                os._exit(code)

    def _replace_optimizer(self, case: Case, args: Any) -> None:
        """Let the agent have an optimizer of torch, as a copied agent may."""

        def build(
            config: Any, module: torch.nn.Module, lr: float, exclude: Any = ()
        ) -> torch.optim.Optimizer:
            return torch_optimizer(case.optimizer, module, lr)

        type(args.optim).build = build

    def _watch(self) -> None:
        """Share the number of steps so far and the newest workers with the parent process."""
        record, spawn = run.Run.record_episodes, ProcessEnvs._spawn

        progress = self.progress

        def recorded(self: run.Run, *made: Any) -> None:
            progress.value = self.stream.steps
            record(self, *made)

        def spawned(self: ProcessEnvs, envs: range, workers: Any = self.workers) -> Worker:
            worker = spawn(self, envs)
            workers[:] = [*workers[1:], worker.process.pid]
            return worker

        run.Run.record_episodes = recorded  # type: ignore[method-assign, assignment]
        ProcessEnvs._spawn = spawned  # type: ignore[method-assign]
        workers.WORKER_SECONDS = 15.0  # how long to wait for stopped workers, also on a machine that is busy

    def wait(self, until: int = 2**62) -> int | None:
        """Wait until it has made ``until`` steps (returns None) or ended (exit code, negative if killed)."""
        while self.code is None and self.progress.value < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.001)
        return self.code

    def send(self, number: int, pid: int = 0) -> None:
        """Send a signal to it, or to one of its workers; has no effect if that process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or self.pid, number)


def kill_at(point: str, nth: int) -> None:
    """Make this process kill itself when the writing of checkpoints reaches a point for the nth time."""
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
    """The step from which a run would resume."""
    state = checkpoint.load_checkpoint(folder / "checkpoint")
    return state["step"] if state else 0


def torment(case: Case, runs_dir: Path, reference: Path) -> Outcome:
    """Run a case with its faults until it finishes, and compare it with the undisturbed run."""
    outcome = Outcome(case)
    rng = random.Random(f"{case}")
    args = arguments(
        case,
        runs_dir,
        f"--stream.single.workers {WORKERS}" * (case.stream in IN_WORKERS),
    )
    folder = folder_of(case, args)
    log = runs_dir / "log.txt"
    for fault in case.faults:
        begun = resume_step(folder)
        point = fault if fault in POINTS else ""
        process = Process(case, args, log, point, nth=rng.choice((1, 3)))
        moments = sorted(rng.randrange(min(begun, case.steps - 1), case.steps) for _ in range(2))
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
            break  # the run finished before the fault
        outcome.met.append(fault)
        outcome.recomputed.append(max(0, process.progress.value - resume_step(folder)))
        if case.stream == "FaultyCode-v0" and "code changed" not in outcome.met and resume_step(folder):
            write_code(runs_dir, pay=2.0)
            outcome.met.append("code changed")
            outcome.recomputed.append(0)
    code = Process(case, args, log).wait() if not (folder / "summary.json").exists() else 0
    if code != 0:
        outcome.lost = f"exit code {code} after the last resume; see {log}"
        return outcome
    compare(folder, reference, outcome)
    return outcome


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
    """An endless sequence of cases over all agents, streams, optimizers and kinds of faults."""
    rng, points = random.Random(faults.seed), itertools.cycle(POINTS)
    kinds = list(itertools.product(faults.agents, faults.streams))
    for number in itertools.count():
        agent, id = kinds[number % len(kinds)]
        turn = number + number // len(kinds)
        method = sorted(METHODS)[turn % len(METHODS)] if faults.methods else ""
        optimizers = ("adam", "adamw") if method in NEED_ADAM else OURS if method else OPTIMIZERS
        optimizer = optimizers[turn % len(optimizers)]
        chosen = ["SIGKILL", next(points), "SIGTERM", next(points)]
        rng.shuffle(chosen)
        yield Case(agent, id, optimizer, number + 1, faults.steps, tuple(chosen), method)


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
    outcome = torment(case, wild, folder_of(case, reference))
    if not (outcome.lost or (outcome.exact and outcome.different)):
        shutil.rmtree(calm)
        shutil.rmtree(wild)
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """The results as a Markdown table."""
    kinds: dict[str, Callable[[str], bool]] = {
        "SIGKILL at a random step": lambda fault: fault == "SIGKILL",
        "SIGKILL while a checkpoint is written": lambda fault: fault in POINTS,
        "SIGTERM": lambda fault: fault == "SIGTERM",
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


def main(faults: Faults) -> int:
    """Run cases until there are enough kills or a run is lost.

    Returns:
        1 if a run is lost, or called itself exact and is different; else 0.
    """
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
                if outcome.lost or (outcome.exact and outcome.different):
                    message = f"lost: {outcome.lost or 'no'}, different: {outcome.different[:8]}"
                    bar.write(f"{outcome.case}: {message}")
    print(table(outcomes))
    return int(any(outcome.lost or (outcome.exact and outcome.different) for outcome in outcomes))


if __name__ == "__main__":
    launch_script(main, Faults)
