"""Help pages: the first shows an agent's own flags, and each group of flags has a page."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import shutil
import textwrap
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import tyro

from neoteny.configs.method_flags import method_name, parse_methods
from neoteny.configs.parsing import HELP
from neoteny.optim import METHODS

METHODS_HELP = (
    "--methods.NAME adds a method, --methods.NAME.FIELD VALUE also sets a field of it; methods combine. "
    "--methods.NAME --help shows the fields. A method of your own, a subclass of neoteny.optim.MethodConfig "
    "in my_file.py, is --methods.my_file:MyConfig."
)


def show_help(default: Any, presets: Iterable[str], words: Sequence[str]) -> None:
    """Print the help page of the word before `--help`, and exit with code 0.

    Args:
        default: the agent's arguments, whose values are shown as defaults.
        presets: names of the presets.
        words: the command line, which contains `--help`.

    Raises:
        ValueError: the word is a method that does not exist.
    """
    before = list(itertools.takewhile(lambda word: word not in HELP, words))
    asked = before[-1] if before else ""
    kinds = typing.get_type_hints(type(default), include_extras=True)
    groups = {name for name, value in vars(default).items() if dataclasses.is_dataclass(value)}
    group = "optim" if asked.startswith("optim:") else asked.partition(".")[0].replace("-", "_")
    group = group.removeprefix("__")
    if asked == "--methods":
        lines = [f"--methods.{name}: {inspect.getdoc(kind)}".split("\n")[0] for name, kind in METHODS.items()]
        print("\n\n".join(map(_wrapped, (METHODS_HELP, *lines))))
        raise SystemExit(0)
    if asked.startswith("--methods."):
        parse_methods(default.methods, {method_name(asked): ["--help"]})
    if asked.startswith(("--", "optim:")) and group in groups:
        optimizers = [word for word in before if word.startswith("optim:")] if group == "optim" else []
        page = dataclasses.make_dataclass("Page", [(group, kinds[group])])
        settings = (tyro.conf.CascadeSubcommandArgs,)
        tyro.cli(page, args=[*optimizers, "--help"], default=page(getattr(default, group)), config=settings)
    # The page lists the optimizers, but not their flags, since subcommands do not cascade here.
    hidden = [(name, Annotated[kinds[name], tyro.conf.Suppress]) for name in groups - {"optim"}]
    fields = [(name, kind, getattr(default, name)) for name, kind in hidden]
    first = dataclasses.make_dataclass("First", fields, bases=(type(default),), frozen=True)
    pages = ", ".join(f"--{name}" for name in (*sorted(groups), "methods"))
    about = (
        f"{inspect.getdoc(type(default))}\n\nPresets, as the first word:\n{_wrapped(', '.join(presets))}\n\n"
        f"More flags, in groups with a help page each (such as --stream --help):\n{_wrapped(pages)}"
    )
    tyro.cli(first, args=["--help"], default=first(**vars(default)), description=about)


def _wrapped(text: str) -> str:
    """Wrap a text to the terminal's width, indented, since tyro would join unindented lines."""
    width = max(20, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
