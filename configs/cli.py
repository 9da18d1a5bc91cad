"""The command line of an agent: a preset, if any, then flags, the optimizer and methods, in any order."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from neoteny.configs.help_pages import HELP, show_help
from neoteny.configs.method_flags import parse_methods, split_words
from neoteny.envs.single.workers import WorkerError
from neoteny.runners.disk.exit_codes import ExitCode, stop

Config = TypeVar("Config")


def preset(shared: Mapping[str, Any], id: str, total_steps: int, iso: float, **stream: Any) -> dict[str, Any]:
    """Changes that are those of other streams too, and what a stream needs beyond them."""
    return {**shared, "stream": {"id": id, **stream}, "total_steps": total_steps, "optim": {"iso": iso}}


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


def cli(
    args_type: type[Config], presets: Mapping[str, Mapping[str, Any]], argv: Sequence[str] | None = None
) -> Config:
    """Parse ``[preset] [optim:NAME] [--methods.NAME] [--flags]``; exits with code 2 on bad input.

    Args:
        args_type: the agent's frozen dataclass.
        presets: name -> changes to its defaults.
        argv: the words of the command line, without the program's name.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    default = args_type()
    if words and not words[0].startswith("-") and ":" not in words[0]:
        name = words.pop(0)
        if name not in presets:
            stop(ExitCode.BAD_INPUT, f"there is no preset {name!r}; there are {', '.join(presets)}")
        default = override(default, presets[name])
    try:
        if any(word in HELP for word in words):
            show_help(default, presets, words)
        words, method_words = split_words(words)  # tyro knows nothing of methods
        settings = (tyro.conf.CascadeSubcommandArgs,)
        args: Any = tyro.cli(args_type, args=words, default=default, config=settings)
        return dataclasses.replace(args, methods=parse_methods(args.methods, method_words))
    except ValueError as error:
        stop(ExitCode.BAD_INPUT, str(error))


def launch(
    main: Callable[[Config], object], args_type: type[Config], presets: Mapping[str, Mapping[str, Any]]
) -> None:
    """Train an agent from the command line.

    Exits with code 2 if agent, stream and machine do not go together, 70 if a worker is given up.
    """
    args = cli(args_type, presets)
    try:
        main(args)
    except WorkerError as error:
        stop(ExitCode.BROKEN, str(error))


def read_args(args_type: type[Config], path: Path) -> Config:
    """The arguments that a run's ``args.json`` holds, checked as if they had been typed.

    A file never makes a module imported: that of a user's own stream or method must have been before.

    Raises:
        SystemExit: code 2 and a sentence, if the file holds no such arguments.
    """
    try:
        config = json.loads(path.read_text())
        stream, optimizer = config["stream"]["id"], config["optim"].pop("name")
        if not (isinstance(stream, str) and isinstance(optimizer, str)):
            raise TypeError("stream.id and optim.name must be texts")
        methods = config.pop("methods", {})
        for module in (name.rpartition(":")[0] for name in (stream, *methods)):
            if module and module not in sys.modules:
                raise ValueError(f"import {module} first, no file makes it imported")
        config.pop("agent", None)
        words = [f"optim:{optimizer}", *_words(config)]
        for name, fields in methods.items():
            words += [f"--methods.{name}", *_words(fields, f"methods.{name}.")]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        stop(ExitCode.BAD_INPUT, f"{path} holds no arguments of a run: {error}")
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
        else:
            values = value if isinstance(value, list) else [value]
            # A text that would be read as another flag, and might have a module imported, is none of a run.
            if any(isinstance(each, str) and each.startswith("-") for each in values):
                raise ValueError(f"{value!r} is no value of {name}")
            yield from (f"--{prefix}{flag}", *map(str, values))
