"""Changes that make one task differ from another, for any Gymnasium environment.

Each function takes an environment and returns it wrapped.

What a wrapper draws once (a permutation, an offset) is drawn from its ``seed`` alone. What it draws at every
step (noise, failures) is drawn from its ``seed`` and the seed of the last ``reset``: after ``reset(seed)``
the same actions give the same bits, and the environment's own random numbers are left as they are.

Any environment or wrapper, yours included, that carries something from one episode to the next offers it as
``lifelong_state``, readable and settable, made of plain numbers, lists and dicts: a stream saves and restores
it. Here only :func:`drift` does.

In a task function, ``(seed, k)`` is a good seed of what is drawn once: another change in each task, another
life in each run.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import TransformAction, TransformObservation, TransformReward

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

    Raises:
        ValueError: both or neither of ``seed`` and ``order``; no permutation; fewer than two entries to move.
        TypeError: the observations are in no Box.

    >>> env = permute_observations(gym.make("CartPole-v1"), order=[3, 2, 1, 0])
    >>> env.observation_space.high.round(2)
    array([ inf, 0.42,  inf, 4.8 ], dtype=float32)
    >>> env.reset(seed=0)[0].round(3)
    array([-0.048, -0.046, -0.023,  0.014], dtype=float32)
    """
    space = _box(env)
    axis = axis if axis < 0 else axis - len(space.shape)
    place = _order(space.shape[axis], "permute_observations", seed, order)
    low, high = np.take(space.low, place, axis), np.take(space.high, place, axis)
    permuted = Box(low, high, space.shape, dtype=space.dtype.type)
    return TransformObservation(env, lambda observation: np.take(observation, place, axis), permuted)


def permute_actions(env: gym.Env, seed: Seed | None = None, *, order: Sequence[int] | None = None) -> gym.Env:
    """Give the actions of a Discrete space new meanings: action ``i`` does what ``order[i]`` did.

    The counterpart of :func:`permute_observations` (Juliani and Ash, 2024); never drawing the identity is
    ours. Two actions have one such permutation, so every seed gives CartPole the same task.

    Args:
        env: actions in a Discrete space.
        seed: draws the permutation, uniformly from those that move something.
        order: the permutation itself instead of a seed, of 0 to n - 1 even where the space starts elsewhere.

    Raises:
        ValueError: both or neither of ``seed`` and ``order``; no permutation; fewer than two actions.
        TypeError: the actions are in no Discrete space.

    >>> env = permute_actions(gym.make("CartPole-v1"), seed=0)
    >>> env.func(0), env.func(1)
    (np.int64(1), np.int64(0))
    """
    space = env.action_space
    if not isinstance(space, Discrete):
        raise TypeError(f"permuted actions need a Discrete action space, not {space}")
    start, dtype = space.start, space.dtype
    meaning = (start + _order(int(space.n), "permute_actions", seed, order)).astype(dtype)
    return TransformAction(env, lambda action: meaning[np.asarray(action) - start], None)


def scale_rewards(env: gym.Env, scale: float) -> gym.Env:
    """Multiply every reward: a negative ``scale`` turns good into bad, another size tests the optimizer.

    The plainest change of the reward alone; the scale is the user's.

    Args:
        env: any environment.
        scale: the factor, finite and not 0 (a reward that is always 0 teaches nothing).

    Raises:
        ValueError: the scale is 0 or not finite.

    >>> env = scale_rewards(gym.make("CartPole-v1"), -1.0)
    >>> _ = env.reset(seed=0)
    >>> env.step(0)[1]
    -1.0
    """
    if not math.isfinite(scale) or scale == 0:
        raise ValueError(f"the scale of the reward must be finite and not 0, not {scale}")
    return TransformReward(env, lambda reward: reward * scale)  # type: ignore[operator]


