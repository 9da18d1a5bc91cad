"""Help in pages: an agent's own flags on the first, each group of flags on one of its own.

A page is a dataclass of the flags that it shows, of which tyro prints the help.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import shutil
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import tyro

from neoteny.configs.method_flags import method_name, parse_methods
from neoteny.optim import METHODS

HELP = ("-h", "--help")


def show_help(default: Any, presets: Iterable[str], words: Sequence[str]) -> None:
    """Print the page that the word before `--help` asks for, and exit with code 0.

    The values shown are those of ``default``, the agent's arguments; ``words`` have `--help` in them.

    Raises:
        ValueError: it asks for a method that does not exist.
    """
    before = list(itertools.takewhile(lambda word: word not in HELP, words))
    asked = before[-1] if before else ""
    flag, _, field = asked.partition(".")
    optimizers = [word for word in before if word.startswith("optim:")]
    group = "optim" if asked in optimizers else flag.removeprefix("--").replace("-", "_")
    if flag == "--methods":
        if field:
            parse_methods(default.methods, {method_name(asked): ["--help"]})
        _show_methods()
    elif group in _groups(default) and asked.startswith(("--", "optim:")):
        _show_group(default, group, optimizers if group == "optim" else [])
    _show_first(default, presets)


def _groups(default: Any) -> dict[str, Any]:
    """The dataclasses among an agent's arguments, by name."""
    return {name: value for name, value in vars(default).items() if dataclasses.is_dataclass(value)}


def _show_first(default: Any, presets: Iterable[str]) -> None:
    """The agent's own flags, and the pages of the others."""
    groups = _groups(default)
    pages = {name: _first_line(group) for name, group in groups.items()}
    pages["methods"] = "Methods that keep a network plastic, any number of them."
    index = _index("Each has a help of its own, as in --stream --help.", pages)
    fields: list[tuple[str, Any, Any]] = [("more", Annotated[index, tyro.conf.OmitArgPrefixes], index())]
    for name, kind in typing.get_type_hints(type(default), include_extras=True).items():
        # The optimizers stay, without their flags, since these do not cascade here.
        if name in groups and name != "optim":
            fields.append((name, Annotated[kind, tyro.conf.Suppress], groups[name]))
    page = dataclasses.make_dataclass("Page", fields, bases=(type(default),), frozen=True)
    about = f"{inspect.getdoc(type(default))}\n\nPresets, as the first word:\n{_indented(', '.join(presets))}"
    tyro.cli(page, args=["--help"], default=page(**vars(default)), description=about)


def _show_group(default: Any, name: str, optimizers: Sequence[str]) -> None:
    """The flags of one field of the arguments, by the names that they have among all."""
    kind = typing.get_type_hints(type(default), include_extras=True)[name]
    page = dataclasses.make_dataclass("Page", [(name, kind)])
    settings = (tyro.conf.CascadeSubcommandArgs,)
    tyro.cli(page, args=[*optimizers, "--help"], default=page(getattr(default, name)), config=settings)


def _show_methods() -> None:
    """The names of the methods."""
    pages = {f"methods.{name}": _first_line(method) for name, method in METHODS.items()}
    about = (
        "--methods.NAME takes a method, --methods.NAME.FIELD VALUE sets a field of it too; any of them "
        "combine. --methods.NAME --help shows the fields. A method of your own, a subclass of MethodConfig "
        "(see neoteny.optim.methods) in my_file.py, is --methods.my_file:MyConfig."
    )
    description = f"Methods that keep a network plastic.\n{_indented(about)}"
    tyro.cli(_index("", pages), args=["--help"], description=description)


def _index(about: str, pages: Mapping[str, str]) -> Any:
    """A dataclass whose flags are the names of pages, with a line on each."""
    flags = []
    for number, (name, line) in enumerate(pages.items()):
        shown = tyro.conf.arg(name=name, help=line, help_behavior_hint="")
        flags.append((f"page_{number}", Annotated[bool, shown, tyro.conf.FlagCreatePairsOff], False))
    return dataclasses.make_dataclass("Index", flags, frozen=True, namespace={"__doc__": about})


def _first_line(config: object) -> str:
    """What a configuration is about."""
    return (inspect.getdoc(config) or "").partition("\n")[0]


def _indented(text: str) -> str:
    """Text in lines that fit the terminal; tyro would join them if they were not indented."""
    width = max(20, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
