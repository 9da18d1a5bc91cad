"""Train a grid of runs side by side; what is finished is skipped, and what was interrupted goes on.

The grid has all combinations of agents, presets or streams, optimizers, methods, seeds and values of flags.
Flags after -- are for every run:

python scripts/sweep.py --presets cartpole-rotations --optims adam adamo --seeds 1 2 3 -- --num-envs 8
python scripts/sweep.py --over lr 1e-3 3e-4 --over optim.iso 0.05 0.1 0.2 --dry-run
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from neoteny.runners.disk.preemption import end_at_signals

    end_at_signals()

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from neoteny.configs.arms import ARMS
from neoteny.configs.cli import script_args
from neoteny.configs.flags import no_such, with_flags
from neoteny.configs.grid import Agent, Arm, Point, combinations, point, values_of
from neoteny.configs.limits import check_repeated
from neoteny.configs.words import words_of
from neoteny.runners import references, tuning
from neoteny.runners.disk.attempts import latest_attempt
from neoteny.runners.disk.claims import claim
from neoteny.runners.disk.exit_codes import ExitCode, bad_input, check_numbers, stop
from neoteny.runners.disk.files import read_json, write_json
from neoteny.runners.disk.folder import finished_at, run_folder
from neoteny.runners.disk.messages import protect_output, tell
from neoteny.runners.identity import Identity
from neoteny.runners.sweep import Job, Outcome, State, make_slots, run_all, usable_cores
from neoteny.scripts.agent_files import load_agent

DEFAULT = "cartpole-rotations"
# A reference's agent is Adam without methods, at the learning rate of the preset.
OF_OPTIMIZER = ("lr", "optim.", "methods.")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train a grid of runs side by side."""

    presets: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--preset"])] = ()
    """Presets to train with; cartpole-rotations if there are neither presets nor streams."""
    streams: tuple[str, ...] = ()
    """Streams to train on, by id, each with the presets for its kind; besides those of --presets."""
    agents: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--agent"])] = ("ppo",)
    """Agents: those of neoteny by name, files of your own ending in .py."""
    optims: tuple[str, ...] = ("adam", "adamo")
    """Optimizers to train with."""
    methods: tuple[str, ...] = ("none",)
    """Plasticity methods to train with: "none", the name of one, or names joined by +."""
    arms: tuple[str, ...] = ()
    """Instead of --optims and --methods: arms by name, each with its own flag to tune and three values of it;
    `neoteny list arms` shows them."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds to train with."""
    over: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """A flag and its values, such as lr 1e-3 3e-4; once for each flag. Runs whose optimizer, methods or agent
    do not have the flag are trained without it."""
    reference: Literal["none", "base", "fresh"] = "none"
    """Also train fresh agents on each task of each run, with the budget of one visit, for the plasticity
    gap: with Adam and no method (base), or these and others with the optimizer and methods of the run."""
    tune_on: float | None = None
    """Choose among the values of --over by trials on this first share of the stream, such as 0.2; then train
    with the best values of each optimizer and methods."""
    tune_seeds: tuple[int, ...] = ()
    """Seeds of the trials, none of --seeds."""
    trials: int | None = None
    """Trials for each optimizer and methods: drawn from the values of --over, or by Optuna from a range such
    as 1e-4..1e-2; by default all combinations."""
    batch_seeds: int = 1
    """Train up to this many seeds in one process, several times as fast in all, with agents and methods that
    allow it; the results are those of separate runs but for rounding."""
    jobs: int | None = None
    """Number of runs in parallel; by default as many as the cores that the sweep may use, or the shares of
    GPUs."""
    gpus_per_run: float = 0.0
    """Share of a GPU for each run with --device cuda, such as 0.25."""
    retries: int = 2
    """How often a run that has crashed is tried again."""
    cluster: str | None = None
    """Train on a Ray cluster: "auto" for the one that this machine belongs to, or HOST:PORT."""
    only: int | None = None
    """Train the run of this number alone, from 0, in the order of --dry-run: for arrays of jobs."""
    dry_run: bool = False
    """Print the command lines, and what has been done of each, and train nothing."""

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other or would do nothing."""
        check_numbers(self, ("retries",), at_least=0, at_most=1_000)
        check_numbers(self, ("gpus_per_run",), at_least=0, at_most=1)
        check_numbers(self, ("batch_seeds",), at_least=1, at_most=1_000)
        for name, most in (("jobs", 1_000), ("trials", 10**6)):
            if getattr(self, name) is not None:
                check_numbers(self, (name,), at_least=1, at_most=most)
        if self.arms and (self.optims, self.methods) != (Sweep.optims, Sweep.methods):
            raise ValueError("--arms are optimizers and methods: they take neither --optims nor --methods")
        if unknown := [name for name in self.arms if name not in ARMS]:
            raise ValueError(no_such("arm", unknown[0], ARMS, "neoteny list arms"))
        if any(len(words) < 2 for words in self.over):
            raise ValueError("--over takes a flag and its values, such as lr 1e-3 3e-4")
        flags = [words[0].replace("-", "_") for words in self.over]
        if len(set(flags)) < len(flags):
            raise ValueError("--over has a flag twice: give it once, with all its values")
        if self.cluster is not None and self.jobs is not None:
            raise ValueError("--jobs is for one machine: on a cluster, Ray counts the cores")
        if self.tune_on is None:
            if self.tune_seeds or self.trials:
                raise ValueError("--tune-seeds and --trials do nothing without --tune-on")
            return
        check_numbers(self, ("tune_on",), above=0, at_most=1)
        if not (self.over or self.arms) or not self.tune_seeds:
            raise ValueError("--tune-on needs --over, what is chosen, and --tune-seeds, apart from --seeds")
        if shared := set(self.tune_seeds) & set(self.seeds):
            raise ValueError(f"--tune-seeds and --seeds must differ, but share {sorted(shared)}")
        if self.only is not None:
            raise ValueError("--only cannot be combined with --tune-on, whose runs depend on each other")


def agent_of(name: str) -> Agent:
    """An agent, by its name or by the file of a user's own; ValueError if there is none."""
    module = load_agent(name)
    return Agent(Path(module.__file__ or name), module.Args, module.PRESETS)


