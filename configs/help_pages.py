"""Help in pages: an agent's own flags on the first, each group of flags on one of its own."""

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
    "--methods.NAME takes a method, --methods.NAME.FIELD VALUE sets a field of it too; any of them combine. "
    "--methods.NAME --help shows the fields. A method of your own, a subclass of neoteny.optim.MethodConfig "
    "in my_file.py, is --methods.my_file:MyConfig."
)


def show_help(default: Any, presets: Iterable[str], words: Sequence[str]) -> None:
    """Print the page that the word before `--help` asks for, and exit with code 0.

    The values shown are those of ``default``, the agent's arguments; ``words`` have `--help` in them.

    Raises:
        ValueError: it asks for a method that does not exist.
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
    # The optimizers stay, without their flags, since these do not cascade here.
    hidden = [(name, Annotated[kinds[name], tyro.conf.Suppress]) for name in groups - {"optim"}]
    fields = [(name, kind, getattr(default, name)) for name, kind in hidden]
    first = dataclasses.make_dataclass("First", fields, bases=(type(default),), frozen=True)
    pages = ", ".join(f"--{name}" for name in (*sorted(groups), "methods"))
    about = (
        f"{inspect.getdoc(type(default))}\n\nPresets, as the first word:\n{_wrapped(', '.join(presets))}\n\n"
        f"More flags, each group with a help of its own (--stream --help):\n{_wrapped(pages)}"
    )
    tyro.cli(first, args=["--help"], default=first(**vars(default)), description=about)


def _wrapped(text: str) -> str:
    """Text in lines that fit the terminal; tyro would join them if they were not indented."""
    width = max(20, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
