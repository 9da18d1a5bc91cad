"""Type malformed command lines, over every flag of every command, and see that each is refused in a sentence.

python scripts/malformed.py --lines 3000
python scripts/malformed.py --ids

A line is refused well if it exits with code 2 and one sentence, leaves no file, and takes no more than two
seconds and a gigabyte. A line that happens to be valid is trained for a moment, which must not end in a
traceback. Each line has a process of its own, forked from this one after all imports; some are typed once
more to a new Python. With ``--ids`` the lines train on each of Gymnasium's registered environments.
The table is printed as Markdown.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import importlib
import io
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from neoteny.configs.cli import launch, launch_script
from neoteny.runners.disk.exit_codes import ExitCode, check_numbers
from neoteny.runners.disk.messages import protect_output, tell
from neoteny.runners.run import Run
from neoteny.runners.sweep import usable_cores
from neoteny.scripts import sweep
from neoteny.scripts.agent_files import agent_names, load_agent
from neoteny.scripts.malformed_lines import RUN, Line, malformed, registered

ROOT = Path(__file__).resolve().parents[1]
SECONDS, BYTES = 2.0, 2**30  # that a refusal may take: of the processor, resident
HANGS = 300.0  # seconds by the clock after which a process is ended
ROOM = 3 * 2**30  # bytes of address space besides what is forked
TRAINING = 1.0  # seconds by the clock for which a valid line is trained

IMPORTED = ("torch._dynamo", "gymnasium.envs.classic_control.cartpole", "neoteny.runners.tuning")
"""What commands import later, which is not to be counted."""


class Outcome(NamedTuple):
    """How a command line ended."""

    code: int
    """Exit code; the negative number of a signal."""
    output: str
    left: tuple[str, ...]
    """Files that it left."""
    seconds: float
    """Of the processor."""
    bytes: int
    """Of memory, at most."""


def run(line: Line) -> None:
    """Run a command line in this process."""
    words = [*line.words]
    sys.argv = [f"{line.command}.py", *words]
    if line.command in agent_names():
        agent: Any = load_agent(line.command)
        launch(agent.main, agent.Args, agent.PRESETS)
    else:
        protect_output()
        sys.exit(importlib.import_module(f"neoteny.scripts.{line.command}").run(words))


def type_in(line: Line, folder: Path) -> Outcome:
    """Run a command line in a process that is forked from this one, in a folder of its own."""
    with tempfile.TemporaryFile() as out:
        began, child = time.monotonic(), os.fork()
        if child == 0:
            _become(line, folder, out.fileno())
        while True:
            done, status, used = os.wait4(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() - began > HANGS:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        out.seek(0)
        output = out.read().decode(errors="replace")
    left = files_left(folder)
    seconds = used.ru_utime + used.ru_stime
    return Outcome(os.waitstatus_to_exitcode(status), output, left, seconds, used.ru_maxrss * 1024)


def files_left(folder: Path) -> tuple[str, ...]:
    """Names of what a command left in its folder, but for what was there before, and MuJoCo's own log."""
    return tuple(path.name for path in folder.iterdir() if path.name not in (RUN, "MUJOCO_LOG.TXT"))


def _become(line: Line, folder: Path, output: int) -> typing.NoReturn:
    """Run a command line as all that this process does."""
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        for name, number in (("stdout", 1), ("stderr", 2)):
            file = io.FileIO(number, "w", closefd=False)
            setattr(sys, name, io.TextIOWrapper(file, errors="backslashreplace", write_through=True))
        os.chdir(folder)
        gc.disable()
        if line.kind != "id":  # whose replay memory may be a large file
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        torch.set_num_threads(1)
        Run.__init__ = _briefly(Run.__init__)  # type: ignore[method-assign]
        sweep.train = lambda *arguments: os._exit(0)
        run(line)
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _briefly(begin: Callable[..., None]) -> Callable[..., None]:
    """The beginning of a run that ends soon after."""

    def begin_briefly(*arguments: Any, **options: Any) -> None:
        begin(*arguments, **options)
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, TRAINING)

    return begin_briefly


def fault(line: Line, outcome: Outcome) -> str:
    """What is wrong with how a command line ended; empty if nothing is."""
    if "Traceback" in outcome.output or "Error in sys.excepthook" in outcome.output:
        return "traceback"
    if outcome.code == -signal.SIGKILL:
        return "hangs"
    if outcome.code in (0, ExitCode.BROKEN) and line.cannot_be and "usage:" not in outcome.output:
        return "accepted"
    if outcome.code == 0 or (outcome.code == ExitCode.BROKEN and "not finite" in outcome.output):
        return ""  # it was valid
    if outcome.code != ExitCode.BAD_INPUT:
        return f"code {outcome.code}"
    if outcome.left:
        return "folder written"
    last = outcome.output.strip("\n").splitlines()[-1:] or [""]
    if not last[0].startswith("error: ") or outcome.output.count("error: ") > 1:
        return "no sentence"
    if "allocate" in last[0] or "MemoryError" in last[0]:
        return "memory"
    if line.kind != "id" and outcome.seconds > SECONDS:
        return "slow"
    return "large" if outcome.bytes > BYTES else ""


