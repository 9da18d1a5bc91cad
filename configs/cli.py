"""The command line of an agent: an optional preset, then flags, the optimizer and methods in any order."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from neoteny.configs.flags import OPTIMIZERS, no_such, refuse_unknown, refuse_unused
from neoteny.configs.help_pages import show_help
from neoteny.configs.limits import check_repeated, check_values, check_words
from neoteny.configs.method_flags import parse_methods, split_words
from neoteny.configs.parsing import HELP, parse
from neoteny.envs.checks import BrokenEnvironmentError
from neoteny.envs.observations import Kind
from neoteny.envs.single.workers import WorkerError
from neoteny.envs.tasks import SpacesError
from neoteny.runners.disk.exit_codes import ExitCode, Stop, bad_input, reason, stop
from neoteny.runners.disk.messages import protect_output, tell

Config = TypeVar("Config")


def preset(shared: Mapping[str, Any], id: str, total_steps: int, iso: float, **stream: Any) -> dict[str, Any]:
    """A preset: changes that several streams share, and those for this stream."""
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
    args_type: type[Config],
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None = None,
    report: Callable[[str], object] = lambda sentence: None,
) -> Config:
    """Parse ``[preset] [optim:NAME] [--methods.NAME] [--flags]``.

    Without a preset, a stream given by its id takes those of :func:`presets_of_stream`. Flags take precedence
    over presets, and presets over the defaults.

    Args:
        args_type: the agent's frozen dataclass.
        presets: name -> changes to its defaults.
        argv: the words of the command line, without the program's name; by default those of ``sys.argv``.
        report: is given a sentence on the presets that the stream takes.

    Raises:
        SystemExit: code 2 and one sentence for bad input, which includes flags without effect; code 0 after
            a help page.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    asks_for_help = any(word in HELP for word in words)
    with bad_input():
        check_words(words)
        default = args_type()
        if words and not words[0].startswith("-") and ":" not in words[0]:
            name = words.pop(0)
            if name not in presets:
                raise ValueError(no_such("preset", name, presets, "--help"))
            default = override(default, presets[name])
        elif not asks_for_help:
            names = [name for name in presets_of_stream(default, words) if name in presets]
            default = functools.reduce(override, map(presets.__getitem__, names), default)
            if names:
                report(f"presets for this stream: {', '.join(names)}")
        if asks_for_help:
            try:
                show_help(default, presets, words)
            except SystemExit as exit:  # tyro's
                raise Stop(exit.code) from None
        args = _parse(default, words, presets)
        refuse_unused(args, words)
        return args


FOR_IDS = (*typing.get_args(Kind), "one-task")
"""Presets for streams that are given by their id."""


def presets_of_stream(default: Any, words: Sequence[str]) -> tuple[str, ...]:
    """The presets for the stream whose id is among the words of a command line.

    They are the kind of its observations and, if it never switches, ``one-task``. Empty if there is no id, or
    if the stream cannot be made: the error is reported when the agent makes it.
    """
    if not any(word.partition("=")[0] == "--stream.id" for word in words):
        return ()
    page = dataclasses.make_dataclass("Page", [("stream", type(default.stream))])
    try:
        parsed: Any = parse(page, split_words(words)[0], default=page(default.stream))[0]
        stream = parsed.stream
        kind = stream.observation_spec().kind
        return (kind,) if stream.schedule().period else (kind, FOR_IDS[-1])
    except (Exception, SystemExit):
        return ()


def _parse(default: Config, words: Sequence[str], presets: Iterable[str] = ()) -> Config:
    """Apply the words of a command line to default arguments; raises ValueError for bad input."""
    others, method_words = split_words(words)  # tyro does not parse methods
    # Put the optimizer first, so that a user may type its flags before it.
    optimizers = [word for word in others if word.removeprefix("optim:") in OPTIMIZERS and ":" in word]
    if len(set(optimizers)) > 1:
        raise ValueError(f"a run has one optimizer, not {' and '.join(optimizers)}")
    others = optimizers[:1] + [word for word in others if word not in optimizers]
    settings = (tyro.conf.CascadeSubcommandArgs,)
    args: Any
    args, unknown = parse(type(default), others, default=default, config=settings)
    if unknown and unknown[0] in presets:
        raise ValueError(f"the preset {unknown[0]} must be the first word")
    refuse_unknown(args, unknown)
    args = dataclasses.replace(args, methods=parse_methods(args.methods, method_words))
    check_values(args)
    return args


