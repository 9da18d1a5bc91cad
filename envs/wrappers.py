"""Changes that make one task differ from another, for any Gymnasium environment.

Each function takes an environment and returns it wrapped. It raises TypeError if the environment's spaces do
not suit the change, and ValueError for an argument out of range.

What a wrapper draws once (a permutation, an offset) is drawn from its ``seed`` alone. In a task function,
``(seed, k)`` is a good one: another change in each task, another life in each run. What it draws at every
step (noise, failures) is drawn from its ``seed`` and the seed of the last ``reset``: after ``reset(seed)``
the same actions give the same bits, and the environment's own random numbers are left as they are. Keep this
``seed`` the same in every task: other noise of the same size is no other task.

Any environment or wrapper, yours included, that carries something from one episode to the next offers it as
``lifelong_state``, readable and settable, made of plain numbers, lists and dicts: a stream saves and restores
it. Here only :func:`drift` does.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.wrappers import TransformAction, TransformObservation

Seed = int | tuple[int, ...]


def permute_observations(
    env: gym.Env, seed: Seed | None = None, *, order: Sequence[int] | None = None, axis: int = -1
) -> gym.Env:
    """Reorder the features of a flat observation, or the channels of an image.

    Shuffled inputs as a test of plasticity: Juliani and Ash (2024), "A study of plasticity loss in on-policy
    deep reinforcement learning". The choice of axis, and never drawing the identity, are ours.

    Args:
        env: observations in a Box with at least one axis.
        seed: draws the permutation, uniformly from those that move something.
        order: the permutation itself instead of a seed: entry ``i`` becomes the old entry ``order[i]``. The
            identity is accepted here, for a first task that changes nothing.
        axis: which axis of one observation; the last by default, -3 for images with channels first.
    """
    space = _box(env)
    axis = axis if axis < 0 else axis - len(space.shape)
    place = _order(space.shape[axis], "permute_observations", seed, order)
    low, high = np.take(space.low, place, axis), np.take(space.high, place, axis)
    permuted = Box(low, high, space.shape, dtype=space.dtype.type)
    return TransformObservation(env, lambda observation: np.take(observation, place, axis), permuted)


def permute_actions(env: gym.Env, seed: Seed | None = None, *, order: Sequence[int] | None = None) -> gym.Env:
    """Give the actions of a Discrete space new meanings: action ``i`` does what ``order[i]`` did.

    The counterpart of :func:`permute_observations`, with the same ``seed`` and ``order``, of 0 to n - 1 even
    where the space starts elsewhere. Two actions have one permutation that moves them, so every seed gives
    CartPole the same task.
    """
    space = env.action_space
    if not isinstance(space, Discrete):
        raise TypeError(f"permuted actions need a Discrete action space, not {space}")
    start, dtype = space.start, space.dtype
    meaning = (start + _order(int(space.n), "permute_actions", seed, order)).astype(dtype)
    return TransformAction(env, lambda action: meaning[np.asarray(action) - start], None)


def offset_observations(env: gym.Env, seed: Seed, std: float = 2.0) -> gym.Env:
    """Add to every observation one vector, drawn once from N(0, std) for each entry.

    TRAC's drifting observations (Muppidi et al., 2024, "Fast TRAC"): N(0, 2), drawn anew at each task. That
    the 2 is a standard deviation, in the units of the observation, is our reading. Observations are in a Box
    of floating-point numbers, whose bounds move along.
    """
    space = _box(env, np.floating)
    offset = _rng(seed, "offset_observations").normal(0.0, _size(std), space.shape).astype(space.dtype)
    moved = Box(space.low + offset, space.high + offset, space.shape, dtype=space.dtype.type)
    return TransformObservation(env, lambda observation: observation + offset, moved)


def noisy_observations(env: gym.Env, std: float, seed: Seed = 0) -> gym.Env:
    """Add independent Gaussian noise to every observation, new at each step and each reset.

    A textbook corruption of sensors; ``std``, in the units of the observation, is the user's. Observations
    are in a Box of floating-point numbers, which loses its bounds, as noise has none.
    """
    return _Noise(env, std, seed)


class _Noise(gym.ObservationWrapper):
    def __init__(self, env: gym.Env, std: float, seed: Seed) -> None:
        super().__init__(env)
        space = _box(env, np.floating)
        self.observation_space = Box(-np.inf, np.inf, space.shape, dtype=space.dtype.type)
        self.std, self.seed = _size(std), seed
        self.rng = _rng(seed, "noisy_observations")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        if seed is not None:  # else the generator goes on
            self.rng = _rng(self.seed, "noisy_observations", seed)
        return super().reset(seed=seed, options=options)

    def observation(self, observation: Any) -> Any:
        return observation + self.rng.normal(0.0, self.std, observation.shape).astype(observation.dtype)


def fail_actions(env: gym.Env, probability: float = 0.25, noop: Any = None, seed: Seed = 0) -> gym.Env:
    """Let each action fail with a probability: the last one is repeated, or nothing is done.

    Without ``noop``, actions are sticky as in the Arcade Learning Environment (Machado et al., 2018, 0.25):
    what was done at the last step, itself perhaps a repetition, is done again. The first action of an episode
    has none before it and is always carried out. With ``noop``, the action that stands for doing nothing,
    which is ours, a failed action is dropped, the first one too. Actions are numbers or arrays of them.
    """
    space = env.action_space
    if not isinstance(space, (Box, Discrete, MultiBinary, MultiDiscrete)):
        raise TypeError(f"failing actions need an action space of numbers or arrays, not {space}")
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of a failure must be within [0, 1], not {probability}")
    if noop is not None and not space.contains(noop):
        raise ValueError(f"{noop!r} is no action of {space}")
    return _Failure(env, probability, noop, seed)


class _Failure(gym.ActionWrapper):
    def __init__(self, env: gym.Env, probability: float, noop: Any, seed: Seed) -> None:
        super().__init__(env)
        self.probability, self.noop, self.seed = probability, noop, seed
        self.rng = _rng(seed, "fail_actions")
        self.last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.last = None
        if seed is not None:  # else the generator goes on
            self.rng = _rng(self.seed, "fail_actions", seed)
        return self.env.reset(seed=seed, options=options)

    def action(self, action: Any) -> Any:
        instead = self.last if self.noop is None else self.noop
        if self.rng.random() < self.probability and instead is not None:
            action = instead
        self.last = copy.copy(action)
        return action


class Rule(Protocol):
    """How a drifting parameter moves: a pure function."""

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """The value after ``step`` >= 1 steps of the environment, in all episodes together.

        It may depend on the value at the ``start``, on the ``value`` one step ago and on ``normal``, a number
        drawn from N(0, 1) for this step.
        """


@dataclass(frozen=True)
class Increment:
    """The same amount ``by`` is added at each step."""

    by: float

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """As every :class:`Rule`."""
        return value + self.by


@dataclass(frozen=True)
class Oscillation:
    """A sine of ``amplitude`` around the start, with ``period`` steps for one cycle; ``phase`` in radians."""

    amplitude: float
    period: float
    phase: float = 0.0

    def __post_init__(self) -> None:
        _positive("period of an oscillation", self.period)

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """As every :class:`Rule`."""
        return start + self.amplitude * math.sin(2 * math.pi * step / self.period + self.phase)


@dataclass(frozen=True)
class RandomWalk:
    """A Gaussian step of standard deviation ``std`` is added at each step."""

    std: float

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """As every :class:`Rule`."""
        return value + self.std * normal


@dataclass(frozen=True)
class OrnsteinUhlenbeck:
    """A random walk that the ``mean`` (the start, if None) pulls back: Euler-Maruyama with steps of 1."""

    rate: float
    std: float
    mean: float | None = None

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """As every :class:`Rule`."""
        mean = start if self.mean is None else self.mean
        return value + self.rate * (mean - value) + self.std * normal


@dataclass(frozen=True)
class Sigmoid:
    """A smooth change to ``end``, half done at ``midpoint`` steps; from 10 to 90 % takes 4.4 ``width``."""

    end: float
    midpoint: float
    width: float

    def __post_init__(self) -> None:
        _positive("width of a sigmoid", self.width)

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """As every :class:`Rule`."""
        done = 0.5 * (1 + math.tanh((step - self.midpoint) / (2 * self.width)))  # the logistic function
        return start + (self.end - start) * done


@dataclass(frozen=True)
class Bounded:
    """Any ``rule``, held within [``low``, ``high``]."""

    rule: Rule
    low: float = -math.inf
    high: float = math.inf

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """As every :class:`Rule`."""
        return min(max(self.rule(start, value, step, normal), self.low), self.high)


Derived = Mapping[str, Callable[[Any], float]]

DERIVED_OF_CARTPOLE: Derived = {
    "total_mass": lambda env: env.masspole + env.masscart,
    "polemass_length": lambda env: env.masspole * env.length,
}
"""What CartPole computes once, when it is made, and reads at each step."""


class Drift(gym.Wrapper):
    """Physical parameters of the environment drift at every step, on and on across episodes.

    The rules are among those of NS-Gym (Keplinger et al., 2025), whose clock starts again at each reset; that
    ours does not, so that the drift lasts a whole life, and all sizes, are ours. The first step is made with
    the parameters as they are, and each step is followed by one update.

    ``lifelong_state`` (the clock and the values) is all that episodes share: read it, and set it on a new
    environment before the reset, to go on from there. Random rules draw from the seed and the clock alone.

    Args:
        env: any environment.
        rules: for each attribute of the unwrapped environment, how it moves.
        seed: of the random rules.
        derived: attributes that the environment computes once from others, in order, each with a function of
            the unwrapped environment that computes it again; ``None`` knows those of CartPole and no others.

    Raises:
        AttributeError: the unwrapped environment has no such attribute.
        TypeError: the attribute is no number.
        ValueError: no rules, or a rule for a derived attribute.

    >>> env = drift(gym.make("CartPole-v1"), {"gravity": Increment(0.5), "masspole": Increment(0.1)}, seed=0)
    >>> _ = env.reset(seed=0), env.step(0), env.reset(seed=0)
    >>> env.lifelong_state, env.unwrapped.total_mass
    ({'step': 1, 'gravity': 10.3, 'masspole': 0.2}, 1.2)
    """

    block = 1024  # random numbers are made for so many steps at once: making a generator is slow

    def __init__(
        self, env: gym.Env, rules: Mapping[str, Rule], seed: Seed, derived: Derived | None = None
    ) -> None:
        super().__init__(env)
        self.simulator: Any = env.unwrapped
        if derived is None:
            derived = DERIVED_OF_CARTPOLE if isinstance(self.simulator, CartPoleEnv) else {}
        if not rules:
            raise ValueError("a drift needs at least one parameter")
        if overwritten := rules.keys() & derived.keys():
            raise ValueError(f"{sorted(overwritten)} cannot drift: computed from other parameters")
        for name in (*rules, *derived):
            if not hasattr(self.simulator, name):
                raise AttributeError(f"{type(self.simulator).__name__} has no attribute {name!r} to drift")
        self.rules, self.derived, self.seed = dict(rules), derived, seed
        self.start = {name: self._number(name) for name in rules}
        self.clock, self.values = 0, dict(self.start)
        self.drawn = -1

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The environment's own, marked as one whose resets do not fix its episodes."""
        spec = super().spec
        if spec is not None:
            spec.nondeterministic = True
        return spec

    @property
    def lifelong_state(self) -> dict[str, float]:
        """The clock, in steps, and the value of each parameter: readable, and restorable."""
        return {"step": self.clock, **self.values}

    @lifelong_state.setter
    def lifelong_state(self, state: Mapping[str, float]) -> None:
        if state.keys() != {"step", *self.rules}:
            raise ValueError(f"a drift of {sorted(self.rules)} has no state {dict(state)}")
        self.clock = int(state["step"])
        self.values = {name: float(state[name]) for name in self.rules}
        self._write()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start with the parameters where they are, even if the environment's reset puts them back."""
        self._write()
        out = self.env.reset(seed=seed, options=options)
        self._write()
        return out

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """Step, then let the parameters move."""
        out = self.env.step(action)
        self.advance()
        return out

    def advance(self) -> None:
        """One step of the clock."""
        block, place = divmod(self.clock, self.block)
        if block != self.drawn:
            shape = (self.block, len(self.rules))
            self.normals, self.drawn = _rng(self.seed, "drift", block).standard_normal(shape).tolist(), block
        self.clock += 1
        for (name, rule), normal in zip(self.rules.items(), self.normals[place]):
            self.values[name] = float(rule(self.start[name], self.values[name], self.clock, normal))
        self._write()

    def _write(self) -> None:
        """Hand the values to the simulator, and compute again what it derived from them."""
        for name, value in self.values.items():
            setattr(self.simulator, name, value)
        for name, function in self.derived.items():
            setattr(self.simulator, name, function(self.simulator))

    def _number(self, name: str) -> float:
        value = getattr(self.simulator, name)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise TypeError(f"only numbers drift, and {name!r} is {value!r}")
        return float(value)


