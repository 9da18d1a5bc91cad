"""Parse a command line into a configuration by tyro, with errors as one sentence instead of tyro's box."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from neoteny.runners.disk.exit_codes import Stop

Config = TypeVar("Config")

HELP = ("-h", "--help")
LARGEST = 2**63 - 1  # of a tensor's int64
_READ = ConstructorRegistry()


def parse(kind: type[Config], words: Sequence[str], **settings: Any) -> tuple[Config, list[str]]:
    """Parse words into a configuration; also returns the words that are not flags or their values.

    Args:
        kind: the dataclass.
        words: of the command line.
        settings: keyword arguments of `tyro.cli`.

    Raises:
        ValueError: one sentence on a word that cannot be parsed or on values that contradict each other.
        SystemExit: code 0, after a help page.
    """
    errors, is_help = io.StringIO(), bool(set(words) & set(HELP))
    box = contextlib.nullcontext() if is_help else _wide_terminal()
    if not is_help:
        # What the flags mean is read from the source, which takes as long as all the rest.
        settings["config"] = (*settings.get("config", ()), tyro.conf.HelptextFromCommentsOff)
    try:
        with contextlib.redirect_stderr(errors), box:
            config, others = tyro.cli(kind, args=words, return_unknown_args=True, registry=_READ, **settings)
    except SystemExit as exit:
        if not exit.code:
            raise Stop(0) from None
        raise ValueError(_sentence(errors.getvalue())) from None
    sys.stderr.write(errors.getvalue())  # warnings of an imported module
    return config, others


def whole_number(word: str) -> int:
    """Parse a whole number, such as 1000000, 1_000_000, 1e6 or 2.5e5.

    Raises:
        ValueError: the word is not a whole number, or too large for 64 bits.
    """
    try:
        number = int(word)
    except ValueError:
        real = real_number(word)
        if not real.is_integer():  # infinity is not an integer either
            raise ValueError(f"{word!r} is not a whole number, such as 1000000 or 1e6") from None
        number = int(real)
    if abs(number) > LARGEST:
        raise ValueError(f"{word} is too large: whole numbers go up to {LARGEST}")
    return number


def real_number(word: str) -> float:
    """Parse a number; raises ValueError if the word is not one."""
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a number") from None


@_READ.primitive_rule
def _numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Tyro's rule for parsing numbers, also in tuples and optional fields."""
    if info.type not in (int, float):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=info.type.__name__.upper(),
        instance_from_str=lambda words: (whole_number if info.type is int else real_number)(words[0]),
        is_instance=lambda value: isinstance(value, (int, info.type)) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Make tyro assume a very wide terminal, so that it breaks no lines."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _sentence(box: str) -> str:
    """The error message in tyro's box, without its title and the part below the first horizontal rule."""
    _, *rows = [re.sub(r"\x1b\[[\d;]*m", "", row).strip("│╭╮╰╯ ") for row in box.splitlines()]
    rules = [bool(row) and not row.strip("─-") for row in rows]
    begin = rules.index(False)
    end = rules.index(True, begin) if True in rules[begin:] else len(rows)
    message = " ".join(filter(None, rows[begin:end]))
    message = re.sub(r"^Error parsing (--[\w.:-]+): ", r"\1: ", message)
    message = re.sub(r"^Error parsing [\w.:]+: ", "", message)  # a dataclass, whose message names the flag
    message = re.sub(r"no type matching (.+?) could be instantiated", r"\1 cannot be read", message)
    message = re.sub(r"\. Got errors: .*", "", message)  # one for each type
    return message.replace("Could not find valid parse for arguments: ", "cannot be read from ")