def target_rewards(
    env: gym.Env,
    target: Sequence[float],
    *,
    features: Sequence[int] | None = None,
    radius: float | None = None,
) -> gym.Env:
    """Reward nearness to a target, and nothing else: a new target changes what is good, not what happens.

    The two usual rewards of reaching tasks, dense and sparse; to switch the target between tasks is ours. The
    dense one is never positive, so an environment that can end an episode early rewards ending it: there, use
    ``radius``.

    Args:
        env: observations in a flat Box.
        target: the point to be at, one number for each of the features.
        features: the entries of the observation that count, in the order of ``target``; all if ``None``.
        radius: without it the reward is minus the Euclidean distance between the features and the target
            after the step; with it, 1.0 at a distance of at most this and 0.0 beyond.

    Raises:
        ValueError: features that are none of the observation's; a target of another length or not finite; a
            radius that is not positive and finite.
        TypeError: the observations are in no flat Box.

    >>> env = target_rewards(gym.make("CartPole-v1"), [0.5], features=[0])  # half a metre to the right
    >>> _ = env.reset(seed=0)
    >>> observation, reward, *_ = env.step(1)
    >>> round(float(observation[0]), 3), round(reward, 3)
    (0.013, -0.487)
    """
    space = _box(env)
    if len(space.shape) != 1:
        raise TypeError(f"a target needs observations in a flat Box, not {space}")
    entries = space.shape[0]
    chosen = list(range(entries) if features is None else features)
    if not chosen or not set(chosen) <= set(range(entries)):
        raise ValueError(f"features must be some of 0 to {entries - 1}, not {chosen}")
    point = np.asarray(target, np.float64)
    if point.shape != (len(chosen),) or not np.isfinite(point).all():
        raise ValueError(f"a target for {len(chosen)} features has as many finite numbers, not {target}")
    if radius is not None and not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"the radius of a target must be positive and finite, not {radius}")
    return Nearness(env, point, chosen, radius)


def offset_observations(env: gym.Env, seed: Seed, std: float = 2.0) -> gym.Env:
    """Add to every observation one vector, drawn once from N(0, std) for each entry.

    TRAC's drifting observations (Muppidi et al., 2024, "Fast TRAC"): N(0, 2), drawn anew at each task. That
    the 2 is a standard deviation is our reading. The bounds of the space move along.

    Args:
        env: observations in a Box of floating-point numbers.
        seed: draws the offset.
        std: standard deviation of each entry of the offset, in the units of the observation.

    Raises:
        ValueError: ``std`` is negative or not finite.
        TypeError: the observations are in no Box of floating-point numbers.

    >>> plain = gym.make("CartPole-v1")
    >>> moved = offset_observations(gym.make("CartPole-v1"), seed=0)
    >>> (moved.reset(seed=0)[0] - plain.reset(seed=0)[0]).round(2)
    array([ 0.44,  3.37,  4.92, -1.23], dtype=float32)
    """
    space = _box(env, np.floating)
    offset = _rng(seed, "offset_observations").normal(0.0, _size(std), space.shape).astype(space.dtype)
    moved = Box(space.low + offset, space.high + offset, space.shape, dtype=space.dtype.type)
    return TransformObservation(env, lambda observation: observation + offset, moved)


def noisy_observations(env: gym.Env, std: float, seed: Seed = 0) -> gym.Env:
    """Add independent Gaussian noise to every observation, new at each step and each reset.

    A textbook corruption of sensors; the size is the user's. The space loses its bounds, as noise has none.

    Args:
        env: observations in a Box of floating-point numbers.
        std: standard deviation of the noise, in the units of the observation.
        seed: with the seed of the reset it fixes all noise; tells apart two such wrappers around one
            environment. Keep it the same in every task: other noise of the same size is no other task.

    Raises:
        ValueError: ``std`` is negative or not finite.
        TypeError: the observations are in no Box of floating-point numbers.

    >>> env = noisy_observations(gym.make("CartPole-v1"), std=0.1)
    >>> bool((env.reset(seed=0)[0] == env.reset(seed=0)[0]).all())
    True
    """
    return Noise(env, std, seed)


