"""Physical parameters that drift at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.registration import EnvSpec

from neoteny.envs.wrappers.drawing import Seed, check_positive, random_generator


class Rule(Protocol):
    """How a drifting parameter changes: a pure function."""

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """The value after ``step`` >= 1 steps of the environment, counted over all episodes.

        Args:
            start: value before the first step.
            value: value one step ago.
            step: steps so far.
            normal: a draw from N(0, 1) for this step.
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
        check_positive("period of an oscillation", self.period)

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
    """A random walk pulled towards ``mean`` (the start, if None): Euler-Maruyama with steps of 1."""

    rate: float
    std: float
    mean: float | None = None

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """As every :class:`Rule`."""
        mean = start if self.mean is None else self.mean
        return value + self.rate * (mean - value) + self.std * normal


@dataclass(frozen=True)
class Sigmoid:
    """A smooth change to ``end``, half done after ``midpoint`` steps; 10 % to 90 % takes 4.4 ``width``."""

    end: float
    midpoint: float
    width: float

    def __post_init__(self) -> None:
        check_positive("width of a sigmoid", self.width)

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """As every :class:`Rule`."""
        done = 0.5 * (1 + math.tanh((step - self.midpoint) / (2 * self.width)))  # the logistic function
        return start + (self.end - start) * done


@dataclass(frozen=True)
class Bounded:
    """Any ``rule``, clipped to [``low``, ``high``]."""

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
"""Attributes that CartPole computes once, in its constructor, and reads at each step."""


class Drift(gym.Wrapper):
    """Physical parameters of the environment drift at every step and continue across episodes.

    The rules are among those of NS-Gym (Keplinger et al., 2025), whose clock restarts at each reset. Ours
    does not, so that the drift lasts for the whole run; all sizes are ours too. The first step uses the
    initial parameters, and each step is followed by one update.

    ``lifelong_state`` (the clock and the values) is the only state that episodes share: to continue a drift,
    read it and set it on a new environment before the reset. Random rules depend on seed and clock alone.

    Args:
        env: any environment.
        rules: attribute of the unwrapped environment -> its rule.
        seed: of the random rules.
        derived: attributes that the environment computes once from others -> functions of the unwrapped
            environment that recompute them, in order; ``None``: those of CartPole, none for others.

    Raises:
        AttributeError: the unwrapped environment has no such attribute.
        TypeError: the attribute is not a number.
        ValueError: there is no rule, or one for a derived attribute.

    >>> env = drift(gym.make("CartPole-v1"), {"gravity": Increment(0.5), "masspole": Increment(0.1)}, seed=0)
    >>> _ = env.reset(seed=0), env.step(0), env.reset(seed=0)
    >>> env.lifelong_state, env.unwrapped.total_mass
    ({'step': 1, 'gravity': 10.3, 'masspole': 0.2}, 1.2)
    """

    block = 1024  # steps for which random numbers are drawn at once: constructing a generator is slow

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
        """The environment's spec, marked nondeterministic: a reset seed does not determine the episode."""
        spec = super().spec
        if spec is not None:
            spec.nondeterministic = True
        return spec

    @property
    def lifelong_state(self) -> dict[str, float]:
        """The clock, in steps, and the value of each parameter; settable."""
        return {"step": self.clock, **self.values}

    @lifelong_state.setter
    def lifelong_state(self, state: Mapping[str, float]) -> None:
        if state.keys() != {"step", *self.rules}:
            raise ValueError(f"a drift of {sorted(self.rules)} has no state {dict(state)}")
        self.clock = int(state["step"])
        self.values = {name: float(state[name]) for name in self.rules}
        self._write()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset the environment but keep the drifted parameters, even if its reset restores the defaults."""
        self._write()
        out = self.env.reset(seed=seed, options=options)
        self._write()
        return out

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """Step the environment, then update the parameters."""
        out = self.env.step(action)
        self.advance()
        return out

    def advance(self) -> None:
        """Advance the clock by one step and update the parameters."""
        block, place = divmod(self.clock, self.block)
        if block != self.drawn:
            shape = (self.block, len(self.rules))
            self.normals, self.drawn = (
                random_generator(self.seed, "drift", block).standard_normal(shape).tolist(),
                block,
            )
        self.clock += 1
        for (name, rule), normal in zip(self.rules.items(), self.normals[place]):
            self.values[name] = float(rule(self.start[name], self.values[name], self.clock, normal))
        self._write()

    def _write(self) -> None:
        """Write the values to the simulator, and recompute the derived attributes."""
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
"""Alias of the class in the style of the other wrappers, which are functions."""
