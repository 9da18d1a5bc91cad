"""Which entries and actions the functions in a task's wrappers rearrange, and that they do nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TransformAction

from neoteny.envs.engine import UncoveredError
from neoteny.envs.user_code import Reading, is_users, picture, users_members

OF_THE_ENVIRONMENT = {"env", "unwrapped", "np_random", "_np_random", "get_wrapper_attr", "step_count"}
"""Names by which a wrapper's function would look at more than its argument."""


class _Unread:
    """An entry of an observation that can be moved, but whose value cannot be read."""

    def __init__(self, place: int) -> None:
        self.place = place

    def __bool__(self) -> bool:
        raise TypeError("the value of an observation is read")

    def __eq__(self, other: object) -> bool:
        raise TypeError("the value of an observation is read")

    __hash__ = None  # type: ignore[assignment]


def users_parts(layer: gym.Wrapper) -> dict[str, Any]:
    """The functions and methods of a wrapper that are a user's, by name, without its constructor."""
    members: dict[str, Any] = users_members(layer)
    members.pop("__init__", None)
    function = vars(layer).get("func")
    if function is not None and _is_users_function(function):
        members["func"] = function
    return members


def meanings(layer: TransformAction, actions: Sequence[int]) -> list[int]:
    """MiniGrid's action for each action of a wrapper around ``actions``; UncoveredError if it is no function.

    The action spaces are small: the wrapper's function is called for all.
    """
    numbers = np.arange(layer.action_space.n)  # type: ignore[attr-defined]
    with _Pure(layer):
        chosen = [[int(layer.func(number)) for number in numbers] for _ in range(2)]
    if chosen[0] != chosen[1] or not all(0 <= number < len(actions) for number in chosen[0]):
        raise UncoveredError(f"the actions of {type(layer).__name__} are not only renamed")
    return [actions[number] for number in chosen[0]]


def order_of(layers: Sequence[gym.ObservationWrapper], space: gym.Space) -> np.ndarray:
    """Index of the entry of an inner observation for each entry that the wrappers return, (entries,).

    Args:
        layers: from the innermost.
        space: of the inner observation.

    Raises:
        UncoveredError: a wrapper changes values, or what it does depends on them or on anything else.
    """
    assert space.shape is not None
    order = np.arange(math.prod(space.shape)).reshape(space.shape)
    for layer in layers:
        try:
            if users_parts(layer):
                order = _order_of_users(layer, order)
            else:
                order = _order_of_package(layer.observation, order)
        except UncoveredError:
            raise
        except Exception as error:
            raise UncoveredError(f"its observations cannot be expressed by tables: {error}") from error
    return order.ravel()


def _order_of_package(function: Callable[[Any], Any], order: np.ndarray) -> np.ndarray:
    """The order after a wrapper of a package, from passing each entry's own index, one byte at a time."""
    number = np.arange(order.size).reshape(order.shape)
    low, high = (function((number >> shift).astype(np.uint8)).astype(int) for shift in (0, 8))
    place = low + (high << 8)
    trial = np.random.default_rng(0).integers(0, 256, order.shape, np.uint8)
    outer = function(trial)
    if not np.array_equal(outer, trial.ravel()[place]) or outer.dtype != np.uint8:
        raise UncoveredError("its observations are not only rearranged")
    return order.ravel()[place]


def _order_of_users(layer: gym.ObservationWrapper, order: np.ndarray) -> np.ndarray:
    """The order after a wrapper of a user's, whose function gets entries that it cannot read."""
    entries: np.ndarray = np.empty(order.shape, object)
    for index, place in np.ndenumerate(order):
        entries[index] = _Unread(int(place))
    try:
        with _Pure(layer):
            moved = [np.asarray(layer.observation(entries.copy())) for _ in range(2)]
            places = [np.array([each.place for each in one.ravel()]).reshape(one.shape) for one in moved]
    except UncoveredError:
        raise
    except Exception as error:
        raise UncoveredError(f"its observations are not only rearranged: {error}") from error
    if not np.array_equal(places[0], places[1]):
        raise UncoveredError("its observations are rearranged differently each time")
    return places[0]


class _Pure:
    """Checks that a user's functions in a wrapper depend on their arguments alone, while they are called."""

    def __init__(self, layer: gym.Wrapper) -> None:
        self.layer, self.reading = layer, Reading(parts := users_parts(layer))
        self.name = ", ".join(parts)

    def __enter__(self) -> None:
        self._uncovered(self.reading.changing())
        if self.reading.names & OF_THE_ENVIRONMENT:
            self._uncovered("the environment")
        if any(isinstance(value, gym.Env) for value in self.reading.values().values()):
            self._uncovered("the environment")
        self.before, self.own = self.reading.state(), self._attributes()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._uncovered(self.reading.changes(self.before))
            if self.own != self._attributes():
                self._uncovered("what it remembers")

    def _attributes(self) -> Any:
        own: Mapping[str, Any] = vars(self.layer)
        return picture({name: value for name, value in own.items() if name not in ("env", "func")})

    def _uncovered(self, what: str | None) -> None:
        if what is not None:
            raise UncoveredError(f"{self.name} of {type(self.layer).__name__} depends on {what}")


def _is_users_function(function: Any) -> bool:
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    return is_users(function)
