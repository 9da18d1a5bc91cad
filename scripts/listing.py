"""What `neoteny list` shows: agents, presets, streams, optimizers, methods and arms, each in a line."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

import neoteny.agents
from neoteny.configs.arms import ARMS
from neoteny.configs.cli import FOR_IDS
from neoteny.configs.flags import OPTIMIZERS
from neoteny.envs import config as _streams  # noqa: F401  (registers them)
from neoteny.envs.registry import registered_streams
from neoteny.optim import METHODS
from neoteny.scripts.agent_files import agent_names

Lines = Iterator[tuple[str, str]]
"""Names, and a line on each."""


def agents() -> Lines:
    """The agents; they are read, not imported, which takes a second."""
    (folder,) = neoteny.agents.__path__
    for name in agent_names():
        tree = ast.parse((Path(folder) / f"{name}.py").read_text())
        yield name, first_line(ast.get_docstring(tree))


def presets() -> Lines:
    """The presets of each agent."""
    for agent in agent_names():
        for name, changes in importlib.import_module(f"neoteny.configs.{agent}").PRESETS.items():
            yield f"{agent} {name}", preset_line(name, changes)


def streams() -> Lines:
    """The registered streams."""
    for name in registered_streams():
        task: Any = gym.spec(name).kwargs["task"]
        while isinstance(task, functools.partial):
            task = task.func
        yield name, f"{first_line(inspect.getdoc(task))} [{gym.spec(name).kwargs['schedule']}]"


def optimizers() -> Lines:
    """The optimizers."""
    for name, kind in OPTIMIZERS.items():
        yield f"optim:{name}", first_line(inspect.getdoc(kind))


def methods() -> Lines:
    """The plasticity methods."""
    for name, kind in METHODS.items():
        yield f"--methods.{name}", first_line(inspect.getdoc(kind))


def arms() -> Lines:
    """The arms of comparisons, for ``sweep --arms``."""
    for name, arm in ARMS.items():
        methods = () if arm.methods == "none" else (f"--methods.{each}" for each in arm.methods.split("+"))
        words = " ".join([f"optim:{arm.optim}", *methods, *arm.words])
        yield name, f"{words}, tuned: --{arm.flag} {' '.join(arm.values)}"


KINDS: dict[str, Callable[[], Lines]] = {
    each.__name__: each for each in (agents, presets, streams, optimizers, methods, arms)
}


def lines_of(kind: str) -> Iterator[str]:
    """The lines of a kind, with their names aligned."""
    known = list(KINDS[kind]())
    width = max(len(name) for name, _ in known)
    return (f"  {name:{width}}  {line}" for name, line in known)


def preset_line(name: str, changes: Mapping[str, Any]) -> str:
    """A line on a preset: its stream and steps, or what it is for."""
    if name in FOR_IDS:
        return "taken by itself for such a stream that is given by its id"
    steps = f", {changes['total_steps']:,} steps" if "total_steps" in changes else ""
    return f"stream {changes.get('stream', {}).get('id', name)}{steps}"


def first_line(text: str | None) -> str:
    """The first line of a docstring, without markup."""
    return re.sub(r":\w+:|`", "", (text or "").partition("\n")[0])
