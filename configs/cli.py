"""The command line of an agent: a preset, if any, then flags and the optimizer, in any order."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from neoteny.envs.workers import GivenUpError
from neoteny.runners.exit_codes import ExitCode, stop

Config = TypeVar("Config")


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy of a dataclass with some fields changed; nested dicts change fields of nested dataclasses.

    Raises:
        TypeError: a name is not a field.
    """
    nested = {
        name: override(getattr(config, name), value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **nested)  # type: ignore[type-var]


def check_numbers(
    config: object,
    names: Sequence[str],
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> None:
    """Refuse numbers that are out of range or not finite.

    Raises:
        ValueError: names the flag, its value and its range.
    """
    bounds = (("above", above), ("at least", at_least), ("at most", at_most))
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > above and at_least <= value <= at_most):
            raise ValueError(f"--{name.replace('_', '-')} must be {wanted or 'finite'}, not {value}")


def cli(
    args_type: type[Config], presets: Mapping[str, Mapping[str, Any]], argv: Sequence[str] | None = None
) -> Config:
    """Parse ``[preset] [optim:NAME] [--flags]``; exits with code 2 and a sentence on bad input.

    Args:
        args_type: the agent's frozen dataclass.
        presets: name -> changes to its defaults.
        argv: the words of the command line, without the program's name.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    default = args_type()
    if words and not words[0].startswith("-") and ":" not in words[0]:
        preset = words.pop(0)
        if preset not in presets:
            print(f"error: there is no preset {preset!r}; there are {', '.join(presets)}", file=sys.stderr)
            raise SystemExit(2)
        default = override(default, presets[preset])
    return tyro.cli(
        args_type,
        args=words,
        default=default,
        description=f"{args_type.__doc__}\n\nPresets, as the first word: {', '.join(presets)}",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )


def launch(
    main: Callable[[Config], object], args_type: type[Config], presets: Mapping[str, Mapping[str, Any]]
) -> None:
    """Train an agent from the command line.

    Exits with code 2 if agent, stream and machine do not go together, 70 if a worker is given up.
    """
    args = cli(args_type, presets)
    try:
        main(args)
    except GivenUpError as error:
        stop(ExitCode.BROKEN, str(error))


def read_args(args_type: type[Config], path: Path) -> Config:
    """The arguments that a run's ``args.json`` holds, checked as if they had been typed.

    A file never makes a module imported: that of a stream in a user's own file must have been before.

    Raises:
        SystemExit: code 2 and a sentence, if the file holds no such arguments.
    """
    try:
        config = json.loads(path.read_text())
        stream, optimizer = config["stream"]["id"], config["optim"].pop("name")
        if not (isinstance(stream, str) and isinstance(optimizer, str)):
            raise TypeError("stream.id and optim.name must be texts")
        module = stream.rpartition(":")[0]
        if module and module not in sys.modules:
            raise ValueError(f"import {module} first, no file makes it imported")
        config.pop("agent", None)
        words = [f"optim:{optimizer}", *_words(config)]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        print(f"error: {path} holds no arguments of a run: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    return cli(args_type, {}, words)


def _words(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The flags that say what a nested dict says."""
    for name, value in config.items():
        if not name.isidentifier() or name in ("help", "h"):
            raise ValueError(f"{name!r} is no argument")
        flag = name.replace("_", "-")
        if isinstance(value, Mapping):
            yield from _words(value, f"{prefix}{flag}.")
        elif isinstance(value, bool):
            yield f"--{prefix}{'' if value else 'no-'}{flag}"
        elif isinstance(value, list):
            yield from (f"--{prefix}{flag}", *map(str, value))
        else:
            yield from (f"--{prefix}{flag}", str(value))
