"""The form of a checkpoint's state: which types it holds where, whatever the values.

A checkpoint whose hashes are right may still hold what no run has written. Its state is compared with that of
the run before anything is restored, so that it is refused and not met in the middle of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

VISIT = {
    "task": 0, "start": 0, "end": 0, "episodes": 0, "steps": 0, "weighted_return": 0.0, "last_returns": [0.0]
}  # fmt: skip
NEEDED: dict[str, Any] = {
    "step": 0, "update": 0, "config": {"methods": {}}, "machine": {"device": "", "versions": {}},
    "inexact": [""], "parts": {}, "rng": {}, "seconds": {"": 0.0},
    "event_files": {"": 0},
}  # fmt: skip
"""What the state of every run holds, by example; the name "" stands for any."""
KNOWN: dict[str, Any] = {
    "config": {"total_steps": 0, "anneal_lr": False}, "code": {"modules": {"": ""}},
    "visit": VISIT, "visits_size": 0, "event_counts": {"": 0},
    "evaluations": [{"step": 0, "returns": {"": 0.0}}],
}  # fmt: skip
"""What a state may hold besides."""


def check_state(state: Any) -> None:
    """Raise ValueError or TypeError, which says why, if this is not the state of a run."""
    check_form(state, NEEDED, whole=True)
    visits = {"visits": [VISIT]} if "visits" in state else {"visit": VISIT, "visits_size": 0}
    check_form(state, visits, whole=True)
    check_form(state, KNOWN)
    json.dumps({name: value for name, value in state.items() if name not in ("parts", "rng")})


def check_form(found: Any, expected: Any, where: str = "the state", whole: bool = False) -> None:
    """Check that a state has the types of another.

    Numbers are of one type, and so are tensors and arrays of as many axes. Where the other state has ``None``
    or nothing, anything is accepted, and of a list each item must be like one of the other's.

    Args:
        found: the state.
        expected: the other one.
        where: it is, for the message.
        whole: whether no name may be missing.

    Raises:
        ValueError: says where they differ.
    """
    if expected is None:
        return
    if _type(found) != _type(expected):
        raise ValueError(f"{where} is {_type(found)}, not {_type(expected)}")
    if isinstance(expected, Mapping):
        if whole and (lost := next((name for name in expected if name and name not in found), None)):
            raise ValueError(f"{where} lacks {lost}")
        for name, value in found.items():
            like = expected.get(name, expected.get(""))
            check_form(value, like, f"{name} of {where}", whole)
    elif isinstance(expected, list | tuple) and len(expected):
        for number, value in enumerate(found):
            like = expected[min(number, len(expected) - 1)]
            check_form(value, like, f"item {number} of {where}", whole)


def _type(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"an array of {value.ndim} axes"
    kinds = {
        "missing": type(None), "a flag": bool, "a number": int | float | np.number, "a text": str,
        "a table": Mapping, "a list": list | tuple,
    }  # fmt: skip
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), type(value).__name__)
