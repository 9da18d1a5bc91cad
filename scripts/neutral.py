"""Check that a change keeps all results bit-identical: run the same commands before and after it.

python scripts/neutral.py HEAD~3 HEAD

The commands are short, and cover all agents, every engine and optimizer, probes, videos and resumed runs.
Their final weights, TensorBoard points and summaries are compared, except for times and copies of the
arguments. The table is printed as Markdown; the exit code is 0 if everything is equal.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple, Self

import safetensors
import tyro
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
LOG = "log.txt"
PREEMPTED = 75  # exit code of a run that a signal stopped, with everything saved

RENAMED_WORDS: dict[str, str] = {
    "--stream.workers 2": "--stream.single.workers 2",
    "--stream.engine package": "--stream.engine single",
    "--network.flat": "--stream.observations vectors",
    "--stream.span 0.5": "--stream.drift-fraction 0.5",
    "--reward-scale 0.5": "--rewards.normalizer none --rewards.scale 0.5",
    "": "--rewards.normalizer none",
    "--clip-rewards": "--rewards.clip",
}
"""Renamed flags, old -> new, or new ones whose value stands for what was before. The commands below use the
new ones; a tree that cannot parse these gets the old ones."""

RENAMED_NAMES: dict[str, str] = {}
"""Renamed tags, weights and keys of summary.json: regular expression of the whole old name -> new name, as
{r"plasticity/dormant_(.+)": r"dormant/\\1"}."""

NOT_COMPARED = r"time/.*|charts/SPS|_hparams_/.*|custom_scalars__config__|setup/.*|seconds"
"""Tags and keys of summary.json that are not compared: times and copies of the arguments."""

PPO = (
    "ppo --num-envs 4 --num-steps 32 --epochs 2 --minibatches 2 --total-steps 2048 --probes.every 4 "
    "--network.hidden 32 32"
)
DQN = (
    "dqn --num-envs 4 --log-every 128 --train-every 16 --learning-starts 128 --batch-size 16 "
    "--buffer-size 1000 --eps-steps 1000 --total-steps 2048 --probes.every 4 --network.hidden 32 32"
)
STREAM = "--stream.period 600 --stream.id"
SMALL_ROOM = "--stream.id MiniGrid-Empty-5x5-v0"  # where untrained agents find rewards
# Fewer steps, and no full probes, which are slow for networks of this size.
ATARI = (
    "--num-envs 4 --total-steps 1024 --rewards.clip --network.hidden 32 --probes.every 4 "
    "--probes.full-every 0 --stream.id atari"
)
SUPERVISED = (
    "supervised --stream.samples 160 --stream.epochs 3 --num-tasks 8 --network.hidden 32 32 "
    "--probes.every 4 --probes.plasticity-every 3 --probes.plasticity-steps 20"
)
TWO_GAMES = "--stream.period 800 --stream.games Breakout Pong"

# Name -> agent and flags. The longest comes first, so that it does not run alone at the end. It makes 11,040
# gradient steps, because the raw weights of orthogonal layers are replaced every 10,000.
COMMANDS = {
    "ppo-orthogonal-long": "ppo --num-envs 4 --num-steps 8 --epochs 30 --minibatches 8 --total-steps 1472 "
    "--network.hidden 16 --network.linear orthogonal --shared-torso --stream.period 500 --probes.every 10 "
    "--checkpoint-every 600 optim:adam",
    "ppo-adamo": f"{PPO} {STREAM} cartpole-rotations --probes.full-every 2 --anneal-lr optim:adamo",
    "ppo-adamw": f"{PPO} {STREAM} cartpole-jumps --stream.tasks 0 1 2 --stream.order random "
    "--stream.jitter 0.5 --stream.normalizer keep --stream.task-id onehot --network.activation tanh "
    "optim:adamw",
    "ppo-workers": f"{PPO} {STREAM} mountaincar-drift --stream.normalizer reset --stream.single.workers 2 "
    "optim:muon",
    "ppo-plasticity": f"{PPO} {STREAM} cartpole-gravity --stream.drift-fraction 0.5 "
    "--probes.plasticity-every 1 --probes.plasticity-steps 20 optim:adam",
    "ppo-grid": f"{PPO} {STREAM} grid-layouts --network.activation maxmin --video-every 700 optim:muon",
    "ppo-grid-package": f"{PPO} {SMALL_ROOM} --stream.engine single --shared-torso "
    "--network.activation crelu optim:adamo",
    "ppo-grid-orthogonal": f"{PPO} {SMALL_ROOM} --network.linear orthogonal optim:adam",
    "ppo-bf16": f"{PPO} {STREAM} grid-permuted-actions --stream.observations vectors --amp bf16 optim:adamo",
    "ppo-atari": f"ppo {ATARI} {TWO_GAMES} --num-steps 32 --epochs 2 --minibatches 2 optim:adamo",
    "ppo-atari-mode": f"ppo {ATARI} --stream.games Breakout/4/0 --num-steps 32 --epochs 2 --minibatches 2 "
    "--rewards.normalizer none --rewards.scale 0.5 optim:adam",
    "ppo-minatar": "ppo --num-envs 64 --num-steps 32 --epochs 2 --minibatches 4 --total-steps 8192 "
    f"--probes.every 2 --network.hidden 32 32 {STREAM} minatar --stream.observations vectors optim:adamo",
    "ppo-resumed": f"{PPO} {STREAM} cartpole-drift --stream.normalizer keep --checkpoint-every 256 "
    "--anneal-lr optim:adamo --optim.iso-every 7",
    "ppo-grid-resumed": f"{PPO} {STREAM} grid-goals --network.linear orthogonal --checkpoint-every 256 "
    "--network.activation maxmin optim:adam",
    "dqn-adamo": f"{DQN} {STREAM} cartpole-rotations --target-every 50 --eps-restart "
    "--probes.full-every 2 optim:adamo --optim.iso 1",
    "dqn-muon": f"{DQN} {STREAM} acrobot-drift --stream.tasks 0 1 2 --stream.task-id onehot "
    "--stream.normalizer keep --target-every 50 --memory disk --video-every 1000 optim:muon",
    "dqn-plasticity": f"{DQN} --stream.id CartPole-v1 --target-every 1 --tau 0.01 "
    "--probes.plasticity-every 1 --probes.plasticity-steps 20 optim:adamw",
    "dqn-workers": f"{DQN} {STREAM} grid-goals --stream.engine single --stream.single.workers 2 "
    "--target-every 50 --network.activation fourier optim:adam",
    "dqn-grid": f"{DQN} {STREAM} grid-layouts-small --stream.order random --dueling --no-double --n-step 3 "
    "--target-every 5 --tau 0.1 optim:adamo",
    "dqn-orthogonal": f"{DQN} {STREAM} grid-permuted-observations --network.linear orthogonal --amp bf16 "
    "--target-every 50 --network.activation groupsort optim:adam",
    "dqn-atari": f"dqn {ATARI} {TWO_GAMES} --log-every 64 --learning-starts 64 --batch-size 8 "
    "--buffer-size 256 --target-every 50 --memory disk --n-step 3 optim:adam",
    "dqn-resumed": f"{DQN} {STREAM} mountaincar-jumps --target-every 50 --n-step 3 --checkpoint-every 256 "
    "optim:adamo",
    "supervised-adam": f"{SUPERVISED} --stream.change permuted-pixels optim:adam --methods.l2-init",
    "supervised-resumed": f"{SUPERVISED} --checkpoint-every 160 optim:adamo",
    "dqn-disk-resumed": f"{DQN} {SMALL_ROOM} --target-every 50 --memory disk --n-step 3 --dueling "
    "--checkpoint-every 256 optim:muon",
}
# Commands that get a signal once they have a checkpoint, and are then run again.
STOPPED = {
    "ppo-resumed": signal.SIGKILL,
    "ppo-grid-resumed": signal.SIGTERM,
    "dqn-resumed": signal.SIGKILL,
    "supervised-resumed": signal.SIGKILL,
    "dqn-disk-resumed": signal.SIGTERM,
}


@dataclasses.dataclass(frozen=True)
class Neutral:
    """Run the same training commands at two commits, and compare all results bit by bit."""

    before: tyro.conf.Positional[str]
    """A git revision, or the folder of a tree."""
    after: tyro.conf.Positional[str] = str(ROOT)
    """Another revision or folder; by default the working tree."""
    jobs: int = os.cpu_count() or 1
    """Number of runs in parallel."""
    only: str = ""
    """Regular expression: run only the commands whose names match."""
    keep: Path | None = None
    """A new or empty folder in which to keep the runs and their output."""


class BadInputError(ValueError):
    """The arguments cannot be used; the message is one sentence."""


class Tree:
    """A source tree whose commands import ``neoteny`` from it, whatever is installed.

    Args:
        code: folder of the tree.
        path: a new folder, to be put first on Python's search path.

    Raises:
        BadInputError: a module of ``neoteny`` would be imported from elsewhere.
    """

    def __init__(self, code: Path, path: Path) -> None:
        self.code = code.resolve()
        path.mkdir()
        (path / "neoteny").symlink_to(self.code, target_is_directory=True)
        others = os.environ.get("PYTHONPATH")
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(path), others)))}
        self._check_imports()

    def words(self, command: str) -> list[str]:
        """A command for this tree: interpreter, agent, flags."""
        agent = command.split()[0]
        for old, new in RENAMED_WORDS.items():
            if f" {new} " in f"{command} " and not self._parses(agent, new):
                command = command.replace(new, old)
        agent, *flags = command.split()
        return [sys.executable, str(self.code / "agents" / f"{agent}.py"), *flags]

    @functools.cache  # noqa: B019  (a tree lives as long as the script)
    def _parses(self, agent: str, words: str) -> bool:
        """Whether an agent of this tree can parse these words."""
        script = f"""
