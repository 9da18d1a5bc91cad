"""Changes that make one task differ from another, for any Gymnasium environment or vector environment.

Each function takes an environment and returns it wrapped; given a vector environment, it returns a vector
environment that behaves, sub-environment by sub-environment, as if each had been wrapped by itself.

What a wrapper draws once (a permutation, an offset) is drawn from its ``seed`` alone. What it draws at every
step (noise, failures) is drawn from its ``seed`` and the seed of the last ``reset``, one generator for each
sub-environment: after ``reset(seed)`` the same actions give the same bits, and the environment's own random
numbers are left as they are.

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
from typing import Any, Protocol, TypeVar, overload

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TransformAction, TransformObservation, TransformReward
from gymnasium.wrappers.vector import TransformAction as VectorTransformAction
from gymnasium.wrappers.vector import TransformReward as VectorTransformReward

E = TypeVar("E", bound=gym.Env | VectorEnv)
Seed = int | tuple[int, ...]


def permute_observations(
    env: E, seed: Seed | None = None, *, order: Sequence[int] | None = None, axis: int = -1
) -> E:
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
    return _map_observations(env, lambda observations: np.take(observations, place, axis), permuted)


def permute_actions(env: E, seed: Seed | None = None, *, order: Sequence[int] | None = None) -> E:
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
    space = _single(env, "action_space")
    if not isinstance(space, Discrete):
        raise TypeError(f"permuted actions need a Discrete action space, not {space}")
    start, dtype = space.start, space.dtype
    meaning = (start + _order(int(space.n), "permute_actions", seed, order)).astype(dtype)

    def permute(actions: Any) -> Any:
        return meaning[np.asarray(actions) - start]

    return _wrap(env, TransformAction, VectorTransformAction, permute, None)


def scale_rewards(env: E, scale: float) -> E:
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

    return _wrap(env, TransformReward, VectorTransformReward, lambda rewards: rewards * scale)


def target_rewards(
    env: E,
    target: Sequence[float],
    *,
    features: Sequence[int] | None = None,
    radius: float | None = None,
) -> E:
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

    def nearness(observations: np.ndarray) -> np.ndarray:
        distances = np.linalg.norm(np.take(observations, chosen, axis=-1) - point, axis=-1)
        return -distances if radius is None else np.where(distances <= radius, 1.0, 0.0)

    return _wrap(env, Nearness, VectorNearness, nearness)


def offset_observations(env: E, seed: Seed, std: float = 2.0) -> E:
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
    return _map_observations(env, lambda observations: observations + offset, moved)


def noisy_observations(env: E, std: float, seed: Seed = 0) -> E:
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
    _box(env, np.floating)
    return _wrap(env, Noise, VectorNoise, _size(std), seed)


def fail_actions(env: E, probability: float = 0.25, noop: Any = None, seed: Seed = 0) -> E:
    """Let each action fail with a probability: the last one is repeated, or nothing is done.

    Without ``noop``, actions are sticky as in the Arcade Learning Environment (Machado et al., 2018, 0.25):
    what was done at the last step, itself perhaps a repetition, is done again. The first action of an episode
    has none before it and is always carried out. With ``noop``, which is ours, a failed action is dropped,
    the first one too. Vector environments that reset at the next step draw nothing at that step.

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
    space = _single(env, "action_space")
    if not isinstance(space, (Box, Discrete, MultiBinary, MultiDiscrete)):
        raise TypeError(f"failing actions need an action space of numbers or arrays, not {space}")
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of a failure must be within [0, 1], not {probability}")
    if noop is not None and not space.contains(noop):
        raise ValueError(f"{noop!r} is no action of {space}")
    return _wrap(env, Failure, VectorFailure, probability, noop, seed)


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


@overload
def drift(env: gym.Env, rules: Mapping[str, Rule], seed: Seed, derived: Derived | None = None) -> Drift: ...


