"""The command line of an agent: a preset, if any, then flags, the optimizer and methods, in any order."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from neoteny.configs.flags import OPTIMIZERS, no_such, refuse_unknown, refuse_unused
from neoteny.configs.help_pages import show_help
from neoteny.configs.method_flags import parse_methods, split_words
from neoteny.configs.parsing import HELP, parse
from neoteny.envs.single.workers import WorkerError
from neoteny.runners.disk.exit_codes import ExitCode, bad_input, stop

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
    """Parse ``[preset] [optim:NAME] [--methods.NAME] [--flags]``.

    Args:
        args_type: the agent's frozen dataclass.
        presets: name -> changes to its defaults.
        argv: the words of the command line, without the program's name.

    Raises:
        SystemExit: code 2 and one sentence on bad input, which a flag that would do nothing is too; code 0
            after a help page.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with bad_input():
        default = args_type()
        if words and not words[0].startswith("-") and ":" not in words[0]:
            name = words.pop(0)
            if name not in presets:
                raise ValueError(no_such("preset", name, presets, "--help"))
            default = override(default, presets[name])
        if any(word in HELP for word in words):
            show_help(default, presets, words)
        args = _parse(default, words, presets)
        refuse_unused(args, words)
        return args


def _parse(default: Config, words: Sequence[str], presets: Iterable[str] = ()) -> Config:
    """The arguments that words make of the default ones; raises ValueError for bad input."""
    others, method_words = split_words(words)  # tyro knows nothing of methods
    # The optimizer comes first, so that its flags may stand before it.
    optimizers = [word for word in others if word.removeprefix("optim:") in OPTIMIZERS and ":" in word]
    if len(set(optimizers)) > 1:
        raise ValueError(f"a run has one optimizer, not {' and '.join(optimizers)}")
    others = optimizers[:1] + [word for word in others if word not in optimizers]
    settings = (tyro.conf.CascadeSubcommandArgs,)
    args: Any
    args, unknown = parse(type(default), others, default=default, config=settings)
    if unknown and unknown[0] in presets:
        raise ValueError(f"a preset is the first word, and {unknown[0]} is not")
    refuse_unknown(args, unknown)
    return dataclasses.replace(args, methods=parse_methods(args.methods, method_words))


def launch(
    main: Callable[[Config], object], args_type: type[Config], presets: Mapping[str, Mapping[str, Any]]
) -> None:
    """Train an agent from the command line.

    Exits with code 2 if agent, stream and machine do not go together, 70 if a worker is given up.
    """
    print_anything()
    args = cli(args_type, presets)
    try:
        main(args)
    except WorkerError as error:
        stop(ExitCode.BROKEN, str(error))


def launch_script(main: Callable[[Config], int], args_type: type[Config]) -> NoReturn:
    """Run a script with the arguments of its command line, and exit with the code that it returns.

    Exits with code 2 and one sentence on bad arguments.
    """
    print_anything()
    raise SystemExit(main(script_args(args_type, sys.argv[1:])))


def script_args(args_type: type[Config], words: Sequence[str]) -> Config:
    """The arguments of a script, which has neither presets nor methods; exits with code 2 on bad ones."""
    with bad_input():
        args, unknown = parse(args_type, words)
        refuse_unknown(args, unknown)
        return args


def print_anything() -> None:
    """Print a question mark for what the terminal's encoding does not have, instead of ending in an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr does so of itself
        sys.stdout.reconfigure(errors="replace")


def read_args(args_type: type[Config], path: Path) -> Config:
    """The arguments that a run's ``args.json`` holds, checked as if they had been typed.

    A file never makes a module imported: that of a user's own stream or method must have been before.

    Raises:
        SystemExit: code 2 and a sentence, if the file holds no such arguments.
    """
    try:
        config = json.loads(path.read_text())
        stream, optimizer = config["stream"]["id"], config["optim"].pop("name")
        wrap = config["stream"].get("wrap") or ""
        if not all(isinstance(name, str) for name in (stream, wrap, optimizer)):
            raise TypeError("stream.id, stream.wrap and optim.name must be texts")
        methods = config.pop("methods", {})
        for module in (name.rpartition(":")[0] for name in (stream, wrap, *methods)):
            if module and module not in sys.modules:
                raise ValueError(f"import {module} first, no file makes it imported")
        config.pop("agent", None)
        words = [f"optim:{optimizer}", *_words(config)]
        for name, fields in methods.items():
            words += [f"--methods.{name}", *_words(fields, f"methods.{name}.")]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        stop(ExitCode.BAD_INPUT, f"{path} holds no arguments of a run: {error}")
    with bad_input():
        return _parse(args_type(), words)


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