import neoteny.agents.{agent} as agent, neoteny.configs.cli as cli
cli.cli(agent.Args, {{}}, {words.split()!r})
"""
        return self._run(sys.executable, "-c", script).returncode == 0

    def _check_imports(self) -> None:
        script = """
import sys, neoteny.agents.dqn, neoteny.agents.ppo
print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("neoteny.")), sep="\\n")
"""
        done = self._run(sys.executable, "-c", script)
        if done.returncode:
            raise BadInputError(f"{self.code} cannot be imported: {_reason(done.stderr)}")
        for file in done.stdout.splitlines():
            if not Path(file).resolve().is_relative_to(self.code):
                raise BadInputError(f"{self.code} would import {file}, which is outside of it")

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=self.environment, capture_output=True, text=True)


def _reason(output: str) -> str:
    """The line of a process's output that most likely says why it failed."""
    lines = [line.strip(" │╭╮╰╯─") for line in reversed(output.splitlines())]
    errors = [line for line in lines if re.search(r"error\b", line, re.IGNORECASE)]
    return next(filter(None, errors + lines), "without output")


@contextlib.contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """The folder of a revision's tree: a temporary git worktree, or the folder that was given.

    Raises:
        BadInputError: there is no such revision.
    """
    if (Path(revision) / "agents").is_dir():
        yield Path(revision)
        return
    git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    commit = f"{revision}^{{commit}}"
    if git(["git", "rev-parse", "--quiet", "--verify", "--end-of-options", commit]).returncode:
        raise BadInputError(f"{revision} is neither a git revision nor the folder of a tree")
    try:
        made = git(["git", "worktree", "add", "--detach", str(folder), commit])
        if made.returncode:
            raise BadInputError(f"{revision} cannot be checked out: {_reason(made.stderr)}")
        yield folder
    finally:
        git(["git", "worktree", "remove", "--force", str(folder)])