@overload
def drift(
    env: VectorEnv, rules: Mapping[str, Rule], seed: Seed, derived: Derived | None = None
) -> VectorDrift: ...


def drift(
    env: gym.Env | VectorEnv, rules: Mapping[str, Rule], seed: Seed, derived: Derived | None = None
) -> Drift | VectorDrift:
    """Let physical parameters of the environment drift at every step, on and on across episodes.

    The rules are among those of NS-Gym (Keplinger et al., 2025), whose clock starts again at each reset; that
    ours does not, so that the drift lasts a whole life, and all sizes, are ours. The first step is made with
    the parameters as they are, and each step is followed by one update. A vector environment has one clock
    for all its sub-environments, which moves by 1 at each of its steps.

    The returned wrapper's ``lifelong_state`` (the clock and the values) is all that episodes share: read it,
    and set it on a new environment before the reset, to go on from there. Random rules draw from the seed and
    the clock alone. Since the same reset does not give the same episode later, the wrapper's ``spec`` says
    ``nondeterministic``.

    Args:
        env: an environment, or a vector environment that lives in this process (for one that does not, wrap
            the sub-environments).
        rules: for each attribute of the unwrapped environment, how it moves.
        seed: of the random rules.
        derived: attributes that the environment computes once from others, in order, each with a function of
            the unwrapped environment that computes it again; ``None`` knows those of CartPole and no others.

    Raises:
        AttributeError: the unwrapped environment has no such attribute.
        TypeError: the attribute is no number.
        ValueError: no rules, a rule for a derived attribute, or sub-environments that start out different.

    >>> env = drift(gym.make("CartPole-v1"), {"gravity": Increment(0.5), "masspole": Increment(0.1)}, seed=0)
    >>> _ = env.reset(seed=0)
    >>> _ = env.step(0)
    >>> _ = env.reset(seed=0)
    >>> env.lifelong_state
    {'step': 1, 'gravity': 10.3, 'masspole': 0.2}
    >>> env.unwrapped.total_mass
    1.2
    """
    return _wrap(env, Drift, VectorDrift, rules, seed, derived)


class Parameters:
    """The drifting parameters of one environment, or of all sub-environments of a vector environment."""

    block = 1024  # random numbers are made for so many steps at once: making a generator is slow

    def __init__(
        self, env: gym.Env | VectorEnv, rules: Mapping[str, Rule], seed: Seed, derived: Derived | None
    ) -> None:
        base: Any = env.unwrapped
        is_vector = isinstance(base, VectorEnv) and hasattr(base, "envs")
        self.targets = [sub.unwrapped for sub in base.envs] if is_vector else [base]
        if derived is None:
            is_cartpole = isinstance(self.targets[0], (CartPoleEnv, CartPoleVectorEnv))
            derived = DERIVED_OF_CARTPOLE if is_cartpole else {}
        if not rules:
            raise ValueError("a drift needs at least one parameter")
        if overwritten := rules.keys() & derived.keys():
            raise ValueError(f"{sorted(overwritten)} cannot drift: computed from other parameters")
        for name in (*rules, *derived):
            if not hasattr(self.targets[0], name):
                raise AttributeError(f"{type(self.targets[0]).__name__} has no attribute {name!r} to drift")
        self.rules, self.derived, self.seed = dict(rules), derived, seed
        self.start = {name: self._number(name) for name in rules}
        self.step, self.values = 0, dict(self.start)
        self.drawn = -1

    def advance(self) -> None:
        """One step of the clock."""
        block, place = divmod(self.step, self.block)
        if block != self.drawn:
            shape = (self.block, len(self.rules))
            self.normals, self.drawn = _rng(self.seed, "drift", block).standard_normal(shape).tolist(), block
        self.step += 1
        for (name, rule), normal in zip(self.rules.items(), self.normals[place]):
            self.values[name] = float(rule(self.start[name], self.values[name], self.step, normal))
        self.write()

    def write(self) -> None:
        """Hand the values to the simulator, and compute again what it derived from them."""
        for target in self.targets:
            for name, value in self.values.items():
                setattr(target, name, value)
            for name, function in self.derived.items():
                setattr(target, name, function(target))

    def _number(self, name: str) -> float:
        values = [getattr(target, name) for target in self.targets]
        if isinstance(values[0], bool) or not isinstance(values[0], (int, float, np.number)):
            raise TypeError(f"only numbers drift, and {name!r} is {values[0]!r}")
        if any(value != values[0] for value in values):
            raise ValueError(f"{name!r} differs between sub-environments: {values}")
        return float(values[0])


