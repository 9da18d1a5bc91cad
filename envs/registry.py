"""Streams by name: the decorator that registers one with Gymnasium, and modules of the user's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import TaskFunction


def stream(
    id: str, *, period: int, tasks: int | None = None, span: float = 0.0, names: Sequence[str] = ()
) -> Callable[[TaskFunction], TaskFunction]:
    """Register ``task(k, seed) -> env`` with Gymnasium as the stream ``id``.

    Args:
        id: a Gymnasium id; ``module:id`` on a command line imports the module first.
        period: environment steps, summed over sub-environments, that each task lasts by default.
        tasks: how many different tasks there are, if they come in cycles.
        span: share of each visit over which the old task turns gradually into the new.
        names: of the tasks, if they come in cycles, instead of how many there are.
    """

    def register(task: TaskFunction) -> TaskFunction:
        schedule = Schedule(period, len(names) or tasks, span=span)
        kwargs = {"task": task, "schedule": schedule, "names": tuple(names)}
        gym.register(id, vector_entry_point="neoteny.envs.config:make_stream", kwargs=kwargs)
        return task

    return register


def registered_streams() -> list[str]:
    """Ids of all streams that are registered now."""
    return sorted(id for id, spec in gym.registry.items() if "schedule" in spec.kwargs)


def task_rng(seed: int, task: int) -> np.random.Generator:
    """The random generator from which task ``task`` of a stream draws what it changes."""
    return np.random.default_rng(np.random.SeedSequence([seed, task]))


def import_typed(name: str) -> str:
    """Import the module of a ``module:name`` that somebody typed; returns the text.

    Names that come from a file never get here, since an import runs whatever the module holds.

    Raises:
        ValueError: there is no such module.
        Exception: whatever the module itself raises.
    """
    module = name.rpartition(":")[0]
    if module:
        # A script's own folder is on the path, the folder it is called from is not.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # one that the module imports
                raise
            raise ValueError(f"there is no {name!r}: {error}") from error
    return name


def imported(name: str) -> Any:
    """What a ``module:name`` stands for, whose module has been imported; else ValueError."""
    module, _, attribute = name.rpartition(":")
    if module not in sys.modules:
        raise ValueError(
            f"there is no {name!r}: import {module or 'its module'} first, only a command line does"
        )
    try:
        return getattr(sys.modules[module], attribute)
    except AttributeError as error:
        raise ValueError(f"there is no {name!r}: {error}") from error
