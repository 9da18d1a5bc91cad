"""Registration of streams with Gymnasium, and import of the user's modules."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import TaskFunction

TYPED: list[str] = []
"""Modules that :func:`import_typed` has imported; worker processes import them too."""


Names = Sequence[str] | Callable[[int, int], str]
"""Of tasks that recur in cycles, or a function of a task's number and the run's seed."""


def stream(
    id: str, *, period: int, tasks: int | None = None, drift_fraction: float = 0.0, names: Names = ()
) -> Callable[[TaskFunction], TaskFunction]:
    """Register ``task(k, seed) -> env`` with Gymnasium as the stream ``id``.

    Args:
        id: a Gymnasium id; ``module:id`` on a command line imports the module first.
        period: default number of environment steps per task, summed over sub-environments.
        tasks: number of tasks, if they recur in cycles.
        drift_fraction: share of each visit over which the old task turns gradually into the new.
        names: of tasks that recur in cycles, instead of ``tasks``; or a function that names any task.
    """

    def register(task: TaskFunction) -> TaskFunction:
        named = names if callable(names) else tuple(names)
        recurring = tasks if callable(named) else len(named) or tasks
        schedule = Schedule(period, recurring, drift_fraction=drift_fraction)
        kwargs = {"task": task, "schedule": schedule, "names": named}
        gym.register(id, vector_entry_point="neoteny.envs.config:make_stream", kwargs=kwargs)
        return task

    return register


def registered_streams() -> list[str]:
    """Ids of all registered streams, sorted."""
    return sorted(id for id, spec in gym.registry.items() if "schedule" in spec.kwargs)


def task_rng(seed: int, task: int) -> np.random.Generator:
    """The random generator for the changes of task ``task`` of a stream."""
    return np.random.default_rng(np.random.SeedSequence([seed, task]))


def import_typed(name: str) -> str:
    """Import the module of a ``module:name`` typed on the command line; returns the text.

    Never call it with names from a file, such as a checkpoint: an import runs the module's code.

    Raises:
        ValueError: there is no such module.
        Exception: any exception of the module itself.
    """
    module = name.rpartition(":")[0]
    if module:
        # Python puts the script's folder on the path, but not the working directory.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            with explained_end(f"the module {module}"):
                importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # missing is a package that the module imports
                raise
            raise ValueError(f"there is no {name!r}: {error}") from error
        if module not in TYPED:
            TYPED.append(module)
    return name


class EndedError(BaseException):
    """A function was called that would have ended this process at once."""


@contextlib.contextmanager
def explained_end(what: str) -> Iterator[None]:
    """While a user's code is imported, say how it would end this process.

    Args:
        what: is imported, for the message.

    Raises:
        ValueError: it called ``sys.exit``, ``os._exit`` or ``os.abort``, or raised what is no Exception.
    """
    here, ends = os.getpid(), {name: getattr(os, name) for name in ("_exit", "abort")}

    def end(name: str, *code: int) -> None:
        if os.getpid() != here:  # a child process, which shall end
            ends[name](*code)
        raise EndedError(name)

    try:
        for name in ends:
            setattr(os, name, functools.partial(end, name))
        yield
    except EndedError as error:
        raise ValueError(f"{what} called os.{error} when imported") from error
    except SystemExit as error:
        raise ValueError(f"{what} called sys.exit({error.code!r}) when imported") from error
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        raise ValueError(f"{what} raised {error!r} when imported") from error
    finally:
        for name, original in ends.items():
            setattr(os, name, original)


def imported(name: str) -> Any:
    """The object of a ``module:name`` whose module has been imported; else ValueError."""
    module, _, attribute = name.rpartition(":")
    if module not in sys.modules:
        raise ValueError(
            f"there is no {name!r}: import {module or 'its module'} first (only the command line imports it)"
        )
    try:
        return getattr(sys.modules[module], attribute)
    except AttributeError as error:
        raise ValueError(f"there is no {name!r}: {error}") from error
