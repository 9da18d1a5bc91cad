"""Sweeps whose processes are killed at random moments, for tests, and for larger numbers as a script.

python -m tests.killed_sweep --runs 8 --kills 30 --sweeps 2 --seed 1
python -m tests.killed_sweep --real --runs 4 --kills 10 --steps 4096
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from neoteny.runners.sweep import Job, make_slots, run_all

STUB = Path(__file__).with_name("stub_run.py")


def stub_jobs(folder, runs, steps=20, pause=0.01):
    """Jobs of stand-ins for runs."""
    folders = [folder / f"s{number}" for number in range(runs)]
    return [Job((sys.executable, str(STUB), str(each), str(steps), str(pause)), each) for each in folders]


def real_jobs(folder, runs, steps):
    """Jobs of tiny runs of PPO, and their arguments."""
    from neoteny.configs.flags import with_flags
    from neoteny.runners.disk.folder import run_folder
    from tests.tiny_runs import FLAGS, ROOT, small  # only here, since it takes seconds

    args = [small(folder, seed=seed, total_steps=steps) for seed in range(1, runs + 1)]
    common = (
        sys.executable,
        str(ROOT / "agents" / "ppo.py"),
        *with_flags(FLAGS.split(), ["--total-steps", str(steps)]),
    )
    own = [("--runs-dir", str(folder), "--seed", str(each.seed)) for each in args]
    return [Job((*common, *words), run_folder("ppo", each)) for words, each in zip(own, args)], args


def sweep(jobs, width):
    """A whole sweep, as a process's target."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run_all([job for job in jobs if not job.is_done()], make_slots(width), retries=1000)


def started(jobs, width=2):
    """A process with a sweep."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["neoteny.runners.sweep"])
    process = context.Process(target=sweep, args=(jobs, width))
    process.start()
    return process


def disturb(jobs, kills, sweeps, rng, pause=0.1, limit=120):
    """Run sweeps side by side on one folder, and kill their processes until all is done.

    Args:
        jobs: of each of the sweeps.
        kills: how often something is killed: a run, three runs at once, or a sweep, which is started again.
        sweeps: number of sweeps.
        rng: decides what and when.
        pause: mean seconds between kills.
        limit: seconds after which it has failed.

    Returns:
        Names of what was killed.
    """
    processes, killed, start = [started(jobs) for _ in range(sweeps)], [], time.monotonic()
    while any(process.is_alive() for process in processes):
        assert time.monotonic() < start + limit, f"not done after {limit} s: {killed}"
        time.sleep(rng.expovariate(1 / pause) if len(killed) < kills else 0.02)
        if len(killed) >= kills:
            continue
        what = rng.choice(("run", "run", "three runs", "sweep"))
        if what == "sweep":
            place = rng.randrange(sweeps)
            if processes[place].is_alive():
                processes[place].kill()
                processes[place].join()
                processes[place] = started(jobs)
                killed.append(what)
            continue
        alive = sorted(running(jobs))
        for process in rng.sample(alive, min(len(alive), 3 if what == "three runs" else 1)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                killed.append("run")
    assert all(process.exitcode == 0 for process in processes)
    return killed


def running(jobs):
    """Ids of the processes that work on runs."""
    for job in jobs:
        for attempt in sorted((job.path / "attempts").glob("*.json"))[-1:]:
            with contextlib.suppress(ValueError, KeyError, OSError):
                process = json.loads(attempt.read_text())["pid"]
                if str(job.command[1]) in Path(f"/proc/{process}/cmdline").read_text():
                    yield process


def main():
    """Kill stand-ins for runs, or real ones, and print what became of them."""
    parser = argparse.ArgumentParser()
    for name, default in (("runs", 8), ("kills", 30), ("sweeps", 2), ("seed", 1), ("steps", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--pause", type=float, default=0.1, help="mean seconds between kills")
    parser.add_argument("--real", action="store_true", help="tiny runs of PPO instead of stand-ins")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("calm", "wild")]
        if args.real:
            (calm, ends), (wild, others) = (real_jobs(place, args.runs, args.steps) for place in places)
        else:
            calm, wild = (stub_jobs(place, args.runs, args.steps, 0.02) for place in places)
            ends, others = calm, wild
        run_all(calm, make_slots(2 if args.real else 4))
        killed = disturb(wild, args.kills, args.sweeps, random.Random(args.seed), args.pause, limit=3600)
        same = [left(one, args.real) == left(other, args.real) for one, other in zip(ends, others)]
        attempts = sum(len(list((job.path / "attempts").iterdir())) for job in wild)
        print(f"killed: {killed.count('run')} runs, {killed.count('sweep')} sweeps; ", end="")
        print(f"{sum(same)} of {args.runs} equal, {attempts} attempts, {wrong(wild)} wrong")


def left(run, is_real):
    """What a run has left: of a job of a stand-in, or of the arguments of a real run."""
    if not is_real:
        return summary(run)
    from tests.tiny_runs import outcome

    return {name: value for name, value in outcome(run).items() if name != "points"}


def summary(job):
    """What a run has left."""
    return (job.path / "summary.json").read_bytes()


def wrong(jobs):
    """Runs that two processes have worked on at once, or that were made twice."""
    return [
        str(path) for job in jobs for path in job.path.iterdir() if "twice" in path.name or "two" in path.name
    ]


if __name__ == "__main__":
    main()
