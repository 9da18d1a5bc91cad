"""Limits of every word and number of a command line, whichever flag it belongs to.

They refuse what cannot be meant, with the name of the flag; what a flag itself allows is checked by its
configuration, and whether the sizes fit in the memory by `runners.memory`.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from neoteny.configs.flags import name_of, values
from neoteny.runners.disk.exit_codes import MOST

LARGEST, SMALLEST = 1e9, 1e-37
"""Of real numbers besides 0: products of a few of them are still numbers of float32."""
SEEDS = ("seed", "seeds", "tune_seeds")


def check_words(words: Sequence[str]) -> None:
    """Raise ValueError for a word of a command line that can be neither a flag nor a value."""
    for word in words:
        if not word.isprintable():
            raise ValueError(f"{word!r} has characters that cannot be printed")
        if word.endswith("=--") or word == "--":
            raise ValueError(f"no flag takes the word {word!r}")


def check_repeated(words: Sequence[str], kind: type) -> None:
    """Raise ValueError if a flag of a dataclass is given twice, so that its first value would be ignored."""
    appended, seen = set(_appended(kind)), set[str]()
    for word in words:
        if word.startswith("--") and (name := name_of(word)) not in appended:
            if name in seen:
                raise ValueError(f"--{name.replace('_', '-')} is given twice")
            seen.add(name)


def check_values(config: Any) -> None:
    """Check the size of every number of a configuration.

    Raises:
        ValueError: names the flag, its value and the limit.
    """
    for name, value in values(config).items():
        flag, last = f"--{name.replace('_', '-')}", name.rpartition(".")[2]
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and number and not SMALLEST <= abs(number) <= LARGEST:
                raise ValueError(
                    f"{flag} must be 0 or of a size from {SMALLEST:g} to {LARGEST:g}, not {number}"
                )
            if isinstance(number, int) and abs(number) > MOST and last not in SEEDS:
                raise ValueError(f"{flag} must be at most {MOST:,}, not {number:,}")


def _appended(kind: type) -> Iterator[str]:
    """The flags of a dataclass that may be given several times."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if tyro.conf.UseAppendAction in getattr(hint, "__metadata__", ()):
            yield name