class Drifting:
    """What the wrappers of environments and of vector environments have in common."""

    env: Any
    parameters: Parameters

    @property
    def lifelong_state(self) -> dict[str, float]:
        """The clock, in steps, and the value of each parameter: readable, and restorable."""
        return {"step": self.parameters.step, **self.parameters.values}

    @lifelong_state.setter
    def lifelong_state(self, state: Mapping[str, float]) -> None:
        if state.keys() != {"step", *self.parameters.rules}:
            raise ValueError(f"a drift of {sorted(self.parameters.rules)} has no state {dict(state)}")
        self.parameters.step = int(state["step"])
        self.parameters.values = {name: float(state[name]) for name in self.parameters.rules}
        self.parameters.write()

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start with the parameters where they are, even if the environment's reset puts them back."""
        self.parameters.write()
        out = self.env.reset(seed=seed, options=options)
        self.parameters.write()
        return out

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Step, then let the parameters move."""
        out = self.env.step(action)
        self.parameters.advance()
        return out


class Drift(Drifting, gym.Wrapper, RecordConstructorArgs):
    """What :func:`drift` makes of an environment."""

    def __init__(
        self, env: gym.Env, rules: Mapping[str, Rule], seed: Seed, derived: Derived | None = None
    ) -> None:
        RecordConstructorArgs.__init__(self, rules=rules, seed=seed, derived=derived)
        gym.Wrapper.__init__(self, env)
        self.parameters = Parameters(env, rules, seed, derived)

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The environment's own, marked as one whose resets do not fix its episodes."""
        spec = super().spec
        if spec is not None:
            spec.nondeterministic = True
        return spec


class VectorDrift(Drifting, VectorWrapper):
    """What :func:`drift` makes of a vector environment."""

    def __init__(
        self, env: VectorEnv, rules: Mapping[str, Rule], seed: Seed, derived: Derived | None = None
    ) -> None:
        VectorWrapper.__init__(self, env)
        self.parameters = Parameters(env, rules, seed, derived)


