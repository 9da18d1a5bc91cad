"""Flags that name something of the user's own."""

from typing import Annotated

import tyro

from neoteny.envs.registry import import_typed

Typed = Annotated[
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="MODULE:NAME",
        instance_from_str=lambda words: import_typed(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda name: [name],
    ),
]
"""A name such as ``module:name``, whose module is imported when the command line is parsed."""