@dataclasses.dataclass(frozen=True)
class Malformed:
    """Type malformed command lines, and see that each is refused in a sentence."""

    lines: int = 300
    """Number of command lines, over all flags in turn."""
    processes: int = 0
    """How many of those that were refused are typed to a new Python too."""
    ids: bool = False
    """Instead train on every registered environment of Gymnasium, with PPO and DQN."""
    seed: int = 0
    """Of the command lines."""
    jobs: int = dataclasses.field(default_factory=usable_cores)
    """Number of command lines at a time."""

    def __post_init__(self) -> None:
        check_numbers(self, ("lines", "jobs"), at_least=1)
        check_numbers(self, ("processes", "seed"), at_least=0)


def make_run(folder: Path) -> None:
    """Make the finished run that is compared and evaluated."""
    command = [sys.executable, str(ROOT / "agents" / "ppo.py"), "cartpole-gravity"]
    command += ["--total-steps", "1024", "--probes.every", "0"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (summary,) = folder.glob("runs/*/*/*/*/summary.json")
    summary.parent.rename(folder / RUN)


def in_new_process(line: Line, folder: Path) -> Outcome:
    """Run a command line as a user does; no time is counted, since Python's start takes the longest."""
    command = [sys.executable, "-m", "neoteny.scripts.command"]
    command += ["train", line.command] if line.command in agent_names() else [line.command]
    done = subprocess.run([*command, *line.words], cwd=folder, capture_output=True, timeout=600, check=False)
    left = files_left(folder)
    return Outcome(done.returncode, (done.stdout + done.stderr).decode(errors="replace"), left, 0.0, 0)


def outcome_of(line: Line, made: Path, ends: Callable[[Line, Path], Outcome]) -> Outcome:
    """How a command line ends in a folder of its own; commands that read runs find one there."""
    with tempfile.TemporaryDirectory() as empty:
        if line.command in ("compare", "evaluate"):
            shutil.copytree(made / RUN, Path(empty) / RUN)
        return ends(line, Path(empty))


def table(lines: Sequence[Line], faults: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """A Markdown table with a row for each kind of line."""
    rows = ["| kind | lines | refused | valid | faults |", "| --- | --- | --- | --- | --- |"]
    for kind in dict.fromkeys(line.kind for line in lines):
        chosen = [at for at, line in enumerate(lines) if line.kind == kind]
        bad = collections.Counter(faults[at] for at in chosen if faults[at])
        refused = sum(outcomes[at].code == ExitCode.BAD_INPUT for at in chosen)
        shown = ", ".join(f"{number} {fault}" for fault, number in bad.items()) or "0"
        rows.append(f"| {kind} | {len(chosen)} | {refused} | {len(chosen) - refused} | {shown} |")
    return "\n".join(rows)


def main(args: Malformed) -> int:
    """Print the table, and each line that ended badly; returns 1 if there is one."""
    lines = list(registered() if args.ids else malformed(args.lines, args.seed))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        make_run(made)
        for name in IMPORTED:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # so that the processes share this one's memory

        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("fork")) as pool:

            def run_all(lines: Sequence[Line], ends: Callable[[Line, Path], Outcome]) -> list[Outcome]:
                made_by = functools.partial(outcome_of, made=made, ends=ends)
                return list(tqdm(pool.map(made_by, lines), total=len(lines), unit="line", mininterval=10))

            outcomes = run_all(lines, type_in)
            refused = [line for line, ended in zip(lines, outcomes) if ended.code == ExitCode.BAD_INPUT]
            again = random.Random(args.seed).sample(refused, min(args.processes, len(refused)))
            outcomes += run_all(again, in_new_process)
    lines += [line._replace(kind="new processes") for line in again]
    faults = [fault(*pair) for pair in zip(lines, outcomes)]
    for line, found, ended in zip(lines, faults, outcomes):
        if found:
            tell(f"{found}: {line.command} {shlex.join(line.words)[:300]!a}\n  {ended.output[-300:]!a}")
    tell(table(lines, faults, outcomes))
    bad = [ended for line, ended in zip(lines, outcomes) if ended.code == ExitCode.BAD_INPUT]
    most = max((ended.seconds for ended in bad), default=0.0), max((ended.bytes for ended in bad), default=0)
    number = sum(map(bool, faults))
    tell(f"\n{number} faults; a refusal took at most {most[0]:.2f} s and {most[1] / 2**20:,.0f} MiB")
    return int(any(faults))


if __name__ == "__main__":
    launch_script(main, Malformed)