class Nearness(gym.Wrapper, RecordConstructorArgs):
    """What :func:`target_rewards` makes of an environment."""

    def __init__(self, env: gym.Env, nearness: Callable[[np.ndarray], np.ndarray]) -> None:
        RecordConstructorArgs.__init__(self, nearness=nearness)
        gym.Wrapper.__init__(self, env)
        self.nearness = nearness

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Step, for another reward."""
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, float(self.nearness(observation)), terminated, truncated, info


class VectorNearness(VectorWrapper):
    """What :func:`target_rewards` makes of a vector environment."""

    def __init__(self, env: VectorEnv, nearness: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(env)
        self.nearness = nearness
        self.ended = np.zeros(env.num_envs, dtype=bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start episodes."""
        self.ended[_begun(self.num_envs, seed, options)[0]] = False
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Step all sub-environments, for other rewards."""
        observations, _, terminated, truncated, info = self.env.step(actions)
        rewards = self.nearness(observations)
        for index in np.flatnonzero(info.get("_final_obs", ())):
            rewards[index] = self.nearness(info["final_obs"][index])
        if self.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP:
            rewards[self.ended] = 0.0  # this step reset them
        self.ended = np.asarray(terminated | truncated)
        return observations, rewards, terminated, truncated, info


class NoiseSource:
    """The noise of one sub-environment."""

    def __init__(self, std: float, seed: Seed) -> None:
        self.std, self.seed = std, seed
        self.rng = _rng(seed, "noisy_observations")

    def begin(self, seed: int | None) -> None:
        """An episode begins; without a seed the generator goes on."""
        if seed is not None:
            self.rng = _rng(self.seed, "noisy_observations", seed)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """The observation with noise on it, in its own dtype."""
        noise = self.rng.normal(0.0, self.std, observation.shape)
        return observation + noise.astype(observation.dtype)


class Noise(gym.ObservationWrapper, RecordConstructorArgs):
    """What :func:`noisy_observations` makes of an environment."""

    def __init__(self, env: gym.Env, std: float, seed: Seed = 0) -> None:
        RecordConstructorArgs.__init__(self, std=std, seed=seed)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = _unbounded(_box(env))
        self.noise = NoiseSource(std, seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode."""
        self.noise.begin(seed)
        return super().reset(seed=seed, options=options)

    def observation(self, observation: Any) -> Any:
        """The observation with noise on it."""
        return self.noise(observation)


class VectorObservations(VectorWrapper):
    """Changes observations, those at the end of an episode (``info["final_obs"]``) included.

    Gymnasium's own wrapper refuses vector environments that reset in the step that ends an episode.

    Args:
        env: the vector environment.
        function: of observations (M, ...) and of the sub-environments (M,) they come from.
        space: of one changed observation.
    """

    def __init__(
        self, env: VectorEnv, function: Callable[[np.ndarray, np.ndarray], np.ndarray], space: Box
    ) -> None:
        super().__init__(env)
        self.function = function
        self.single_observation_space = space
        self.observation_space = batch_space(space, env.num_envs)
        self.seen = np.zeros((env.num_envs, *space.shape), space.dtype)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start episodes in all sub-environments, or where ``options["reset_mask"]`` is set."""
        begun, _ = _begun(self.num_envs, seed, options)
        observations, info = self.env.reset(seed=seed, options=options)
        self.seen[begun] = self.function(observations[begun], begun)
        return self.seen.copy(), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Step all sub-environments."""
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        if "final_obs" in info:
            info["final_obs"] = info["final_obs"].copy()
            for index in np.flatnonzero(info["_final_obs"]):
                last = np.asarray(info["final_obs"][index])
                info["final_obs"][index] = self.function(last[None], np.array([index]))[0]
        self.seen = self.function(observations, np.arange(self.num_envs))
        return self.seen.copy(), rewards, terminated, truncated, info


class VectorNoise(VectorObservations):
    """What :func:`noisy_observations` makes of a vector environment."""

    def __init__(self, env: VectorEnv, std: float, seed: Seed = 0) -> None:
        super().__init__(env, self._noisy, _unbounded(_box(env)))
        self.noises = [NoiseSource(std, seed) for _ in range(env.num_envs)]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start episodes."""
        for index, start in zip(*_begun(self.num_envs, seed, options)):
            self.noises[index].begin(start)
        return super().reset(seed=seed, options=options)

    def _noisy(self, observations: np.ndarray, envs: np.ndarray) -> np.ndarray:
        return np.stack([self.noises[index](row) for index, row in zip(envs, observations)])


class FailureSource:
    """The failures of one sub-environment."""

    def __init__(self, probability: float, noop: Any, seed: Seed) -> None:
        self.probability, self.noop, self.seed = probability, noop, seed
        self.rng = _rng(seed, "fail_actions")
        self.last: Any = None

    def begin(self, seed: int | None) -> None:
        """An episode begins; without a seed the generator goes on."""
        self.last = None
        if seed is not None:
            self.rng = _rng(self.seed, "fail_actions", seed)

    def __call__(self, action: Any) -> Any:
        """What is done instead of ``action``."""
        instead = self.last if self.noop is None else self.noop
        if self.rng.random() < self.probability and instead is not None:
            action = instead
        self.last = copy.copy(action)
        return action


class Failure(gym.ActionWrapper, RecordConstructorArgs):
    """What :func:`fail_actions` makes of an environment."""

    def __init__(self, env: gym.Env, probability: float, noop: Any = None, seed: Seed = 0) -> None:
        RecordConstructorArgs.__init__(self, probability=probability, noop=noop, seed=seed)
        gym.ActionWrapper.__init__(self, env)
        self.failure = FailureSource(probability, noop, seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode, in which nothing has been done yet."""
        self.failure.begin(seed)
        return self.env.reset(seed=seed, options=options)

    def action(self, action: Any) -> Any:
        """What is done instead of ``action``."""
        return self.failure(action)


