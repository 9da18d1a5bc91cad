"""Words of a command line into a configuration, by tyro; what they get wrong is one sentence, not a box."""

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

Config = TypeVar("Config")

HELP = ("-h", "--help")
LARGEST = 2**63 - 1  # that a tensor can hold
_READ = ConstructorRegistry()


def parse(kind: type[Config], words: Sequence[str], **settings: Any) -> tuple[Config, list[str]]:
    """A configuration, and the words that none of its flags takes; settings are those of `tyro.cli`.

    Raises:
        ValueError: one sentence on a word that cannot be read or on values that do not go together.
        SystemExit: code 0, after a help page.
    """
    told = io.StringIO()
    box = contextlib.nullcontext() if set(words) & set(HELP) else _wide_terminal()
    try:
        with contextlib.redirect_stderr(told), box:
            config, others = tyro.cli(kind, args=words, return_unknown_args=True, registry=_READ, **settings)
    except SystemExit as exit:
        if not exit.code:
            raise
        raise ValueError(_sentence(told.getvalue())) from None
    sys.stderr.write(told.getvalue())  # of a module that was imported
    return config, others


def whole_number(word: str) -> int:
    """The number that a word stands for, as 1000000, 1_000_000, 1e6 or 2.5e5 do.

    Raises:
        ValueError: it is none, or too large for 64 bits.
    """
    try:
        number = int(word)
    except ValueError:
        real = real_number(word)
        if not real.is_integer():  # as infinity is not, either
            raise ValueError(f"{word!r} is no whole number, as 1000000 or 1e6 are") from None
        number = int(real)
    if abs(number) > LARGEST:
        raise ValueError(f"{word} is beyond {LARGEST}, the largest whole number here")
    return number


def real_number(word: str) -> float:
    """The number that a word stands for; raises ValueError if it is none."""
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{word!r} is no number") from None


@_READ.primitive_rule
def _numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """How tyro reads numbers, also in tuples and where None is allowed."""
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
    """Let tyro believe in lines so long that it breaks none."""
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
    """What tyro's box says, without its title and what stands below its first rule."""
    _, *rows = [re.sub(r"\x1b\[[\d;]*m", "", row).strip("│╭╮╰╯ ") for row in box.splitlines()]
    rules = [bool(row) and not row.strip("─-") for row in rows]
    begin = rules.index(False)
    end = rules.index(True, begin) if True in rules[begin:] else len(rows)
    told = " ".join(filter(None, rows[begin:end]))
    told = re.sub(r"^Error parsing (--[\w.:-]+): ", r"\1: ", told)
    told = re.sub(r"^Error parsing [\w.:]+: ", "", told)  # a dataclass, whose own words name the flag
    told = re.sub(r"no type matching (.+?) could be instantiated", r"\1 cannot be read", told)
    told = re.sub(r"\. Got errors: .*", "", told)  # of each type
    return told.replace("Could not find valid parse for arguments: ", "cannot be read from ")
