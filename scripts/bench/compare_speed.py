"""Time and memory of a comparison of many runs, some of them broken; the warnings must name those.

Example: python scripts/bench/compare_speed.py --runs 200 --updates 1000
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from neoteny.runners.disk.events import EventWriter
from neoteny.scripts import compare

TAGS = (
    "charts/episodic_return", "charts/episodic_length", "charts/SPS", "losses/policy_loss",
    "losses/value_loss", "losses/entropy", "update/grad_norm", "plasticity/dormant_0.025/max",
    "plasticity/dead/max", "isometry/log10_cond/max",
)  # fmt: skip
VISITS, STEPS = 20, 1_000  # of a run; of an update
DIFFERENT = 8  # runs with events of their own; the others have copies, which take as long to read


def make_run(folder: Path, optimizer: str, seed: int, updates: int, events: Path | None) -> Path:
    """Write a finished run, whose events are copied if there are some."""
    path = folder / "stream" / "ppo" / optimizer / f"s{seed}"
    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    length = updates * STEPS // VISITS
    visits = [
        {"task": i, "start": i * length, "end": (i + 1) * length, "return_auc": value, "return_at_end": value}
        for i, value in enumerate(rng.normal(100, 10, VISITS))
    ]
    args = {"agent": "ppo", "seed": seed, "total_steps": updates * STEPS, "methods": {}}
    args |= {"stream": {"id": "stream"}, "optim": {"name": optimizer}}
    (path / "args.json").write_text(json.dumps(args))
    (path / "summary.json").write_text(json.dumps({"visits": visits}))
    (path / "visits.jsonl").write_text("".join(json.dumps(visit) + "\n" for visit in visits))
    if events is not None:
        shutil.copy(events, path)
        return path
    writer = EventWriter(path, 1)
    for update in range(1, updates + 1):
        writer.metrics(dict(zip(TAGS, rng.random(len(TAGS)))), update * STEPS)
    writer.close()
    return path


def make_runs(folder: Path, number: int, updates: int) -> list[Path]:
    """Write runs, and break some; returns the folders that a comparison must name."""
    made: list[Path] = []
    for i in range(number):
        events = next(made[i % DIFFERENT].glob("events*")) if i >= DIFFERENT else None
        made.append(make_run(folder, ("adam", "adamo")[i % 2], i // 2, updates, events))
    cut, running = made[0], made[1]
    for path in (cut, running):
        (events,) = path.glob("events*")
        events.write_bytes(events.read_bytes()[: -events.stat().st_size // 3])
    (running / "summary.json").unlink()
    foreign = folder / "of another program"
    foreign.mkdir()
    (foreign / "events.out.tfevents.1.host").touch()
    return [cut, foreign]


def main() -> None:
    """Make the runs, compare them, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--updates", type=int, default=1_000, help=f"each with {len(TAGS)} points")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        named = make_runs(Path(name), args.runs, args.updates)
        before = time.process_time()
        compare.main(compare.Compare((Path(name),)))
        seconds = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"\n{args.runs} runs of {args.updates * len(TAGS):,} points: {seconds:.0f} CPU-s, {peak / 1e9:.2f} GB"
    )
    print(f"warnings must have named {' and '.join(map(str, named))}")


if __name__ == "__main__":
    main()