class VectorFailure(VectorWrapper):
    """What :func:`fail_actions` makes of a vector environment."""

    def __init__(self, env: VectorEnv, probability: float, noop: Any = None, seed: Seed = 0) -> None:
        super().__init__(env)
        self.failures = [FailureSource(probability, noop, seed) for _ in range(env.num_envs)]
        self.ended = np.zeros(env.num_envs, dtype=bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start episodes, in which nothing has been done yet."""
        for index, start in zip(*_begun(self.num_envs, seed, options)):
            self.failures[index].begin(start)
            self.ended[index] = False
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Step all sub-environments."""
        actions = np.array(actions)
        resets = self.ended & (self.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP)
        for index in np.flatnonzero(~resets):
            actions[index] = self.failures[index](actions[index])
        out = self.env.step(actions)
        self.ended = np.asarray(out[2] | out[3])
        for index in np.flatnonzero(self.ended):
            self.failures[index].begin(None)
        return out


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


def _wrap(env: Any, single: Callable[..., Any], vector: Callable[..., Any], *arguments: Any) -> Any:
    """The environment in the wrapper of its kind."""
    return (vector if isinstance(env, VectorEnv) else single)(env, *arguments)


def _map_observations(env: Any, function: Callable[[Any], Any], space: Box) -> Any:
    """Apply to observations a function that takes one of them or a batch of them."""
    if isinstance(env, VectorEnv):
        return VectorObservations(env, lambda observations, _: function(observations), space)
    return TransformObservation(env, function, space)


def _single(env: gym.Env | VectorEnv, kind: str) -> gym.Space:
    """The space of one environment."""
    return getattr(env, f"single_{kind}" if isinstance(env, VectorEnv) else kind)


def _box(env: gym.Env | VectorEnv, kind: type[np.generic] = np.generic) -> Box:
    """The space of one observation, which must be a Box of such numbers with at least one axis."""
    space = _single(env, "observation_space")
    if not isinstance(space, Box) or not space.shape or not np.issubdtype(space.dtype, kind):
        numbers = "floating-point numbers" if kind is np.floating else "numbers"
        raise TypeError(f"this needs observations in a Box of {numbers}, not {space}")
    return space


def _unbounded(space: Box) -> Box:
    return Box(-np.inf, np.inf, space.shape, dtype=space.dtype.type)


def _size(std: float) -> float:
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"a standard deviation must be finite and not negative, not {std}")
    return std


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"the {name} must be positive, not {value}")


def _begun(num_envs: int, seed: Any, options: dict[str, Any] | None) -> tuple[np.ndarray, list[int | None]]:
    """The sub-environments in which a vector reset begins an episode, and its seed in each."""
    begun = np.flatnonzero((options or {}).get("reset_mask", np.ones(num_envs, dtype=bool)))
    if seed is None or isinstance(seed, (int, np.integer)):
        seed = [None if seed is None else int(seed) + index for index in range(num_envs)]
    return begun, [seed[index] for index in begun]