def fail_actions(env: gym.Env, probability: float = 0.25, noop: Any = None, seed: Seed = 0) -> gym.Env:
    """Let each action fail with a probability: the last one is repeated, or nothing is done.

    Without ``noop``, actions are sticky as in the Arcade Learning Environment (Machado et al., 2018, 0.25):
    what was done at the last step, itself perhaps a repetition, is done again. The first action of an episode
    has none before it and is always carried out. With ``noop``, which is ours, a failed action is dropped,
    the first one too.

    Args:
        env: any environment whose actions are numbers or arrays of them.
        probability: of a failure at each step.
        noop: the action that stands for doing nothing.
        seed: with the seed of the reset it fixes every failure; see :func:`noisy_observations`.

    Raises:
        ValueError: the probability is not within [0, 1], or the action space does not contain ``noop``.
        TypeError: the actions are neither numbers nor arrays.

    >>> env = fail_actions(gym.make("CartPole-v1"), probability=1.0)
    >>> _ = env.reset(seed=0)
    >>> [f"{env.step(action)[0][1]:.2f}" for action in (1, 0, 0)]  # the cart is pushed to the right
    ['0.17', '0.37', '0.56']
    """
    space = env.action_space
    if not isinstance(space, (Box, Discrete, MultiBinary, MultiDiscrete)):
        raise TypeError(f"failing actions need an action space of numbers or arrays, not {space}")
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of a failure must be within [0, 1], not {probability}")
    if noop is not None and not space.contains(noop):
        raise ValueError(f"{noop!r} is no action of {space}")
    return Failure(env, probability, noop, seed)


class Rule(Protocol):
    """How a drifting parameter moves: a pure function."""

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """The value after ``step`` >= 1 steps.

        Args:
            start: the value that the parameter had before it drifted.
            value: the value after ``step - 1`` steps.
            step: environment steps made since then, in all episodes together.
            normal: a number drawn from N(0, 1) for this step.
        """


@dataclasses.dataclass(frozen=True)
class Increment:
    """The same amount ``by`` is added at each step.

    >>> Increment(by=0.5)(start=9.0, value=9.5, step=2, normal=0.0)
    10.0
    """

    by: float

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """The value after ``step`` steps."""
        return value + self.by


@dataclasses.dataclass(frozen=True)
class Oscillation:
    """A sine of ``amplitude`` around the start, with ``period`` steps for one cycle; ``phase`` in radians.

    >>> round(Oscillation(amplitude=2.0, period=100)(start=9.0, value=9.0, step=25, normal=0.0), 6)
    11.0
    """

    amplitude: float
    period: float
    phase: float = 0.0

    def __post_init__(self) -> None:
        _positive("period of an oscillation", self.period)

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """The value after ``step`` steps."""
        return start + self.amplitude * math.sin(2 * math.pi * step / self.period + self.phase)


@dataclasses.dataclass(frozen=True)
class RandomWalk:
    """A Gaussian step of standard deviation ``std`` is added at each step.

    >>> RandomWalk(std=0.5)(start=9.0, value=9.5, step=2, normal=-1.0)
    9.0
    """

    std: float

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """The value after ``step`` steps."""
        return value + self.std * normal


