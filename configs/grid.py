"""A grid of runs: agents, presets, streams, optimizers, methods, and any flags."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neoteny.configs.cli import cli, flag_words
from neoteny.configs.flags import flags as names_of_flags
from neoteny.configs.flags import with_flags
from neoteny.optim import methods_as_dict
from neoteny.runners.disk.files import flatten, to_json
from neoteny.runners.disk.folder import run_folder

Values = Mapping[str, str]
"""Flag, as typed without its dashes -> its value as typed."""


class Agent(NamedTuple):
    """An agent that a grid may train."""

    file: Path
    args_type: type[Any]
    presets: Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is compared: an agent with an optimizer and methods, on a stream.

    Args:
        agent: which is trained.
        begin: the first words of its command lines, a preset or a stream.
        optim: name of the optimizer.
        methods: names of methods, joined by ``+``, or "none".
        flags: words for every run.
        own: words for this arm alone, such as those of its network.
        over: flags of this arm alone, with their values.
    """

    agent: Agent
    begin: tuple[str, ...]
    optim: str
    methods: str
    flags: tuple[str, ...]
    own: tuple[str, ...] = ()
    over: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    _parsed: dict[tuple[str, ...], Any] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def words(self) -> list[str]:
        """The words of its command lines, without those of a grid point and a seed."""
        names = [] if self.methods == "none" else self.methods.split("+")
        methods = (f"--methods.{name}" for name in names)
        own = [*self.begin, f"optim:{self.optim}", *methods, *self.own]
        return with_flags(own, self.flags)

    def parse(self, words: Sequence[str] = ()) -> Any:
        """The agent's arguments, with further words; exits with code 2 and a sentence for bad ones."""
        key = tuple(words)
        if key not in self._parsed:
            with contextlib.chdir("."):  # a module of the user's may change the working directory
                args = cli(self.agent.args_type, self.agent.presets, with_flags(self.words(), words))
            self._parsed[key] = args
        return self._parsed[key]


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of the grid: an arm with values of flags; its runs differ in their seeds."""

    arm: Arm
    values: Values
    words: tuple[str, ...]
    """Of its command lines, without the seed."""
    args: Any

    def of_seed(self, seed: int) -> tuple[list[str], Any]:
        """The words of the command line of a run, and its arguments."""
        return [*self.words, "--seed", str(seed)], dataclasses.replace(self.args, seed=seed)

    def together(self, python: str, seeds: Sequence[int]) -> tuple[str, ...]:
        """The command line of the runs of several seeds in one process."""
        return (python, str(self.arm.agent.file), *self.words, "--seeds", *map(str, seeds))

    def refuses_together(self, seeds: Sequence[int]) -> str:
        """Why seeds cannot be trained in one process; empty if they can."""
        if not hasattr(self.args, "seeds"):
            return f"{self.arm.agent.file.stem} trains one seed at a time"
        try:
            dataclasses.replace(self.args, seeds=tuple(seeds))
        except ValueError as error:
            return str(error)
        return ""

    def command(self, python: str, seed: int) -> tuple[str, ...]:
        """The command line of a run."""
        return (python, str(self.arm.agent.file), *self.of_seed(seed)[0])

    def folder(self, seed: int) -> Path:
        """The folder of a run."""
        return run_folder(str(self.arm.agent.file), dataclasses.replace(self.args, seed=seed))


def values_of(arm: Arm, over: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The flags that an arm has, of a grid and its own: ``optim.iso`` is for AdamO alone.

    Raises:
        ValueError: a flag is set for every run too.
    """
    known, over = names_of_flags(arm.parse()), {**arm.over, **over}
    for word in arm.flags:
        name = word.partition("=")[0].removeprefix("--")
        if word.startswith("--") and (name == "seed" or any(_same(name, flag) for flag in over)):
            raise ValueError(f"the sweep sets --{name} for each run: it cannot be set for all of them too")
    return {flag: values for flag, values in over.items() if flag.replace("-", "_") in known}


def point(arm: Arm, values: Values, more: Sequence[str] = (), named: Iterable[str] = ()) -> Point:
    """A point of the grid.

    Args:
        arm: of the grid.
        values: of its flags; the note that is part of a run's folder is made from them.
        more: further words.
        named: all flags of the sweep, so that those of the same last name are told apart.
    """
    before = _config(arm.parse(more))
    words = [*more]
    for flag, value in values.items():
        words = with_flags(words, _flag_words(flag, value, before[flag.replace("-", "_")]))
    args = arm.parse(words)
    after = _config(args)
    known = {*arm.over, *named}
    notes = [note_of(flag, after[flag.replace("-", "_")], known) for flag in values]
    note = "-".join(filter(None, (args.note, *notes)))
    if notes:
        words = with_flags(words, ["--note", note])
    return Point(arm, values, tuple(with_flags(arm.words(), words)), dataclasses.replace(args, note=note))


def combinations(over: Mapping[str, Sequence[str]]) -> Iterator[Values]:
    """All combinations of the values of flags."""
    for values in itertools.product(*over.values()):
        yield dict(zip(over, values))


def _config(args: Any) -> dict[str, Any]:
    """All arguments, by names such as ``stream.id``."""
    return flatten(to_json({**dataclasses.asdict(args), "methods": methods_as_dict(args.methods)}))


def _flag_words(flag: str, value: str, before: Any) -> list[str]:
    """The words that set a flag whose value is ``before``; of a tuple, a value has all elements: "64 64"."""
    if isinstance(before, bool):
        if value not in ("true", "false"):
            raise ValueError(f"--over {flag} takes true and false, not {value}")
        prefix, _, last = flag.rpartition(".")
        return list(flag_words({last.replace("-", "_"): value == "true"}, f"{prefix}." if prefix else ""))
    return [f"--{flag}", *shlex.split(value)]


def note_of(flag: str, value: Any, named: Iterable[str]) -> str:
    """A flag and its value as a part of a folder's name: ``lr0.001``."""
    name = flag.replace("-", "_")
    last = name.rpartition(".")[2]
    if sum(each.replace("-", "_").rpartition(".")[2] == last for each in named) > 1:
        last = name
    if isinstance(value, bool):
        return last if value else f"no_{last}"
    values = value if isinstance(value, list) else [value]
    text = "x".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)
    return re.sub(r"[^\w.-]", "_", f"{last}{text}")


def _same(one: str, other: str) -> bool:
    one, other = (name.replace("-", "_") for name in (one, other))
    return one == other or re.sub(r"(^|\.)no_(\w+)$", r"\1\2", one) == other
