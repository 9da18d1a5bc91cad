"""Plasticity methods on the command line: `--methods.NAME` adds one, `--methods.NAME.FIELD VALUE` sets it.

NAME is a key of METHODS, or module:Class for a user-defined method, whose module is then imported.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from neoteny.configs.flags import no_such, refuse_unknown
from neoteny.configs.parsing import parse
from neoteny.envs.registry import import_typed
from neoteny.optim import METHODS, MethodConfig

# Extracts the name from a word such as --methods.l2-init.coef=1e-2.
FLAG = re.compile(r"--methods\.((?:\w[\w.-]*:)?[\w-]+)(?=[.=]|$)")

Configs = tuple[MethodConfig, ...]


def method_type(name: str) -> type[MethodConfig]:
    """The configuration class of a method; imports the module of a user-defined one.

    Raises:
        ValueError: there is no such method.
    """
    if ":" not in name:
        if name not in METHODS:
            raise ValueError(no_such("method", name, METHODS, "--methods --help"))
        return METHODS[name]
    module, _, class_name = name.partition(":")
    try:
        import_typed(name)
    except ValueError as error:
        raise ValueError(f"there is no method {name!r}: {error.__cause__}") from error
    found = getattr(sys.modules[module], class_name, None)
    if not (isinstance(found, type) and issubclass(found, MethodConfig)):
        raise ValueError(f"there is no method {name!r}: {module} has no MethodConfig {class_name}")
    return found


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split a command line into the words outside of methods and the words of each method, by name.

    Raises:
        ValueError: a flag of a method has no name.
    """
    others: list[str] = []
    methods: dict[str, list[str]] = {}
    owner = others
    for word in words:
        if word.startswith("--methods.") or word.partition("=")[0] == "--methods":
            owner = methods.setdefault(method_name(word), [])
            if FLAG.fullmatch(word):
                continue
        elif word.startswith(("--", "optim:")):
            owner = others
        owner.append(word)
    return others, methods


def method_name(word: str) -> str:
    """The name of the method in a flag.

    Raises:
        ValueError: the flag has none.
    """
    flag = FLAG.match(word)
    if flag is None:
        raise ValueError(f"{word} names no method: use --methods.NAME; --methods --help lists them")
    return flag[1].replace("-", "_")


def parse_methods(methods: Configs, words: Mapping[str, list[str]]) -> Configs:
    """The methods of a preset, changed and extended by flags.

    Args:
        methods: those of the preset.
        words: flags and values for each method, by name.

    Raises:
        ValueError: there is no such method, or it has no such flag or value.
    """
    chosen: dict[type[MethodConfig], MethodConfig] = {type(method): method for method in methods}
    for name, flags in words.items():
        kind: Any = method_type(name)
        default = chosen.get(kind, tyro.MISSING_NONPROP)
        field = Annotated[kind, tyro.conf.arg(name=f"methods.{name}", default=default)]
        parser: Any = dataclasses.make_dataclass("Parser", [("method", field)])
        prog = f"{sys.argv[0]} --methods.{name}"
        # Help shows a module's name with its underscores; dashes are accepted too.
        parsed, unknown = parse(parser, flags, prog=prog, use_underscores=":" in name)
        refuse_unknown(parsed.method, unknown, prefix=f"methods.{name}.")
        chosen[kind] = parsed.method
    return tuple(chosen.values())
