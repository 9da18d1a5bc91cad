"""Restoring the state of any optimizer exactly, and the check that a run can use an optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

COUNTERS = ("step", "skipped", "guarded")
"""States of fused optimizers that are scalars; all others have the shape of their parameter."""
OWN = ("tuners", "scale")
"""States of TRAC that no fused kernel is given, of shapes of their own."""


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise ValueError if an optimizer's steps need a closure, which agents do not give."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(f"{type(optimizer).__name__} cannot be used: each of its steps needs a closure")


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state with the dtypes it was saved with and its parameters' memory layout.

    torch's own ``load_state_dict`` converts tensors to the dtype of their parameter, and cannot load strings
    and arrays.

    Raises:
        ValueError: a tensor does not have the shape that a fused kernel assumes, which would otherwise mix up
            entries or write out of bounds.
    """
    optimizer.load_state_dict({**state, "state": _for_torch(state["state"])})
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    groups = [(group, param) for group in optimizer.param_groups for param in group["params"]]
    names: dict[int, Any] = {}  # of the tensors of a parameter, by group
    for number, (group, param) in zip(numbers, groups):
        saved = state["state"].get(number, {})
        if group.get("fused") and not all(isinstance(value, Tensor) for value in saved.values()):
            raise ValueError(f"the state of parameter {number} is not of tensors")
        first = names.setdefault(id(group), saved.keys()) if saved else ()
        if group.get("fused") and saved and saved.keys() != first:
            raise ValueError(f"the state of parameter {number} has not the names {', '.join(first)}")
        loaded = optimizer.state[param] if saved else {}
        for name, value in saved.items():
            loaded[name] = now = _as_saved(value, loaded.get(name), param)
            if not (group.get("fused") and isinstance(now, Tensor)) or name in OWN:
                continue
            if now.shape != param.shape and not (name in COUNTERS and now.ndim == 0):
                raise ValueError(f"{name} has shape {tuple(now.shape)} instead of {tuple(param.shape)}")


def _for_torch(value: Any) -> Any:
    """A state without the strings and arrays."""
    if isinstance(value, Mapping):
        return {key: _for_torch(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_for_torch(item) for item in value)
    return None if isinstance(value, str | np.ndarray) else value


def _as_saved(saved: Any, loaded: Any, param: Tensor) -> Any:
    """A loaded value, with what torch has left out or converted as it was saved."""
    if isinstance(saved, str | np.ndarray):
        return saved
    if isinstance(saved, Mapping) and isinstance(loaded, Mapping):
        return {key: _as_saved(item, loaded.get(key), param) for key, item in saved.items()}
    if isinstance(saved, list | tuple) and isinstance(loaded, list | tuple):
        return type(saved)(_as_saved(*pair, param) for pair in zip(saved, loaded))
    if not (isinstance(saved, Tensor) and isinstance(loaded, Tensor)):
        return loaded
    value = loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if value.shape == param.shape and value.stride() != param.stride():
        return torch.empty_like(param, dtype=value.dtype, device=value.device).copy_(value)
    return value
