"""Steps per second of training on a GPU: without CUDA graphs, with them, compiled too; Stable-Baselines3's.

python scripts/bench/gpu.py
python scripts/bench/gpu.py --rows "PPO flat" --updates 20
python scripts/bench/gpu.py --prepare          # fill the compiler's cache
python scripts/bench/gpu.py --profile --arms compiled --rows "PPO flat, 4,096"

Each figure is the median over updates, after those that record and compile; the device is waited for at the
end of each update. Prints a table in Markdown. JAX is compared by ``scripts/bench/jax_ppo.py``. A profile
says how long the GPU computes and waits, and which kernels take longest.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import io
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

from neoteny.configs.cli import cli, launch_script
from neoteny.runners.disk.exit_codes import ExitCode, check_numbers, stop
from neoteny.runners.run import Run
from neoteny.scripts import peers

FLAT = (
    "--stream.id MiniGrid-DoorKey-8x8-v0 --stream.observations vectors --network.hidden 64 64 --epochs 4 "
    "--minibatches 4 --lr 2.5e-4 --rewards.normalizer none"
)
IMAGE = "--stream.id MiniGrid-DoorKey-8x8-v0 --network.hidden 64 64 --epochs 4 --minibatches 4 --amp bf16"
ATARI = (
    "atari --stream.games Breakout --stream.period 1000000000 --stream.audit off --num-steps 128 --amp bf16"
)
MINATAR = (
    "minatar --stream.games Breakout --stream.period 1000000000 --stream.audit off --num-envs 2048 "
    "--num-steps 128 --epochs 4 --minibatches 128 --network.hidden 64 64 64 64 optim:adam"
)
DQN = (
    "--stream.id MiniGrid-DoorKey-8x8-v0 --stream.observations vectors --network.hidden 64 64 --num-envs 64 "
    "--log-every 4096 --train-every 64 --gradient-steps 2 --batch-size 32 --learning-starts 4096 "
    "--buffer-size 65536 --target-every 250"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A training whose speed is measured."""

    name: str
    agent: str
    flags: str
    steps: int
    """Environment steps of one update."""
    arms: tuple[str, ...] = ("graphs", "compiled")
    peer: peers.Training | None = None
    """The same for Stable-Baselines3, if it is measured too."""


SB3 = "Stable-Baselines3"
BESIDE = ("graphs", "compiled", SB3)


def flat(num_envs: int, num_steps: int, optim: str = "adam", **more: Any) -> Row:
    """PPO on the agent's view as a vector."""
    name = f"PPO flat, {num_envs:,} x {num_steps}" + (", AdamO" if optim == "adamo" else "")
    flags = f"{FLAT} --num-envs {num_envs} --num-steps {num_steps} optim:{optim}"
    return Row(name, "ppo", flags, num_envs * num_steps, **more)


ROWS = (
    flat(1024, 32, arms=("no graphs", "graphs", "compiled")),
    flat(1024, 32, "adamo", arms=("graphs",)),
    flat(4096, 32, arms=("compiled",)),
    flat(16384, 32, arms=("compiled",)),
    flat(16, 128, arms=BESIDE, peer=peers.Training("flat", 16)),
    flat(256, 128, arms=BESIDE, peer=peers.Training("flat", 256)),
    Row("PPO image, bf16, 4,096 x 32", "ppo", f"{IMAGE} --num-envs 4096 --num-steps 32 optim:adam", 131_072),
    Row("PPO cartpole-rotations, 1,024 x 32", "ppo",
        "cartpole-rotations --num-envs 1024 --num-steps 32 --stream.period 1000000000 --stream.audit off "
        "--epochs 4 optim:adam", 32_768, arms=("compiled",)),
    Row("PPO MinAtar Breakout, 2,048 x 128", "ppo", MINATAR, 262_144, arms=("compiled",)),
    Row("DQN flat, 64, 2 gradient steps of 32", "dqn", f"{DQN} optim:adam", 4096, BESIDE,
        peers.Training("flat", 64, agent="dqn")),
    Row("PPO Breakout, bf16, 8 x 128", "ppo", f"{ATARI} --num-envs 8 optim:adam", 1024, BESIDE,
        peers.Training("atari", 8)),
    Row("PPO Breakout, bf16, 128 x 128", "ppo", f"{ATARI} --num-envs 128 optim:adam", 16_384),
)  # fmt: skip

ARMS = {"no graphs": "--no-graphs", "graphs": "", "compiled": "--compile --matmul-precision high", SB3: ""}
SB3_UPDATES = 3
PROFILED = 3
LONGEST = 300
"""Seconds after which a compilation is given up."""
ON_CPU = {**ARMS, "no graphs": "", "compiled": "--compile"}


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure the speed of training on a GPU."""

    rows: tuple[str, ...] = ()
    """Parts of the names of rows; all by default."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Of "no graphs", "graphs", "compiled" and "Stable-Baselines3"."""
    updates: int = 12
    """Measured updates."""
    warm_up: int = 4
    """Updates before these."""
    device: str = "cuda"
    """Device of the agents."""
    seconds: float | None = None
    """Time after which no further measurement begins."""
    prepare: bool = False
    """Only compile what is measured, all rows at once, so that the compiler's cache has it."""
    profile: bool = False
    """Profile the last three updates of each measurement, which are then slower."""
    one: tuple[str, str] | None = None
    """Measure one row in one arm, and print only its steps per second."""

    def __post_init__(self) -> None:
        check_numbers(self, ("warm_up",), at_least=1)
        check_numbers(self, ("updates",), at_least=PROFILED if self.profile else 1)
        if self.profile and (self.device == "cpu" or self.prepare or self.one):
            raise ValueError("--profile: it is for tables of a GPU, without --prepare and --one")

    @property
    def chosen(self) -> list[Row]:
        """The rows that were asked for."""
        return [row for row in ROWS if not self.rows or any(part in row.name for part in self.rows)]


