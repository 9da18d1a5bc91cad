"""Compare optimizers, methods and flags over runs: tables, paired differences, figures, TensorBoard.

python scripts/compare.py runs
python scripts/compare.py runs --over lr --out results/learning-rates
python scripts/compare.py runs --along optim.iso
python scripts/compare.py runs --rows isometry
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import tyro

from neoteny.configs.cli import launch_script, script_args
from neoteny.configs.grid import note_of
from neoteny.runners.args import RunArgs
from neoteny.runners.board import is_charted
from neoteny.runners.disk.exit_codes import ExitCode, bad_input, stop
from neoteny.runners.disk.files import replace_file
from neoteny.runners.disk.folder import check_file
from neoteny.runners.disk.messages import warn
from neoteny.runners.identity import resumable
from neoteny.runners.pooled import write_pooled
from neoteny.runners.results import POOLED, Result, read_results
from neoteny.scripts.comparison_figures import RETURNS, draw, draw_along
from neoteny.scripts.comparison_tables import (
    DIAGNOSTICS,
    HELD,
    ISOMETRY,
    Arm,
    differences,
    held,
    isometry_table,
    markdown,
    number,
    score_tables,
    stop_rule,
)

with bad_input():  # the extra "analysis"
    import matplotlib  # noqa: F401
    import scipy.special  # noqa: F401

ARM = ("optim.", "methods.", "note.", "seed.")
"""Flags that are always compared."""
WATCHING = (*resumable(RunArgs()), "evaluate_at_switch.", "seeds.")
"""Flags that change how a run is watched, kept or computed, but not what it learns."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare optimizers, methods and flags over runs."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that hold runs, finished or not, at any depth."""
    over: tuple[str, ...] = ()
    """Flags that are compared too, besides those of optimizers and methods, such as lr."""
    along: str = ""
    """A flag whose values are compared too, such as optim.iso: the figure has scores against its values."""
    allow_differences: bool = False
    """Compare runs although other flags differ; runs with different flags are never averaged."""
    baseline: str = ""
    """Arm with which the others are compared; by default Adam without methods, or the first."""
    rows: Literal["returns", "isometry"] = "returns"
    """Show returns, or which part of isometry each arm kept."""
    stop_rule: bool = False
    """Say how many more seeds would settle the differences to the baseline."""
    out: Path | None = None
    """Where to write: OUT.md, OUT.csv, OUT.png, OUT.svg; by default "comparison" in the first folder."""
    pooled: bool = True
    """Write the means over seeds for TensorBoard, into the folder "pooled" in the first folder."""

    @property
    def root(self) -> Path:
        """The first folder; of a run the folder of all runs, or its parent if it was moved."""
        first = self.folders[0].resolve()
        if not (first / "args.json").exists():
            return first
        is_in_place = re.fullmatch(r"s\d+", first.name) and len(first.parents) > 3
        return first.parents[3] if is_in_place else first.parent


Group = tuple[str, str]  # names of a stream and an agent


def read_groups(args: Compare) -> dict[Group, list[Result]]:
    """The runs below the folders, by stream and agent; exits with code 2 if there are none."""
    wanted = {*RETURNS, *DIAGNOSTICS.values(), *(ISOMETRY.values() if args.rows == "isometry" else ())}
    exact = {tag for tag in wanted if "*" not in tag}
    patterns = wanted - exact

    def is_wanted(tag: str) -> bool:
        return tag in exact or is_charted(tag) or any(fnmatchcase(tag, pattern) for pattern in patterns)

    groups: dict[Group, list[Result]] = {}
    for result in read_results(args.folders, is_wanted, lambda sentence: warn(f"warning: {sentence}")):
        groups.setdefault(result.place[:2], []).append(result)
    if not groups:
        stop(ExitCode.BAD_INPUT, f"no run below {', '.join(map(str, args.folders)) or 'no folder'}")
    return dict(sorted(groups.items()))


def differing(results: Sequence[Result]) -> dict[str, list[Any]]:
    """Flags whose values differ between runs, but for those that only watch: name -> values."""
    found = {}
    for name in dict.fromkeys(name for result in results for name in result.flags):
        values = {json.dumps(result.flags.get(name)): result.flags.get(name) for result in results}
        if len(values) > 1 and not f"{name}.".startswith(WATCHING):
            found[name] = list(values.values())
    return found


def check_flags(groups: dict[Group, list[Result]], args: Compare) -> None:
    """Exit with code 2 if runs differ in other flags than those that are compared, or a flag does nothing."""
    named = tuple(f"{flag_name(flag)}." for flag in (*args.over, args.along) if flag)
    differ = {group: differing(results) for group, results in groups.items()}
    for flag, prefix in zip(args.over, named):
        if not any(f"{name}.".startswith(prefix) for names in differ.values() for name in names):
            stop(ExitCode.BAD_INPUT, f"--over {flag} does nothing: the runs do not differ in it")
    if args.along:
        check_along(groups, args.along)
    for (stream, agent), names in differ.items():
        others = {name: values for name, values in names.items() if not f"{name}.".startswith((*ARM, *named))}
        if others and not args.allow_differences:
            words = ", ".join(f"{name} ({' and '.join(map(str, of))})" for name, of in others.items())
            stop(
                ExitCode.BAD_INPUT,
                f"runs of {agent} on {stream} differ in {words}: --over compares them by these flags, "
                "--allow-differences whatever they are",
            )


def check_along(groups: dict[Group, list[Result]], flag: str) -> None:
    """Exit with code 2 if the runs of a stream and an agent do not have several numbers for a flag."""
    for (stream, agent), results in groups.items():
        values = [result.flags.get(flag_name(flag)) for result in results]
        known = [value for value in values if value is not None]
        if any(type(value) not in (int, float) for value in known) or len(set(known)) < 2:
            reason = f"--along {flag} needs runs of {agent} on {stream} with several numbers for it"
            stop(ExitCode.BAD_INPUT, reason)


def flag_name(flag: str) -> str:
    """The name of an argument, from a flag as it is typed."""
    return flag.removeprefix("--").replace("-", "_")


def arms_of(results: Sequence[Result]) -> list[Arm]:
    """The runs of a stream and an agent, grouped by optimizer, methods, note, and whatever flags differ.

    An arm is named after these, but for values that most arms share.
    """
    differ = [name for name in differing(results) if not f"{name}.".startswith(ARM)]
    variants: dict[str, list[Result]] = {}
    for result in results:
        variants.setdefault(result.place[2], []).append(result)
    usual = {name: _usual([alike[0].flags.get(name) for alike in variants.values()]) for name in differ}
    arms: dict[str, dict[int, Result]] = {}
    for variant, alike in variants.items():
        within = [name for name in differing(alike) if not f"{name}.".startswith(ARM[2:])]
        between = [
            name
            for name in differ
            if name not in within
            and alike[0].flags.get(name) not in usual[name]
            and not _is_noted(name, alike[0], differ)
        ]
        for result in alike:
            words = [f"{name}={result.flags.get(name)}" for name in (*between, *within)]
            arm = arms.setdefault(" ".join([variant, *words]), {})
            if result.seed in arm:
                warn(f"warning: {result.folder} repeats {arm[result.seed].folder}: left out")
            arm.setdefault(result.seed, result)
    return [Arm(name, [seeds[seed] for seed in sorted(seeds)]) for name, seeds in sorted(arms.items())]


def _usual(values: Sequence[Any]) -> list[Any]:
    """The value of more than half of them, if there is one."""
    return [value for value in values if 2 * values.count(value) > len(values)][:1]


def _is_noted(flag: str, result: Result, others: Sequence[str]) -> bool:
    """Whether the note that a sweep gave to a run tells the value of a flag."""
    return f"-{note_of(flag, result.flags.get(flag), others)}-" in f"-{result.place[2]}-"


def comparable(arms: Sequence[Arm]) -> tuple[list[Arm], str]:
    """What is compared, and a sentence on it if some runs have not finished.

    These are the finished runs, if each arm has one. Else they are all runs that have ended a visit, over the
    visits that all of these have ended, since a mean over part of a stream is not one over the whole.
    """
    if all(result.finished for arm in arms for result in arm.results):
        return list(arms), ""
    finished = [Arm(arm.name, [each for each in arm.results if each.finished]) for arm in arms]
    if all(arm.results for arm in finished):
        return finished, "What follows is of the finished runs."
    begun = [Arm(arm.name, [each for each in arm.results if each.visits]) for arm in arms]
    begun = [arm for arm in begun if arm.results]
    if not begun:
        return [], "No run has ended its first visit."
    visits = min(len(result.visits) for arm in begun for result in arm.results)
    cut = [Arm(arm.name, [each.first_visits(visits) for each in arm.results]) for arm in begun]
    return cut, f"What follows is of the first {visits} visits, which all these runs have ended."


def unfinished_table(arms: Sequence[Arm]) -> str:
    """A row per unfinished run: its progress and its scores so far; empty if there is none."""
    rows = [
        [arm.name, str(result.seed), f"{result.progress:.0%}", str(len(result.visits)), *_so_far(result)]
        for arm in arms
        for result in arm.results
        if not result.finished
    ]
    return (
        markdown(["not finished", "seed", "progress", "visits", "mean return so far"], rows) if rows else ""
    )


def _so_far(result: Result) -> list[str]:
    score = result.scores.get("score/return_auc")
    return ["-" if score is None else number(score)]


def report(group: Group, arms: Sequence[Arm], baseline: str, args: Compare, note: str) -> Iterator[str]:
    """The parts of the text on a stream and an agent."""
    yield f"## {group[1].upper()} on {group[0]}"
    if note:
        yield note
    if not arms:
        return
    if args.rows == "isometry":
        yield isometry_table(arms)
        if lines := list(held(arms)):
            yield f"Held within a factor of {HELD} of the first measurement, throughout and on every seed:"
            yield "\n".join(lines)
    else:
        yield from score_tables(arms)
    reference = next((arm for arm in arms if arm.name == baseline), arms[0])
    if lines := list(differences(arms, reference)):
        yield "\n".join(lines)
    if args.stop_rule:
        yield "\n".join(stop_rule(arms, reference))


def baseline_of(arms: Sequence[Arm], wanted: str) -> str:
    """Name of the arm with which others are compared; exits with code 2 if there is none of that name."""
    names = [arm.name for arm in arms]
    if wanted and wanted not in names:
        stop(ExitCode.BAD_INPUT, f"there is no arm {wanted!r}; there are {', '.join(names)}")
    plain = [arm.name for arm in arms if is_plain_adam(arm.results[0].flags)]
    return wanted or min(plain or names[:1], key=len)


def is_plain_adam(flags: Mapping[str, Any]) -> bool:
    """Whether these are flags of a run with Adam and no method."""
    return flags.get("optim.name") == "adam" and not any(name.startswith("methods.") for name in flags)


def rows_of(group: Group, arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """A row for each run: its names, its progress and its scores."""
    for arm in arms:
        for result in arm.results:
            names = {"stream": group[0], "agent": group[1], "arm": arm.name, "seed": result.seed}
            ends = {tag: row[1][-1] for tag in DIAGNOSTICS.values() if (row := result.points.get(tag))}
            yield {
                **names,
                "progress": result.progress,
                "visits": len(result.visits),
                **result.scores,
                **ends,
            }


def as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as CSV, with the columns of all of them; what was not measured is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def main(args: Compare) -> int:
    """Print and write the comparison; exits with code 2 for runs that should not be compared."""
    if args.out is not None:
        with bad_input():
            check_file(args.out)
    if args.stop_rule:
        with bad_input():
            importlib.import_module("adastop")
    groups = read_groups(args)
    check_flags(groups, args)
    arms = {group: arms_of(results) for group, results in groups.items()}
    baselines = {group: baseline_of(arms[group], args.baseline) for group in groups}
    out = args.out or args.root / "comparison"
    texts, rows = ["# Comparison"], list[dict[str, Any]]()
    for group, all_arms in arms.items():
        compared, note = comparable(all_arms)
        note = "\n\n".join(filter(None, (unfinished_table(all_arms), note)))
        parts = list(report(group, compared, baselines[group], args, note))
        print("\n\n".join(["", *parts]))
        texts += parts
        rows += rows_of(group, all_arms)
        if compared:
            suffix = f"-{group[0]}-{group[1]}" if len(groups) > 1 else ""
            figure = out.with_name(out.name + suffix)
            title = f"{group[1].upper()} on {group[0]}"
            if args.along:
                draw_along(compared, flag_name(args.along), figure, title)
            else:
                draw(compared, figure, title, args.rows == "isometry")
            print(f"\nfigure: {figure}.png and {figure}.svg")
            texts.append(f"![curves]({figure.name}.png)")
        for arm in compared if args.pooled else ():
            name = re.sub(r"[^\w.+=-]+", "_", arm.name)
            write_pooled(args.root / POOLED / group[0] / group[1] / name, arm.results)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out.with_name(f"{out.name}.md"), ("\n\n".join(texts) + "\n").encode())
    replace_file(out.with_name(f"{out.name}.csv"), as_csv(rows))
    print(f"\nwritten: {out}.md and {out}.csv")
    return 0


def run(words: Sequence[str]) -> int:
    """Compare with the words of a command line; returns the exit code."""
    return main(script_args(Compare, words))


if __name__ == "__main__":
    launch_script(main, Compare)
