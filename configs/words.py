"""The words of a command line for given arguments: the inverse of `configs.cli`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from neoteny.configs.cli import cli, flag_words
from neoteny.configs.flags import unused
from neoteny.optim import methods_as_dict
from neoteny.runners.disk.files import flatten, to_json


def words_of(args: Any, presets: Mapping[str, Mapping[str, Any]], begin: Sequence[str] = ()) -> list[str]:
    """A short command line that gives arguments, but for flags that have no effect.

    Args:
        args: of an agent.
        presets: the agent's.
        begin: the first words, a preset or the stream's id, from whose defaults the other flags are counted.

    Raises:
        ValueError: no command line gives them.
    """
    methods = methods_as_dict(args.methods)
    words = [*begin, f"optim:{args.optim.name}"]
    for name, fields in methods.items():
        words += [f"--methods.{name}", *flag_words(fields, f"methods.{name}.")]
    after = effective(args)
    # First those of the stream, since a stream that is given by its id decides on other defaults.
    for part in ("stream.", ""):
        before = effective(cli(type(args), presets, words))
        for name, value in after.items():
            if name.startswith(part) and before.get(name, name) != value:
                prefix, _, last = name.rpartition(".")
                words += flag_words({last: value}, f"{prefix}." if prefix else "")
    if effective(cli(type(args), presets, words)) != after:
        raise ValueError(f"no command line gives these arguments: {' '.join(words)} does not")
    return words


def effective(args: Any) -> dict[str, Any]:
    """The arguments that have an effect, by names such as ``stream.id``."""
    config = {**dataclasses.asdict(args), "methods": methods_as_dict(args.methods)}
    config["optim"]["name"] = args.optim.name
    without = unused(args)
    return {
        name: value
        for name, value in flatten(to_json(config)).items()
        if not without.keys() & set(itertools.accumulate(name.split("."), "{}.{}".format))
    }