def measure(row: Row, arm: str, args: Args, profiler: profile | None = None) -> float:
    """Median steps per second of a row; the profiler watches its last updates."""
    if arm == SB3:
        assert row.peer is not None
        seconds = peers.stable_baselines(dataclasses.replace(row.peer, device=args.device), SB3_UPDATES)[:, 0]
        return row.peer.batch / statistics.median(seconds)
    module = importlib.import_module(f"neoteny.agents.{row.agent}")
    times, end_update = [], Run.end_update
    updates = args.updates + args.warm_up + 1

    @contextlib.contextmanager
    def timed(*these: Any, **options: Any) -> Iterator[dict[str, Any]]:
        with end_update(*these, **options) as metrics:
            yield metrics
        if args.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if profiler and len(times) == updates - PROFILED:
            profiler.start()
        elif profiler and len(times) == updates:
            profiler.stop()

    with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.object(Run, "end_update", timed):
        common = (
            f"--total-steps {updates * row.steps} --probes.every 0 --checkpoint-every 0 --runs-dir {folder}"
        )
        chosen = (ON_CPU if args.device == "cpu" else ARMS)[arm]
        words = f"{row.flags} {common} {chosen} --device {args.device}".split()
        # The optimizer's name comes after the agent's flags and before its own.
        words.sort(key=lambda word: word.startswith("optim:"))
        module.main(cli(module.Args, module.PRESETS, words))
    taken = [after - before for before, after in zip(times[args.warm_up :], times[args.warm_up + 1 :])]
    return row.steps / statistics.median(taken)


def measured(row: Row, arm: str, args: Args) -> tuple[str, str]:
    """Steps per second of a row, or the error's name; and the profile that was asked for, or the error."""
    torch._dynamo.reset()
    profiler = profile() if args.profile and arm != SB3 else None
    messages = io.StringIO()
    try:
        with contextlib.redirect_stdout(messages), contextlib.redirect_stderr(messages):
            speed = measure(row, arm, args, profiler)
    except (Exception, SystemExit) as error:
        reason = messages.getvalue() if isinstance(error, SystemExit) else str(error)
        return type(error).__name__, f"\n{row.name}, {arm}: {reason.strip()[-1000:]}"
    return f"{speed:,.0f}", f"\n{row.name}, {arm}: {summary(profiler)}" if profiler else ""


def summary(profiler: profile) -> str:
    """What the GPU did in the profiled updates, in lines."""
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    done = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    busy, waits = busy_and_waits([(event["ts"], event["dur"]) for event in done])
    longest = ", ".join(f"{wait:,.0f}" for wait in sorted(waits, reverse=True)[:8])
    total: collections.Counter[str] = collections.Counter()
    for event in done:
        total[event["name"]] += event["dur"]
    lines = [
        f"microseconds in {PROFILED} updates: {busy:,.0f} busy, {sum(waits):,.0f} waiting ({longest}, ...)"
    ]
    lines += [f"{taken:12,.0f} {name[:90]}" for name, taken in total.most_common(12)]
    return "\n".join(lines)


def busy_and_waits(done: Sequence[tuple[float, float]]) -> tuple[float, list[float]]:
    """How long a device was busy, and how long it waited each time, from starts and durations of its work."""
    busy, waits, end = 0.0, [], math.inf
    for start, duration in sorted(done):
        if start > end:
            waits.append(start - end)
        last = start if end == math.inf else max(start, end)
        end = max(last, start + duration)
        busy += end - last
    return busy, waits


def prepare(row: Row, args: Args) -> str:
    """Compile a row in a process of its own; returns why that failed, if it did."""
    command = [sys.executable, __file__, "--one", row.name, "compiled", "--device", args.device]
    try:
        done = subprocess.run([*command, "--updates", "1"], capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return f"{row.name} is not compiled after {LONGEST} s"
    return f"{row.name}: {done.stderr.strip()[-1000:]}" if done.returncode else ""


def main(args: Args) -> int:
    """Measure and print a table."""
    if args.one:
        row = next(row for row in ROWS if row.name == args.one[0])
        print(json.dumps(measure(row, args.one[1], args)))
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        stop(ExitCode.BAD_INPUT, "there is no CUDA device; --device cpu measures on the CPU")
    if args.prepare:
        rows = [row for row in args.chosen if "compiled" in row.arms]
        with ThreadPoolExecutor(len(ROWS)) as pool:
            failures = list(filter(None, pool.map(lambda row: prepare(row, args), rows)))
        print(*failures, sep="\n", file=sys.stderr, end="\n" if failures else "")
        return 1 if failures else 0
    began = time.monotonic()
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}; steps per second, median of {args.updates} updates\n")
    print("| | " + " | ".join(args.arms) + " |\n|" + " --- |" * (len(args.arms) + 1), flush=True)
    remarks = []
    for row in args.chosen:
        cells = []
        for arm in args.arms:
            cell = about = ""
            if args.seconds is not None and time.monotonic() - began > args.seconds:
                cell = "no time" if arm in row.arms else ""
            elif arm in row.arms:
                cell, about = measured(row, arm, args)
            cells.append(cell)
            remarks.append(about)
        print(f"| {row.name} | " + " | ".join(cells) + " |", flush=True)
    print(*filter(None, remarks), sep="\n", end="")
    return 0


if __name__ == "__main__":
    launch_script(main, Args)
