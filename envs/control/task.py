"""The definition of a classic control task, read from an environment and its wrappers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit, TransformAction

from neoteny.envs.control.physics import SIMULATORS, Physics
from neoteny.envs.control.wrappers import PermutedActions, Repeat, Rotation
from neoteny.envs.engine import UncoveredError
from neoteny.envs.grid.transforms import meanings, users_parts
from neoteny.envs.user_code import is_users, users_members

FOREVER = 2**62
"""Steps of an episode without a limit."""


class ControlTask:
    """The definition of one task.

    Args:
        env: CartPole, Acrobot or MountainCar, in wrappers that rotate observations, rename or repeat actions,
            or limit the length of episodes.

    Raises:
        UncoveredError: it is none of these, or does something else.
    """

    def __init__(self, env: gym.Env) -> None:
        layers: list[Any] = []
        while isinstance(env, gym.Wrapper):
            layers.append(env)
            env = env.env
        name = type(env).__name__
        if (simulator := simulator_of(env)) is None:
            raise UncoveredError(f"{name} is not CartPole, Acrobot or MountainCar")
        for kind in type(env).__mro__[: type(env).__mro__.index(simulator.kind)]:
            if not is_users(kind):  # which reading would take for known
                raise UncoveredError(f"{kind.__name__} is not Gymnasium's {simulator.kind.__name__}")
        if overridden := users_members(env).keys() - {"__init__"}:
            raise UncoveredError(f"{name} overrides {', '.join(sorted(overridden))}")
        if env.render_mode == "human":
            raise UncoveredError(f"{name} is drawn at every step")
        self.physics: Physics = simulator(env)
        self.parameters = {each: _number(env, each) for each in simulator.names}
        """Numbers that the simulator reads, by name."""
        self.actions = list(range(len(self.physics.pushes)))
        """The simulator's action for each action of the agent."""
        self.times = 1
        """How often each action is repeated."""
        self.limit = FOREVER
        """Steps of the simulator after which an episode is cut, even between repetitions of an action."""
        self.cut = FOREVER
        """Steps of the simulator after which an episode is cut once an action is carried out."""
        self.matrix: np.ndarray | None = None
        """What observations are multiplied by, (D', D) float64."""
        self.is_users = is_users(type(env))
        """Whether a part of it is a user's."""
        if env.action_space != Discrete(len(self.actions)):
            raise UncoveredError(f"the actions of {name} are {env.action_space}")
        if env.observation_space.shape != (simulator.size,) or env.observation_space.dtype != np.float32:
            raise UncoveredError(f"the observations of {name} are {env.observation_space}")
        for layer in layers[::-1]:
            self._read(layer)
            space = layer.action_space
            if not isinstance(space, Discrete) or space.start != 0 or space.n > len(self.actions):
                raise UncoveredError(f"the actions of {type(layer).__name__} are {space}")

    @property
    def pushes(self) -> list[float]:
        """What each action of the agent does to the simulator, see :class:`Physics`."""
        return [self.physics.pushes[action] for action in self.actions]

    def unlike(self, other: ControlTask) -> str:
        """What differs from another environment of the same task; empty if nothing does."""
        for name, value in self.parameters.items():
            if value != other.parameters[name]:
                return name
        one, two = (
            {
                "what its actions do": (task.pushes, task.times),
                "the limit of steps": (task.limit, task.cut),
                "the matrix of its observations": None if task.matrix is None else task.matrix.tolist(),
                "the simulator": vars(task.physics),
            }
            for task in (self, other)
        )
        return next((what for what in one if one[what] != two[what]), "")

    def _read(self, layer: Any) -> None:
        """Read what a wrapper does to what is within it."""
        name = type(layer).__name__
        own = users_parts(layer)
        self.is_users |= bool(own)
        match layer:
            case _ if own.keys() - {"func"}:
                raise UncoveredError(f"what the wrapper {name} does is not known")
            case OrderEnforcing() | PassiveEnvChecker():
                pass
            case TimeLimit() if self.times == 1:
                self.limit = self.cut = min(self.limit, layer._max_episode_steps)
            case TimeLimit():  # of the agent's steps, of which the last may have fewer repetitions
                self.cut = min(self.cut, (layer._max_episode_steps - 1) * self.times + 1)
            case Repeat() if layer.times >= 1 and self.cut == self.limit:
                self.times *= layer.times
            case Rotation():
                matrix = layer.matrix.astype(np.float64)
                self.matrix = matrix if self.matrix is None else matrix @ self.matrix
            case PermutedActions():
                self.actions = [self.actions[action] for action in layer.order]
            case TransformAction():
                self.actions = meanings(layer, self.actions)
            case _:
                raise UncoveredError(f"what the wrapper {name} does is not known")


def simulator_of(env: gym.Env) -> type[Physics] | None:
    """The simulator on tensors of an unwrapped environment, if there is one."""
    return next((simulator for simulator in SIMULATORS if isinstance(env, simulator.kind)), None)


def _number(env: Any, name: str) -> float:
    """A parameter; UncoveredError unless it is a number as the package's are, which is never rounded."""
    value = getattr(env, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UncoveredError(f"{name} of {type(env).__name__} is {value!r}, which is no plain number")
    return value
