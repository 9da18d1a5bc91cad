"""Train every combination of optimizer and seed in parallel; finished runs are skipped.

Flags after -- are passed to every run:

python scripts/sweep.py --preset cartpole-rotations --optims adam adamo --seeds 1 2 3 -- --num-envs 8
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from neoteny.configs.cli import cli, script_args
from neoteny.runners.disk.exit_codes import ExitCode, check_numbers, stop
from neoteny.runners.disk.folder import finished_at, run_folder
from neoteny.runners.disk.messages import protect_output
from neoteny.runners.sweep import is_running, run_all, usable_cores

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train every combination of optimizer and seed in parallel."""

    preset: str = "cartpole-rotations"
    """Preset of every run."""
    agent: str = "ppo"
    """Agent, a file in agents/."""
    optims: tuple[str, ...] = ("adam", "adamo")
    """Optimizers to train with."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds to train with."""
    jobs: int = dataclasses.field(default_factory=usable_cores)
    """Number of runs in parallel; by default one for each CPU core that the sweep may use."""

    def __post_init__(self) -> None:
        check_numbers(self, ("jobs",), at_least=1)


def main(sweep: Sweep, flags: Sequence[str] = ()) -> int:
    """Run the sweep, with ``flags`` for every run; returns 1 if a run failed."""
    agents = sorted(path.stem for path in (ROOT / "agents").glob("*.py") if "launch(" in path.read_text())
    if sweep.agent not in agents:
        stop(
            ExitCode.BAD_INPUT, f"there is no agent {sweep.agent!r} in agents/; there are {', '.join(agents)}"
        )
    module = importlib.import_module(f"neoteny.agents.{sweep.agent}")
    commands, folders, finished = [], [], 0
    for seed, optim in itertools.product(sweep.seeds, sweep.optims):
        words = [sweep.preset, f"optim:{optim}", "--seed", str(seed), *flags]
        # Parsed here too, so that a bad flag is reported before the first run starts.
        with contextlib.chdir("."):  # a module of the user's may change the working directory
            args = cli(module.Args, module.PRESETS, words)
        folder = run_folder(sweep.agent, args)
        if finished_at(folder) and not args.overwrite:
            finished += 1
        else:
            commands.append([sys.executable, str(ROOT / "agents" / f"{sweep.agent}.py"), *words])
            folders.append(folder)
    before = list(map(finished_at, folders))

    def instead(number: int) -> int | None:
        """The exit code of a run that another sweep has finished meanwhile, or is training."""
        if finished_at(folders[number]) != before[number]:
            return 0
        return int(ExitCode.TAKEN) if is_running(commands[number], folders[number]) else None

    try:
        codes = run_all(commands, sweep.jobs, instead)
    except KeyboardInterrupt:
        print("\n" * min(sweep.jobs, len(commands)) + "stopped; run the same command to resume")
        return int(ExitCode.PREEMPTED)
    elsewhere = codes.count(int(ExitCode.TAKEN))
    # An environment may end the process with code 0 in the middle of a run.
    done = [code == 0 and finished_at(folder) != was for code, folder, was in zip(codes, folders, before)]
    failed = [
        shlex.join(command)
        for command, code, is_done in zip(commands, codes, done)
        if not is_done and code != ExitCode.TAKEN
    ]
    print("\n" * min(sweep.jobs, len(commands)), end="")
    print(
        f"{sum(done)} runs done, {finished} were finished before, {len(failed)} failed"
        + (f", {elsewhere} are trained by another process" if elsewhere else "")
    )
    for command in failed:
        print("failed:", command)
    return int(bool(failed))


def run(words: Sequence[str]) -> int:
    """Run the sweep of a command line; returns its exit code."""
    split = words.index("--") if "--" in words else len(words)
    return main(script_args(Sweep, words[:split]), words[split + 1 :])


if __name__ == "__main__":
    protect_output()
    sys.exit(run(sys.argv[1:]))