class Results(NamedTuple):
    """The results of a finished run, as bytes, under their new names."""

    points: dict[tuple[int, str], list[bytes]]  # (step, tag) -> values, in the order of writing
    weights: dict[str, tuple[str, bytes]]  # type and shape, and the bits
    summary: dict[str, str]


Outcome = Results | str
"""The results of a command, or why there are none."""


def results(folder: Path) -> Results:
    """Read a finished run."""
    points: dict[tuple[int, str], list[bytes]] = collections.defaultdict(list)
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                tag = value.tag
                value.ClearField("tag")  # it may have been renamed
                if not re.fullmatch(NOT_COMPARED, tag):
                    points[event.step, new_name(tag)].append(value.SerializeToString(deterministic=True))
    weights = {
        new_name(name): (f"{tensor['dtype']} {tensor['shape']}", bytes(tensor["data"]))
        for path in folder.glob("checkpoint/weights.safetensors")
        for name, tensor in safetensors.deserialize(path.read_bytes())
    }
    summary = {
        new_name(key): json.dumps(value, sort_keys=True)
        for key, value in json.loads((folder / "summary.json").read_text()).items()
        if not re.fullmatch(NOT_COMPARED, key)
    }
    return Results(dict(points), weights, summary)


def new_name(name: str) -> str:
    """The current name of a tag, a weight or a key."""
    for old, new in RENAMED_NAMES.items():
        name = re.sub(rf"\A(?:{old})\Z", new, name)
    return name


def differences(before: Results, after: Results) -> Iterator[str]:
    """All differences, points first, in the order of their steps."""
    for kind in Results._fields:
        ours, theirs = getattr(before, kind), getattr(after, kind)
        for key in sorted(ours.keys() | theirs.keys()):
            if (old := ours.get(key)) != (new := theirs.get(key)):
                name = f"{key[1]} at step {key[0]:,}" if kind == "points" else f"{key} in the {kind}"
                yield f"{name} {'is new' if old is None else 'is gone' if new is None else 'differs'}"