def launch(
    main: Callable[[Config], object], args_type: type[Config], presets: Mapping[str, Mapping[str, Any]]
) -> None:
    """Train an agent from the command line.

    Exits with code 2 if agent, stream and machine do not fit together, 65 if a later task does not fit the
    stream, 70 if an environment or a worker fails for good. Errors that are not neoteny's own come with their
    traceback.
    """
    protect_output()
    here = Path.cwd()
    with bad_input():
        check_repeated(sys.argv[1:], args_type)
    args: Any = cli(args_type, presets, report=tell)
    args = dataclasses.replace(args, runs_dir=here / args.runs_dir)  # the user's code may leave this folder
    try:
        main(args)
    except Stop:
        raise
    except SpacesError as error:
        stop(ExitCode.MISFIT, f"{error}; the last checkpoint is intact")
    except (Exception, SystemExit) as error:
        print(file=sys.stderr)  # ends the line of the progress bar
        if not isinstance(error, WorkerError | BrokenEnvironmentError | SystemExit):
            traceback.print_exc()
        stop(ExitCode.BROKEN, f"{reason(error)}; the last checkpoint is intact")


def launch_script(main: Callable[[Config], int], args_type: type[Config]) -> NoReturn:
    """Run a script with the arguments of the command line, and exit with the code that it returns.

    Exits with code 2 and one sentence for bad arguments, with 75 and one sentence at a signal.
    """
    protect_output()
    raise SystemExit(until_signal(lambda: main(script_args(args_type, sys.argv[1:]))))


def until_signal(script: Callable[[], int]) -> int:
    """The exit code of a script, which ends with code 75 and one sentence at a signal that asks to stop."""
    from neoteny.runners.sweep import signals_interrupt  # here, since agents do not need it

    try:
        with signals_interrupt():
            return script()
    except KeyboardInterrupt:
        print(file=sys.stderr)  # ends the line of the progress bar
        stop(ExitCode.PREEMPTED, "stopped by a signal; run the same command again")


def script_args(args_type: type[Config], words: Sequence[str]) -> Config:
    """The arguments of a script, which has neither presets nor methods; exits with code 2 for bad ones."""
    with bad_input():
        check_words(words)
        check_repeated(words, args_type)
        args, unknown = parse(args_type, words)
        refuse_unknown(args, unknown)
        check_values(args)
        return args


TYPED = ("id", "wrap", "data", "change")
"""Flags of a stream that may name a module of the user's."""


def read_args(args_type: type[Config], path: Path, changes: Mapping[str, Any] | None = None) -> Config:
    """Read the arguments in a run's ``args.json``, with the checks of the command line.

    For safety a file never causes an import: import the module of a user-defined stream or method first.

    Args:
        args_type: the agent's dataclass.
        path: of the file.
        changes: values to use instead, by name.

    Raises:
        SystemExit: code 2 and a sentence if the file does not hold the arguments of a run.
    """
    try:
        config = json.loads(path.read_text()) | (changes or {})
        stream, optimizer = config["stream"], config["optim"].pop("name")
        typed = [stream[name] for name in TYPED if stream.get(name) is not None]
        if not typed or not all(isinstance(name, str) for name in (*typed, optimizer)):
            raise TypeError(f"stream.{', stream.'.join(TYPED)} and optim.name must be strings")
        if isinstance(config["stream"].get("audit"), bool):  # a flag of version 0.2.0
            config["stream"]["audit"] = "on" if config["stream"]["audit"] else "off"
        methods = config.pop("methods", {})
        for module in (name.rpartition(":")[0] for name in (*typed, *methods)):
            if module and module not in sys.modules:
                raise ValueError(f"import {module} first, since reading a file imports no modules")
        config.pop("agent", None)
        words = [f"optim:{optimizer}", *flag_words(config)]
        for name, fields in methods.items():
            words += [f"--methods.{name}", *flag_words(fields, f"methods.{name}.")]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        stop(ExitCode.BAD_INPUT, f"{path} does not hold the arguments of a run: {error}")
    with bad_input():
        return _parse(args_type(), words)


def flag_words(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Flags and values equivalent to a nested dict."""
    for name, value in config.items():
        if not name.isidentifier() or name in ("help", "h"):
            raise ValueError(f"{name!r} is not an argument")
        flag = name.replace("_", "-")
        if isinstance(value, Mapping):
            yield from flag_words(value, f"{prefix}{flag}.")
        elif isinstance(value, bool):
            yield f"--{prefix}{'' if value else 'no-'}{flag}"
        else:
            values = value if isinstance(value, list) else [value]
            # A string that would be parsed as another flag, which might import a module, is not valid.
            if any(isinstance(each, str) and each.startswith("-") for each in values):
                raise ValueError(f"{value!r} is not a value of {name}")
            yield from (f"--{prefix}{flag}", *map(str, values))