def arms_of(sweep: Sweep, flags: Sequence[str]) -> list[Arm]:
    """The arms of a sweep: agent, preset or stream, optimizer and methods."""
    begins: list[tuple[str, ...]] = [(preset,) for preset in sweep.presets] + [
        ("--stream.id", id) for id in sweep.streams
    ]
    agents = [agent_of(name) for name in sweep.agents]
    places = list(itertools.product(agents, begins or [(DEFAULT,)]))
    if sweep.arms:
        return [
            Arm(agent, begin, arm.optim, arm.methods, tuple(flags), arm.words, {arm.flag: arm.values})
            for agent, begin in places
            for arm in map(ARMS.__getitem__, sweep.arms)
        ]
    return [
        Arm(agent, begin, optim, methods, tuple(flags))
        for agent, begin in places
        for optim, methods in itertools.product(sweep.optims, sweep.methods)
    ]


def points_of(sweep: Sweep, arms: Sequence[Arm]) -> list[Point]:
    """All points of the grid.

    Raises:
        ValueError: a flag has a range, which is for tuning, or no arm has it.
    """
    over = {flag: values for flag, *values in sweep.over}
    for flag, values in over.items():
        if any(map(tuning.Range.read, values)):
            raise ValueError(f"--over {flag} has a range, which needs --tune-on")
    return [
        point(arm, values, named=over)
        for arm, space in zip(arms, spaces_of(arms, over))
        for values in combinations(space)
    ]


def spaces_of(arms: Sequence[Arm], over: Mapping[str, Sequence[str]]) -> list[dict[str, Sequence[str]]]:
    """For each arm, the flags of the grid that it has, and its own; a flag that none has is refused."""
    spaces = [values_of(arm, over) for arm in arms]
    for flag, values in over.items():
        if not any(flag in space for space in spaces):
            arms[0].parse([f"--{flag}", *shlex.split(values[0])])
            raise ValueError(f"there is no flag --{flag}")
    return spaces