@dataclasses.dataclass(frozen=True)
class OrnsteinUhlenbeck:
    """A random walk that the ``mean`` (the start, if None) pulls back with strength ``rate``.

    One Euler-Maruyama step of length 1: x + rate * (mean - x) + std * N(0, 1).

    >>> OrnsteinUhlenbeck(rate=0.5, std=0.25)(start=8.0, value=10.0, step=1, normal=2.0)
    9.5
    """

    rate: float
    std: float
    mean: float | None = None

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """The value after ``step`` steps."""
        mean = start if self.mean is None else self.mean
        return value + self.rate * (mean - value) + self.std * normal


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """A smooth change to ``end``, half done at ``midpoint`` steps; from 10 to 90 % takes 4.4 ``width``.

    >>> Sigmoid(end=19.0, midpoint=100, width=10)(start=9.0, value=9.0, step=100, normal=0.0)
    14.0
    """

    end: float
    midpoint: float
    width: float

    def __post_init__(self) -> None:
        _positive("width of a sigmoid", self.width)

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """The value after ``step`` steps."""
        done = 0.5 * (1 + math.tanh((step - self.midpoint) / (2 * self.width)))  # the logistic function
        return start + (self.end - start) * done


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Any ``rule``, held within [``low``, ``high``].

    >>> Bounded(Increment(1.0), high=9.5)(start=9.0, value=9.0, step=1, normal=0.0)
    9.5
    """

    rule: Rule
    low: float = -math.inf
    high: float = math.inf

    def __call__(self, start: float, value: float, step: int, normal: float) -> float:
        """The value after ``step`` steps."""
        return min(max(self.rule(start, value, step, normal), self.low), self.high)


Derived = Mapping[str, Callable[[Any], float]]

DERIVED_OF_CARTPOLE: Derived = {
    "total_mass": lambda env: env.masspole + env.masscart,
    "polemass_length": lambda env: env.masspole * env.length,
}
"""What CartPole computes once, when it is made, and reads at each step."""


def drift(env: gym.Env, rules: Mapping[str, Rule], seed: Seed, derived: Derived | None = None) -> Drift:
    """Let physical parameters of the environment drift at every step, on and on across episodes.

    The rules are among those of NS-Gym (Keplinger et al., 2025), whose clock starts again at each reset; that
    ours does not, so that the drift lasts a whole life, and all sizes, are ours. The first step is made with
    the parameters as they are, and each step is followed by one update.

    The returned wrapper's ``lifelong_state`` (the clock and the values) is all that episodes share: read it,
    and set it on a new environment before the reset, to go on from there. Random rules draw from the seed and
    the clock alone. Since the same reset does not give the same episode later, the wrapper's ``spec`` says
    ``nondeterministic``.

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
    >>> _ = env.reset(seed=0)
    >>> _ = env.step(0)
    >>> _ = env.reset(seed=0)
    >>> env.lifelong_state
    {'step': 1, 'gravity': 10.3, 'masspole': 0.2}
    >>> env.unwrapped.total_mass
    1.2
    """
    return Drift(env, rules, seed, derived)


class Drift(gym.Wrapper, RecordConstructorArgs):
    """What :func:`drift` makes of an environment."""

    block = 1024  # random numbers are made for so many steps at once: making a generator is slow

    def __init__(
        self, env: gym.Env, rules: Mapping[str, Rule], seed: Seed, derived: Derived | None = None
    ) -> None:
        RecordConstructorArgs.__init__(self, rules=rules, seed=seed, derived=derived)
        gym.Wrapper.__init__(self, env)
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


class Nearness(gym.Wrapper, RecordConstructorArgs):
    """What :func:`target_rewards` makes of an environment."""

    def __init__(
        self, env: gym.Env, target: np.ndarray, features: Sequence[int], radius: float | None
    ) -> None:
        RecordConstructorArgs.__init__(self, target=target, features=features, radius=radius)
        gym.Wrapper.__init__(self, env)
        self.target, self.features, self.radius = target, features, radius

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Step, for another reward."""
        observation, _, terminated, truncated, info = self.env.step(action)
        distance = float(np.linalg.norm(np.take(observation, self.features) - self.target, axis=-1))
        reward = -distance if self.radius is None else float(distance <= self.radius)
        return observation, reward, terminated, truncated, info


class Noise(gym.ObservationWrapper, RecordConstructorArgs):
    """What :func:`noisy_observations` makes of an environment."""

    def __init__(self, env: gym.Env, std: float, seed: Seed = 0) -> None:
        RecordConstructorArgs.__init__(self, std=std, seed=seed)
        gym.ObservationWrapper.__init__(self, env)
        space = _box(env, np.floating)
        self.observation_space = Box(-np.inf, np.inf, space.shape, dtype=space.dtype.type)
        self.std, self.seed = _size(std), seed
        self.rng = _rng(seed, "noisy_observations")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode; without a seed the generator goes on."""
        if seed is not None:
            self.rng = _rng(self.seed, "noisy_observations", seed)
        return super().reset(seed=seed, options=options)

    def observation(self, observation: Any) -> Any:
        """The observation with noise on it, in its own dtype."""
        noise = self.rng.normal(0.0, self.std, observation.shape)
        return observation + noise.astype(observation.dtype)


class Failure(gym.ActionWrapper, RecordConstructorArgs):
    """What :func:`fail_actions` makes of an environment."""

    def __init__(self, env: gym.Env, probability: float, noop: Any = None, seed: Seed = 0) -> None:
        RecordConstructorArgs.__init__(self, probability=probability, noop=noop, seed=seed)
        gym.ActionWrapper.__init__(self, env)
        self.probability, self.noop, self.seed = probability, noop, seed
        self.rng = _rng(seed, "fail_actions")
        self.last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode, in which nothing has been done yet; without a seed the generator goes on."""
        self.last = None
        if seed is not None:
            self.rng = _rng(self.seed, "fail_actions", seed)
        return self.env.reset(seed=seed, options=options)

    def action(self, action: Any) -> Any:
        """What is done instead of ``action``."""
        instead = self.last if self.noop is None else self.noop
        if self.rng.random() < self.probability and instead is not None:
            action = instead
        self.last = copy.copy(action)
        return action


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