class Runner:
    """Runs up to ``jobs`` commands in parallel; kills those that still run on exit, Ctrl-C included."""

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs)
        self._left = threading.Event()

    def __enter__(self) -> Self:
        """The runner, with nothing running yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """Kill running commands and cancel waiting ones."""
        self._left.set()
        self._pool.shutdown(cancel_futures=True)

    def submit(self, name: str, tree: Tree, folder: Path) -> Future[Outcome]:
        """Schedule the command ``name``, with the code of a tree, in a new folder."""
        return self._pool.submit(self._run, name, tree, folder)

    def _run(self, name: str, tree: Tree, folder: Path) -> Outcome:
        folder.mkdir(parents=True)
        words, stop = tree.words(COMMANDS[name]), STOPPED.get(name)
        if stop and (code := self._attempt(words, tree, folder, stop)) not in (-stop, PREEMPTED):
            return f"exit code {code} instead of a stop, {_reason((folder / LOG).read_text())}"
        if code := self._attempt(words, tree, folder):
            return f"exit code {code}, {_reason((folder / LOG).read_text())}"
        found = [results(summary.parent) for summary in folder.glob("runs/**/summary.json")]
        if len(found) != 1 or not (found[0].points and found[0].weights):
            return "no finished run with points and weights"
        return found[0]

    def _attempt(self, words: list[str], tree: Tree, folder: Path, stop: int | None = None) -> int:
        """Run a process, send it the signal ``stop`` once it has a checkpoint, and return its exit code."""
        with (
            open(folder / LOG, "ab") as log,
            subprocess.Popen(words, cwd=folder, env=tree.environment, stdout=log, stderr=log) as process,
        ):
            while process.poll() is None:
                if self._left.is_set():
                    process.kill()
                elif stop and any(folder.glob("runs/**/checkpoint/step_*")):
                    process.send_signal(stop)
                    stop = None
                time.sleep(0.01)
        return process.returncode


def run_all(names: Sequence[str], flags: Neutral) -> dict[str, list[Outcome]]:
    """Run all commands on both sides; name -> outcomes before and after.

    Raises:
        BadInputError: there is no such revision, or its tree would not run its own code.
    """
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = {
            side: Tree(stack.enter_context(checkout(revision, temporary / side)), temporary / f"path-{side}")
            for side, revision in (("before", flags.before), ("after", flags.after))
        }
        runner = stack.enter_context(Runner(flags.jobs))
        kept = flags.keep or temporary / "runs"
        futures = {
            name: [runner.submit(name, tree, kept / name / side) for side, tree in trees.items()]
            for name in names
        }
        done = as_completed(itertools.chain(*futures.values()))
        for future in tqdm(done, total=len(names) * len(trees), unit="run"):
            future.result()  # raises errors of this script itself
        return {name: [future.result() for future in pair] for name, pair in futures.items()}


def verdict(before: Outcome, after: Outcome) -> str:
    """``equal``, or the first difference, or why the results cannot be compared."""
    if isinstance(before, str) or isinstance(after, str):
        sides = {"before": before, "after": after}
        return "; ".join(f"failed {side}: {why}" for side, why in sides.items() if isinstance(why, str))
    found = list(differences(before, after))
    return found[0] + f", and {len(found) - 1:,} more" * (len(found) > 1) if found else "equal"


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """A row for each command, as Markdown."""
    rows = [["command", "weights", "points", "verdict"], ["---", "---:", "---:", "---"]]
    for name, (before, after) in outcomes.items():
        counts = (0, 0)
        if not isinstance(before, str):
            counts = len(before.weights), sum(map(len, before.points.values()))
        rows.append([name, *(f"{count:,}" for count in counts), verdict(before, after)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(flags: Neutral) -> int:
    """Run, compare and print; returns 0 if everything is equal, 1 if not, 2 for unusable arguments."""
    names = [name for name in COMMANDS if re.search(flags.only, name)]
    try:
        if not names:
            raise BadInputError(f"no command has {flags.only} in its name")
        if flags.keep and flags.keep.exists() and any(flags.keep.iterdir()):
            raise BadInputError(f"{flags.keep} is not empty")
        outcomes = run_all(names, flags)
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(outcomes))
    return int(any(verdict(*pair) != "equal" for pair in outcomes.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that worktrees are removed
    sys.exit(main(tyro.cli(Neutral)))