def job_of(point: Point, seed: int) -> Job:
    """A run of a point of the grid; with ``--overwrite`` it replaces a finished one."""
    folder = point.folder(seed)
    replaces = finished_at(folder) if point.args.overwrite else None
    return Job(point.command(sys.executable, seed), folder, replaces)


def jobs_of(points: Sequence[Point], seeds: Sequence[int], batch: int) -> list[Job]:
    """The runs of points of the grid with all seeds, at most ``batch`` of them in a process where it can be.

    Seeds that are trained one by one nevertheless are reported, with the reason.

    Raises:
        ValueError: where one would be trained there is a finished run with other arguments.
    """
    for each in points:
        check_finished(each, seeds)
    parts = [seeds[start : start + batch] for start in range(0, len(seeds), batch)]
    alone: dict[str, None] = {}
    jobs = []
    for part in parts:
        for each in points:
            if len(part) > 1 and not (reason := each.refuses_together(part)):
                *others, path = map(each.folder, part)
                replaces = finished_at(path) if each.args.overwrite else None
                jobs.append(Job(each.together(sys.executable, part), path, replaces, tuple(others)))
            else:
                if len(part) > 1:
                    alone[f"{each.folder(part[0]).parent}: {reason}"] = None
                jobs += [job_of(each, seed) for seed in part]
    for reason in alone:
        tell(reason)
    return jobs


def check_finished(point: Point, seeds: Sequence[int]) -> None:
    """Raise ValueError if a finished run that would be skipped is not the one of this point of the grid."""
    folders = [] if point.args.overwrite else map(point.folder, seeds)
    if finished := [folder for folder in folders if finished_at(folder) is not None]:
        identity = Identity(str(point.arm.agent.file), point.args)
        for folder in finished:
            identity.check_finished(folder)


def distinct(jobs: Sequence[Job]) -> list[Job]:
    """Jobs without repetitions.

    Raises:
        ValueError: two different ones would write to one folder.
    """
    by_folder: dict[Path, Job] = {}
    for job in jobs:
        if by_folder.setdefault(job.path, job) != job:
            one, other = (shlex.join(each.command[2:]) for each in (by_folder[job.path], job))
            raise ValueError(f"two runs would share the folder {job.path}: {one}; and {other}")
    return list(by_folder.values())


class References:
    """The references of the runs of a sweep; those that several runs share are trained once.

    Args:
        points: of the grid.
        seeds: of the runs.
        own: whether there are references with the optimizer and methods of each run too.

    Raises:
        ValueError: a stream does not switch, or a visit is shorter than an update.
    """

    def __init__(self, points: Sequence[Point], seeds: Sequence[int], own: bool = True) -> None:
        self.jobs: dict[Path, Job] = {}
        self.of_run: dict[Path, dict[str, dict[int, Path]]] = {}
        self._words: dict[Any, list[str]] = {}
        for each in points:
            plain = dataclasses.replace(each.arm, methods="none", own=(), over={})
            values = {flag: v for flag, v in each.values.items() if not f"{flag}.".startswith(OF_OPTIMIZER)}
            kinds = {"base": references.base_args(point(plain, values).args)}
            if own:
                kinds["own"] = each.args
            code = references.code_of(each.arm.agent.file)
            for seed in seeds:
                self.of_run[each.folder(seed)] = {
                    kind: self._add(each, args, seed, code) for kind, args in kinds.items()
                }

    def _add(self, point: Point, args: Any, seed: int, code: Mapping[str, Any]) -> dict[int, Path]:
        """Add the references of a run of one kind; returns their folders by task."""
        agent, of_run = point.arm.agent, dataclasses.replace(point.args, seed=seed)
        common, folders = references.reference_args(args), {}
        key = (agent.file, point.arm.begin, common)
        if key not in self._words:
            self._words[key] = words_of(common, agent.presets, point.arm.begin)
        for task in references.tasks_of(of_run):
            alone = references.with_task(common, of_run, task, code)
            folders[task] = run_folder(str(agent.file), alone)
            words = with_flags(self._words[key], references.task_words(alone))
            job = Job((sys.executable, str(agent.file), *words), folders[task])
            self.jobs.setdefault(folders[task], job)
        return folders

    def write(self, runs: Iterable[Path]) -> None:
        """Write ``references.json`` into the folder of each of the runs that has finished."""
        for run in runs:
            if run in self.of_run and finished_at(run) is not None:
                references.write_references(run, self.of_run[run])


