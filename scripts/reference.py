"""Compare neoteny's agents, with default flags, with reference implementations on tasks that never change.

The references are Stable-Baselines3 with the settings of rl-zoo3 and a plain loop with those of CleanRL,
trained for as many steps. With --presets, compare what each preset learns with a random policy instead. What
has been trained is kept, so that the same command goes on where it was stopped.

python scripts/reference.py --rows CartPole Acrobot
python scripts/reference.py --presets
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neoteny.configs.cli import FOR_IDS, cli, launch_script, override
from neoteny.runners.disk.events import read_points
from neoteny.runners.disk.exit_codes import ExitCode, bad_input, check_numbers, stop
from neoteny.runners.disk.folder import finished_at, run_folder
from neoteny.runners.intervals import iqm, iqm_interval
from neoteny.runners.results import Points, over_time
from neoteny.runners.scores import early_and_late
from neoteny.runners.sweep import Job, make_slots, run_all, usable_cores
from neoteny.scripts.comparison_tables import markdown, plus_minus

with bad_input():  # the extra "analysis"
    import scipy.special  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
BINS = 20  # parts of a run over which returns are averaged; the last two are its late return


@dataclasses.dataclass(frozen=True)
class Row:
    """A task that never changes."""

    agent: Literal["ppo", "dqn"]
    id: str
    steps: int
    """Those of rl-zoo3, at most 500,000 but for Acrobot."""
    references: tuple[str, ...] = ("sb3", "cleanrl")
    cheap: bool = True
    """Whether it is trained by default."""


ROWS = (
    Row("ppo", "CartPole-v1", 100_000),
    Row("dqn", "CartPole-v1", 50_000),
    Row("dqn", "MountainCar-v0", 120_000),
    Row("dqn", "Acrobot-v1", 100_000),
    Row("ppo", "Acrobot-v1", 1_000_000, cheap=False),
    Row("ppo", "LunarLander-v3", 500_000, cheap=False),
    Row("ppo", "MiniGrid-Empty-8x8-v0", 500_000, ("sb3",), cheap=False),
    Row("ppo", "MiniGrid-DoorKey-5x5-v0", 500_000, ("sb3",), cheap=False),
    Row("ppo", "MiniGrid-FourRooms-v0", 500_000, ("sb3",), cheap=False),
)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Compare neoteny's agents with reference implementations, or presets with a random policy."""

    rows: tuple[str, ...] = ()
    """Parts of the ids of tasks, or of the names of presets, or "all"; by default those that take minutes."""
    seeds: int = 10
    """Number of seeds."""
    first_seed: int = 1
    """The first of them."""
    presets: bool = False
    """Compare what each preset learns with a random policy; presets of over 500,000 steps only if named."""
    references: bool = True
    """Train the reference implementations too."""
    runs_dir: Path = Path("runs/reference")
    """Folder for all runs."""
    jobs: int = dataclasses.field(default_factory=usable_cores)
    """Number of runs in parallel."""

    def __post_init__(self) -> None:
        check_numbers(self, ("seeds", "jobs"), at_least=1)

    @property
    def all_seeds(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclasses.dataclass(frozen=True)
class Training:
    """A command, the path of what it leaves, and how the returns of its run are read from there."""

    command: list[str]
    path: Path
    read: Callable[[Path], Points]

    def is_done(self) -> bool:
        """Whether it was trained."""
        return self.path.is_file() or finished_at(self.path) is not None


def neoteny(agent: str, words: Sequence[str], runs_dir: Path) -> tuple[Any, Training]:
    """The arguments of a run of neoteny, and its training."""
    module = importlib.import_module(f"neoteny.agents.{agent}")
    flags = [*words, "--runs-dir", str(runs_dir), "--probes.every", "0", "--checkpoint-every", "0"]
    args = cli(module.Args, module.PRESETS, flags)
    command = [sys.executable, str(ROOT / "agents" / f"{agent}.py"), *flags]
    return args, Training(command, run_folder(agent, args), returns_of_run)


def returns_of_run(folder: Path) -> Points:
    """Steps, and mean returns of the episodes that ended in each update of a run."""
    steps, returns = zip(*read_points(folder)["charts/episodic_return"])
    return np.array(steps, float), np.array(returns, float)


def returns_in_file(path: Path) -> Points:
    """Steps and returns of the episodes of a reference implementation."""
    steps, returns = zip(*json.loads(path.read_text()))
    return np.array(steps, float), np.array(returns, float)


def trainings(row: Row, args: Reference) -> dict[str, list[Training]]:
    """The runs of a row: implementation -> one for each seed."""
    found: dict[str, list[Training]] = {}
    for optimizer in ("adamo", "adam"):
        words = ["--stream.id", row.id, "--total-steps", str(row.steps), f"optim:{optimizer}"]
        found[optimizer] = [
            neoteny(row.agent, [*words, "--seed", str(seed)], args.runs_dir)[1] for seed in args.all_seeds
        ]
    for name in row.references if args.references else ():
        folder = args.runs_dir / row.id / row.agent / name
        script = [sys.executable, str(ROOT / "scripts" / "reference_agents.py"), name, row.agent, row.id]
        paths = {seed: folder / f"s{seed}.json" for seed in args.all_seeds}
        found[name] = [
            Training([*script, str(row.steps), str(seed), str(path)], path, returns_in_file)
            for seed, path in paths.items()
        ]
    return found


def train(wanted: Sequence[Training], jobs: int) -> None:
    """Train what has not been trained yet.

    Raises:
        SystemExit: code 70 if a run failed.
    """
    missing = [training for training in wanted if not training.is_done()]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are done", flush=True)
    run_all([Job(tuple(training.command), training.path) for training in missing], make_slots(jobs))
    if failed := [training for training in missing if not training.is_done()]:
        stop(ExitCode.BROKEN, f"{len(failed)} runs failed, the first: {' '.join(failed[0].command)}")


def random_return(args: Any, task: int, steps: int = 40_000) -> tuple[float, float]:
    """Return of a random policy in one task of the stream of an agent's arguments, and its standard error.

    Episodes are weighted by their lengths, as in the late return of a run.
    """
    switching = args.stream.schedule().period is not None
    only = {"tasks": (task,), "period": 10**12} if switching else {}
    stream = dataclasses.replace(args.stream, audit="off", **only).make(args.num_envs, seed=args.seed)
    stream.reset()
    stream.action_space.seed(args.seed)
    episodes: list[tuple[float, float]] = []
    while stream.steps < steps or not episodes:
        info = stream.step(stream.action_space.sample())[-1]
        if "episode_return" in info:
            ended = info["_episode_return"]
            episodes += zip(info["episode_return"][ended].tolist(), info["episode_length"][ended].tolist())
    stream.close()
    returns, lengths = np.array(episodes).T
    mean = float((returns * lengths).sum() / lengths.sum())
    return mean, float(np.sqrt(np.square(lengths * (returns - mean)).sum()) / lengths.sum())


def random_late_return(runs: Sequence[tuple[Any, Mapping[str, Any]]]) -> tuple[float, float]:
    """Mean return of a random policy in the late tasks of runs, and the upper end of its 95 % interval.

    Args:
        runs: arguments and summary of each.
    """
    found = []
    for args, summary in runs:
        found += [random_return(args, visit["task"]) for visit in early_and_late(summary["visits"])[1]]
    means, errors = np.array(found).T
    return float(means.mean()), float(means.mean() + 1.96 * np.sqrt(np.square(errors).sum()) / len(errors))


def table_of_rows(args: Reference) -> Iterator[str]:
    """Train and compare on tasks that never change; a table for each."""
    rows = [row for row in ROWS if chosen(f"{row.agent} {row.id}", args.rows, row.cheap)]
    runs = {row: trainings(row, args) for row in rows}
    train([training for arms in runs.values() for arm in arms.values() for training in arm], args.jobs)
    for row, arms in runs.items():
        curves = {
            name: np.stack([over_time(training.read(training.path), row.steps, BINS) for training in arm])
            for name, arm in arms.items()
        }
        yield f"\n{row.agent.upper()} on {row.id}, {row.steps:,} steps, {args.seeds} seeds\n"
        lates = {name: curve[:, -2:].mean(1) for name, curve in curves.items()}
        cells, ours = [], iqm(lates["adamo"])
        for name, late in lates.items():
            middle, low, high = iqm_interval(late)
            reached = "" if name in ("adamo", "adam") else "yes" if ours >= low - 1e-6 else "**no**"
            worst, mean = f"{late.min():.2f}", plus_minus(curves[name].mean(1))
            cells.append([name, f"{middle:.2f} ({low:.2f} to {high:.2f})", worst, mean, reached])
        header = ["", "late return, IQM (95 %)", "worst seed", "mean return over the run", "adamo reaches it"]
        yield markdown(header, cells)
        difference = curves["adamo"] - curves["adam"]
        late, mean = plus_minus(difference[:, -2:].mean(1)), plus_minus(difference.mean(1))
        yield f"\nadamo - adam, paired by seed: late return {late}, mean return {mean}"


def table_of_presets(args: Reference) -> Iterator[str]:
    """Train all presets with Adam and compare their late returns with a random policy."""
    found: dict[tuple[str, str], list[tuple[Any, Training]]] = {}
    for agent in ("ppo", "dqn"):
        module = importlib.import_module(f"neoteny.agents.{agent}")
        for name, changes in module.PRESETS.items():
            short = override(module.Args(), changes).total_steps <= 500_000
            if name in FOR_IDS or not chosen(f"{agent} {name}", args.rows, short):
                continue
            found[agent, name] = [
                neoteny(agent, [name, "optim:adam", "--seed", str(seed)], args.runs_dir)
                for seed in args.all_seeds
            ]
    train([training for arm in found.values() for _, training in arm], args.jobs)
    cells = []
    for (agent, name), arm in found.items():
        summaries = [json.loads((training.path / "summary.json").read_text()) for _, training in arm]
        late = np.array([summary["score/late_return"] for summary in summaries])
        ends = [visit["return_at_end"] for summary in summaries for visit in summary["visits"]]
        best = max(end for end in ends if end is not None)  # in a short visit no episode may have ended
        random, above = random_late_return([(of_run, each) for (of_run, _), each in zip(arm, summaries)])
        learnt = "yes" if late.mean() > above else "**no**"
        cells.append([agent, name, f"{random:.2f}", plus_minus(late), f"{best:.2f}", learnt])
    header = ["agent", "preset", "random policy", "late return", "best task", "above random"]
    yield markdown(header, cells)


def chosen(name: str, rows: Sequence[str], by_default: bool) -> bool:
    """Whether a row was asked for."""
    return any(row == "all" or row in name for row in rows) if rows else by_default


def main(args: Reference) -> int:
    """Train and print the tables."""
    if args.references and not args.presets and not importlib.util.find_spec("stable_baselines3"):
        stop(
            ExitCode.BAD_INPUT, "pip install stable-baselines3, or leave the references out: --no-references"
        )
    for text in table_of_presets(args) if args.presets else table_of_rows(args):
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    launch_script(main, Reference)
