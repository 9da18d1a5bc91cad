"""Parts of the state of a run: what a network, an optimizer or a replay memory must have, and restoring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch.optim import Optimizer

from neoteny.runners.disk.attempts import Attempt
from neoteny.runners.disk.exit_codes import ExitCode, reason, stop
from neoteny.runners.disk.forms import check_form
from neoteny.runners.optimizers import load_optimizer


class Stateful(Protocol):
    """A part of a run's state: a network, an optimizer, a schedule, a stream, a replay memory.

    One that could not be restored exactly sets ``exact = False``, or lists reasons as ``inexact``.
    """

    def state_dict(self) -> Any: ...  # noqa: D102
    def load_state_dict(self, state: Any) -> Any: ...  # noqa: D102


@runtime_checkable
class OnDisk(Protocol):
    """A part of a run's state with its own data files, on which checkpoints rely."""

    @property
    def due(self) -> bool: ...  # noqa: D102  (whether it asks for a checkpoint)
    def open(self, attempt: Attempt) -> None: ...  # noqa: D102  (before it is restored)
    def flush(self) -> None: ...  # noqa: D102  (before each checkpoint)
    def discard(self) -> None: ...  # noqa: D102  (at the end of the run)


def restore_part(name: str, part: Any, states: Mapping[str, Any] | None, attempt: Attempt) -> list[str]:
    """Open a part's files, if it has any, and restore its state.

    Args:
        name: of the part.
        part: a :class:`Stateful`, which may be :class:`OnDisk` too.
        states: of all parts, by name; ``None`` if the run begins.
        attempt: this process's ownership of the run.

    Returns:
        Reasons why it could not be restored exactly, if so.

    Raises:
        SystemExit: code 2 if the state does not fit the part; 74 if its files cannot be opened.
    """
    try:
        if isinstance(part, OnDisk):
            part.open(attempt)
        state = states.get(name, {}) if states else None  # checkpoints may lack a part without a state
        if state is not None:
            check_form(state, part.state_dict(), "its state")
        if state is not None and isinstance(part, Optimizer):
            load_optimizer(part, state)
        elif state is not None:
            part.load_state_dict(state)
    except OSError as error:
        stop(ExitCode.IO, f"{name} could not be opened: {error}")
    except Exception as error:  # the state may hold anything
        stop(ExitCode.BAD_INPUT, f"{attempt.folder} cannot be resumed: {name}: {reason(error)}")
    reasons = list(getattr(part, "inexact", ()))
    if states and not reasons and not getattr(part, "exact", True):
        reasons = [f"{name} could not be restored exactly"]
    return reasons