def tune(sweep: Sweep, arms: Sequence[Arm]) -> list[Point]:
    """Choose the values of flags of each arm on the first part of the stream; returns the points to train.

    All that was tried, and what was chosen, is written to ``tuning/tuning.json`` in the folder of the runs.

    Raises:
        ValueError: the arms would have different numbers of trials.
    """
    over = {flag: values for flag, *values in sweep.over}
    spaces = spaces_of(arms, over)
    names = [str(point(arm, {}).folder(0).parent) for arm in arms]
    number = tuning.budget(dict(zip(names, spaces)), sweep.trials)
    trials: list[list[tuning.Trial]] = [[] for _ in arms]
    while len(trials[0]) < number:
        proposed = [tuning.propose(space, known, number) for space, known in zip(spaces, trials)]
        made = [
            [(tuning.Trial(values), _first_part(sweep, arm, values, over)) for values in of_arm]
            for arm, of_arm in zip(arms, proposed)
        ]
        points = [each for of_arm in made for _, each in of_arm]
        jobs = distinct(jobs_of(points, sweep.tune_seeds, sweep.batch_seeds))
        if sweep.dry_run and not all(job.is_done() for job in jobs):
            list_commands(jobs)
            tell("the other runs depend on the results of these")
            return []
        train(sweep, jobs, [each.args for each in points])
        for known, of_arm in zip(trials, made):
            for trial, each in of_arm:
                trial.scores = {seed: tuning.score_of(each.folder(seed)) for seed in sweep.tune_seeds}
                known.append(trial)
    _record(sweep, arms, trials)
    chosen = [tuning.best(known) for known in trials]
    return [point(arm, trial.flags, named=over) for arm, trial in zip(arms, chosen) if trial is not None]


def _first_part(sweep: Sweep, arm: Arm, values: Mapping[str, str], over: Mapping[str, Any]) -> Point:
    """A point whose runs end after the first part of the stream."""
    args, share = point(arm, values).args, sweep.tune_on or 1.0
    words = ["--runs-dir", str(args.runs_dir / "tuning")]
    if hasattr(args, "total_steps"):
        words += ["--stream.cycles", "None", "--total-steps", str(int(args.total_steps * share))]
    else:  # supervised
        words += ["--num-tasks", str(max(1, int(args.num_tasks * share)))]
    return point(arm, values, words, over)


def _record(sweep: Sweep, arms: Sequence[Arm], trials: Sequence[Sequence[tuning.Trial]]) -> None:
    """Write what was tried and chosen, and print what was chosen."""
    for arm, known in zip(arms, trials):
        folder = point(arm, {}).folder(0).parent
        path = Path(arm.parse().runs_dir) / "tuning" / "tuning.json"
        found, name = tuning.best(known), "/".join(folder.parts[-3:])
        rows = [{"flags": trial.flags, "score": trial.score, "scores": trial.scores} for trial in known]
        about = {"first_part": sweep.tune_on, "score": tuning.SCORE, "chosen": found and found.flags}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**(read_json(path) or {}), name: {**about, "trials": rows}})
        if found is None:
            tell(f"{name}: all {len(known)} trials failed, so it is not trained")
        else:
            values = ", ".join(f"{flag} {value}" for flag, value in found.flags.items())
            tell(f"{name}: {values}, the best of {len(known)} trials ({path})")


