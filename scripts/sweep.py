"""Train every combination of optimizer and seed in parallel; finished runs are skipped.

Flags after -- are passed to every run:

python scripts/sweep.py --preset cartpole-rotations --optims adam adamo --seeds 1 2 3 -- --num-envs 8
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from neoteny.configs.cli import cli, print_anything, script_args
from neoteny.runners.disk.exit_codes import ExitCode, stop
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.sweep import run_all

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
    jobs: int = os.cpu_count() or 1
    """Number of runs in parallel."""


def main(sweep: Sweep, flags: Sequence[str] = ()) -> int:
    """Run the sweep, with ``flags`` for every run; returns 1 if a run failed."""
    agents = sorted(path.stem for path in (ROOT / "agents").glob("*.py") if "launch(" in path.read_text())
    if sweep.agent not in agents:
        stop(
            ExitCode.BAD_INPUT, f"there is no agent {sweep.agent!r} in agents/; there are {', '.join(agents)}"
        )
    module = importlib.import_module(f"neoteny.agents.{sweep.agent}")
    commands, summaries, finished = [], [], 0
    for seed, optim in itertools.product(sweep.seeds, sweep.optims):
        words = [sweep.preset, f"optim:{optim}", "--seed", str(seed), *flags]
        # Parsed here too, so that a bad flag is reported before the first run starts.
        with contextlib.chdir("."):  # a module of the user's may change the working directory
            args = cli(module.Args, module.PRESETS, words)
        summary = run_folder(sweep.agent, args) / "summary.json"
        if summary.exists() and not args.overwrite:
            finished += 1
        else:
            commands.append([sys.executable, str(ROOT / "agents" / f"{sweep.agent}.py"), *words])
            summaries.append((summary, _written(summary)))
    try:
        codes = run_all(commands, sweep.jobs)
    except KeyboardInterrupt:
        print("\n" * min(sweep.jobs, len(commands)) + "stopped; run the same command to resume")
        return int(ExitCode.PREEMPTED)
    # An environment may end the process with code 0 in the middle of a run.
    failed = [
        shlex.join(command)
        for command, code, (summary, before) in zip(commands, codes, summaries)
        if code or _written(summary) == before
    ]
    print("\n" * min(sweep.jobs, len(commands)), end="")
    print(f"{len(commands) - len(failed)} runs done, {finished} were finished before, {len(failed)} failed")
    for command in failed:
        print("failed:", command)
    return int(bool(failed))


def _written(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 if there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


if __name__ == "__main__":
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    print_anything()
    sys.exit(main(script_args(Sweep, words[:split]), flags=words[split + 1 :]))