drift = Drift
"""The name under which it is used, beside the functions."""


def _rng(seed: Seed, *purpose: str | int) -> np.random.Generator:
    """Independent generators for independent purposes, even under one seed."""
    key = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in purpose]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _order(entries: int, purpose: str, seed: Seed | None, order: Sequence[int] | None) -> np.ndarray:
    """The permutation given, or one drawn uniformly from all but the identity."""
    if (seed is None) == (order is None):
        raise ValueError("a permutation needs a seed or an order, and not both")
    identity = np.arange(entries)
    if order is not None:
        if sorted(order) != list(range(entries)):
            raise ValueError(f"{list(order)} is no permutation of 0 to {entries - 1}")
        return np.asarray(order)
    assert seed is not None
    if entries < 2:
        raise ValueError(f"a permutation of {entries} entries changes nothing")
    rng, drawn = _rng(seed, purpose), identity
    while (drawn == identity).all():
        drawn = rng.permutation(entries)
    return drawn


def _box(env: gym.Env, kind: type[np.generic] = np.generic) -> Box:
    """The space of one observation, which must be a Box of such numbers with at least one axis."""
    space = env.observation_space
    if not isinstance(space, Box) or not space.shape or not np.issubdtype(space.dtype, kind):
        numbers = "floating-point numbers" if kind is np.floating else "numbers"
        raise TypeError(f"this needs observations in a Box of {numbers}, not {space}")
    return space


def _size(std: float) -> float:
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"a standard deviation must be finite and not negative, not {std}")
    return std


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"the {name} must be positive, not {value}")