def train(sweep: Sweep, jobs: Sequence[Job], args: Sequence[Any]) -> list[Outcome]:
    """Run the jobs that are not done yet, on this machine or on a cluster.

    Args:
        sweep: how.
        jobs: what to run.
        args: arguments of the runs, for the resources that they need.

    Returns:
        Outcomes of those that were not done before.
    """
    todo = [job for job in jobs if not job.is_done()]
    threads = max((each.threads for each in args), default=1)
    if sweep.gpus_per_run and any(each.device != "cuda" for each in args):
        raise ValueError("--gpus-per-run is for runs on a GPU that the sweep chooses: add -- --device cuda")
    if sweep.cluster is not None and not sweep.gpus_per_run and any(each.device != "cpu" for each in args):
        raise ValueError("--cluster needs --gpus-per-run for runs on a GPU")
    try:
        if sweep.cluster is not None:
            from neoteny.runners.cluster import run_on_cluster  # the extra "cluster"

            return run_on_cluster(todo, sweep.cluster, threads, sweep.gpus_per_run, sweep.retries)
        most = sweep.jobs or max(1, usable_cores() // threads)
        return run_all(todo, make_slots(min(most, max(1, len(todo))), sweep.gpus_per_run), sweep.retries)
    except OSError as error:
        stop(ExitCode.IO, f"the folder of the runs cannot be used: {error}")


def list_commands(jobs: Sequence[Job]) -> None:
    """Print the command line of each job, with a comment on what has been done of it."""
    for job in jobs:
        state = ""
        if job.is_done():
            state = "finished"
        elif not job.path.parent.exists():
            state = "not started"
        elif (held := claim(job.path, *job.others)) is None:
            state = "running"
        else:
            held.release()
            state = "interrupted" if latest_attempt(job.path) else "not started"
        tell(f"{shlex.join(job.command)}  # {state}")


def report(jobs: Sequence[Job], before: int, outcomes: Sequence[Outcome]) -> int:
    """Print what became of the jobs; returns the exit code of the sweep."""
    states = [outcome.state for outcome in outcomes]
    done = states.count(State.DONE) + states.count(State.DONE_ELSEWHERE)
    elsewhere = states.count(State.TAKEN)
    failed = [(job, outcome) for job, outcome in zip(jobs, outcomes) if outcome.state == State.FAILED]
    tell(
        f"{done} runs done, {before} were finished before, {len(failed)} failed"
        + (f", {elsewhere} are trained by another process" if elsewhere else "")
    )
    for job, outcome in failed:
        tell(f"failed: {shlex.join(job.command)}: {outcome.reason}")
    return int(bool(failed))


def main(sweep: Sweep, flags: Sequence[str] = ()) -> int:
    """Run the sweep, with ``flags`` for every run; returns 1 if a run failed, 75 if it was stopped."""
    try:
        with bad_input():
            return _main(sweep, flags)
    except KeyboardInterrupt:
        tell("stopped; run the same command to resume")
        return int(ExitCode.PREEMPTED)


def _main(sweep: Sweep, flags: Sequence[str]) -> int:
    check_repeated(flags, Sweep)
    arms = arms_of(sweep, flags)
    points = tune(sweep, arms) if sweep.tune_on is not None else points_of(sweep, arms)
    jobs = distinct(jobs_of(points, sweep.seeds, sweep.batch_seeds))
    added = None
    if sweep.reference != "none":
        added = References(points, sweep.seeds, own=sweep.reference == "fresh")
    if added is not None:
        there = sum(job.is_done() for job in added.jobs.values())
        tell(f"{len(added.jobs)} references, of which {there} are there already")
        jobs += added.jobs.values()
    if sweep.only is not None:
        if not 0 <= sweep.only < len(jobs):
            raise ValueError(f"--only must be at least 0 and below {len(jobs)}, the number of runs")
        jobs = [jobs[sweep.only]]
    if sweep.dry_run:
        list_commands(jobs)
        return 0
    todo = [job for job in jobs if not job.is_done()]
    outcomes = train(sweep, todo, [each.args for each in points])
    if added is not None:
        added.write(path for job in jobs for path in (job.path, *job.others))
    code = report(todo, len(jobs) - len(todo), outcomes)
    return code or int(len(points) < len(arms))


def run(words: Sequence[str]) -> int:
    """Run the sweep of a command line; returns its exit code."""
    split = words.index("--") if "--" in words else len(words)
    return main(script_args(Sweep, words[:split]), words[split + 1 :])


if __name__ == "__main__":
    protect_output()
    sys.exit(run(sys.argv[1:]))
