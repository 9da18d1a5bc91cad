"""The simulators of CartPole, Acrobot and MountainCar on tensors: pure functions of N environments' states.

Equations, order of integration and limits are those of Gymnasium's ``step``; factors that are the same at
each step are multiplied beforehand, so that results differ by rounding errors. States and results are
float64, one row for each number of the state. No function reads a value from the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import torch
from gymnasium.envs.classic_control import AcrobotEnv, CartPoleEnv, MountainCarEnv
from torch import Tensor

from neoteny.envs.engine import UncoveredError

Constants = tuple[Tensor, ...]
"""What a simulator computes from its parameters, see :meth:`Physics.constants`."""


class Physics:
    """A simulator.

    Args:
        env: the unwrapped environment, of which what no number says is read, such as the integrator.

    Raises:
        UncoveredError: it does something that is not covered here.
    """

    kind: ClassVar[type[gym.Env]]
    """Gymnasium's class."""
    names: ClassVar[tuple[str, ...]]
    """Parameters: attributes of the environment that its ``step`` reads, all of them numbers."""
    low: ClassVar[tuple[float, ...]]
    """Lowest values of the state after a reset, n of them."""
    high: ClassVar[tuple[float, ...]]
    """Highest values of the state after a reset, n of them."""
    size: ClassVar[int]
    """D, the length of an observation."""

    def __init__(self, env: Any) -> None:
        self.pushes: list[float] = []
        """What each action does: forces relative to the largest, or torques."""
        self.rewards = (0.0, 0.0)
        """Reward of each step, and what is added to it where the episode terminates."""

    def constants(self, parameters: Sequence[Tensor]) -> Constants:
        """Compute what :meth:`step` and :meth:`ended` need from parameters, in the order of ``names``."""
        raise NotImplementedError

    def step(self, state: Tensor, push: Tensor, constants: Constants) -> Tensor:
        """The states after a step, (n, N), from those before, (n, N), and what the actions do, (N,)."""
        raise NotImplementedError

    def ended(self, state: Tensor, constants: Constants) -> Tensor:
        """Whether episodes terminate in these states, (N,)."""
        raise NotImplementedError

    def observe(self, state: Tensor) -> Tensor:
        """Observations in these states, (D, N), before they are rounded to float32."""
        return state

    def first(self, drawn: Tensor) -> Tensor:
        """The first states of episodes, (n, N), from those drawn between ``low`` and ``high``, (n, N)."""
        return drawn


class CartPole(Physics):
    """The cart and its pole; the state is position, velocity, angle, angular velocity."""

    kind = CartPoleEnv
    names = (
        *("gravity", "masspole", "total_mass", "length", "polemass_length", "force_mag", "tau"),
        *("x_threshold", "theta_threshold_radians"),
    )
    low, high = (-0.05,) * 4, (0.05,) * 4
    size = 4

    def __init__(self, env: Any) -> None:
        self.pushes = [-1.0, 1.0]
        self.rewards = (0.0, -1.0) if env._sutton_barto_reward else (1.0, 0.0)
        self.is_explicit = env.kinematics_integrator == "euler"

    def constants(self, parameters: Sequence[Tensor]) -> Constants:
        """As every :class:`Physics`."""
        gravity, pole, total, length, pole_length, force, tau, *thresholds = parameters
        inertia, coupling = length * (4.0 / 3.0), length * pole / total
        limits = torch.stack(thresholds)[:, None]
        return gravity, force / total, pole_length / total, inertia, coupling, tau, limits

    def step(self, state: Tensor, push: Tensor, constants: Constants) -> Tensor:
        """As every :class:`Physics`."""
        gravity, force, pole, inertia, coupling, tau, _ = constants
        _, speed, angle, turning = state.unbind()
        sine, cosine = angle.sin(), angle.cos()
        pull = (turning * turning).mul_(sine).mul_(pole).add_(push * force)
        torque = (sine * gravity).sub_(cosine * pull)
        turn = torque.div_(inertia - (cosine * cosine).mul_(coupling))
        gain = pull.sub_((turn * cosine).mul_(pole))
        if self.is_explicit:
            return torch.stack((speed, gain, turning, turn)).mul_(tau).add_(state)
        rates = torch.stack((gain, turn)).mul_(tau).add_(state[1::2])
        return torch.stack((state[::2] + rates * tau, rates), 1).view_as(state)

    def ended(self, state: Tensor, constants: Constants) -> Tensor:
        """As every :class:`Physics`."""
        return (state[::2].abs() > constants[-1]).any(0)


class Acrobot(Physics):
    """Two links; the state is both angles, then both angular velocities."""

    kind = AcrobotEnv
    names = (
        *("dt", "LINK_LENGTH_1", "LINK_MASS_1", "LINK_MASS_2", "LINK_COM_POS_1", "LINK_COM_POS_2"),
        *("LINK_MOI", "MAX_VEL_1", "MAX_VEL_2", "torque_noise_max"),
    )
    low, high = (-0.1,) * 4, (0.1,) * 4
    size = 6

    def __init__(self, env: Any) -> None:
        self.pushes = [float(torque) for torque in env.AVAIL_TORQUE][:3]
        self.rewards = (-1.0, 1.0)
        self.is_book = env.book_or_nips != "nips"
        if env.torque_noise_max > 0:
            raise UncoveredError("its torque has random noise, torque_noise_max")
        if len(self.pushes) < 3:
            raise UncoveredError(f"it has {len(self.pushes)} torques for three actions")

    def constants(self, parameters: Sequence[Tensor]) -> Constants:
        """As every :class:`Physics`."""
        dt, length, one, two, center_1, center_2, inertia, *speeds, _ = parameters
        coupling = two * length * center_2
        own = two * center_2 * center_2 + inertia
        rest = one * center_1 * center_1 + two * (length * length - center_2 * center_2)
        weights = torch.stack((one * center_1 + two * length, two * center_2))[:, None] * 9.8
        return coupling, own, rest, weights, dt, dt / 2, dt / 6, torch.stack(speeds)[:, None]

    def step(self, state: Tensor, push: Tensor, constants: Constants) -> Tensor:
        """As every :class:`Physics`: one step of the Runge-Kutta method of fourth order."""
        *_, dt, half, sixth, fastest = constants
        one = self._rates(state, push, constants)
        two = self._rates((one * half).add_(state), push, constants)
        three = self._rates((two * half).add_(state), push, constants)
        four = self._rates((three * dt).add_(state), push, constants)
        moved = two.add_(three).mul_(2).add_(one).add_(four).mul_(sixth).add_(state)
        angles, speeds = moved[:2], moved[2:]
        angles.sub_((angles / (2 * math.pi)).round_().mul_(2 * math.pi))
        torch.minimum(torch.maximum(speeds, -fastest), fastest, out=speeds)
        return moved

    def ended(self, state: Tensor, constants: Constants) -> Tensor:
        """As every :class:`Physics`: whether the free end is high enough."""
        return state[0].cos().add_((state[0] + state[1]).cos_()) < -1.0

    def observe(self, state: Tensor) -> Tensor:
        """As every :class:`Physics`: cosines and sines of the angles, then the angular velocities."""
        angles, speeds = state[:2], state[2:]
        return torch.cat((torch.stack((angles.cos(), angles.sin()), 1).flatten(0, 1), speeds))

    def first(self, drawn: Tensor) -> Tensor:
        """As every :class:`Physics`: Gymnasium rounds them to float32."""
        return drawn.float().double()

    def _rates(self, state: Tensor, push: Tensor, constants: Constants) -> Tensor:
        """Rates of change of the states, (4, N)."""
        coupling, own, rest, weights, *_ = constants
        angle, bend, speed, bending = state.unbind()
        sine = bend.sin()
        swing = sine * coupling
        upper, lower = (torch.stack((angle, angle + bend)).sin_() * weights).unbind()
        shared = bend.cos().mul_(coupling).add_(own)
        total = (shared * 2).add_(rest)
        ratio = shared / total
        # phi1 of Sutton and Barto's book, and the torque on the second joint.
        resistance = (speed * 2).add_(bending).mul_(bending).mul_(swing)
        first = (upper + lower).sub_(resistance)
        torque = (ratio * first).add_(push).sub_(lower)
        if self.is_book:
            torque.sub_((speed * speed).mul_(swing))
        second = torque.div_(own - shared.mul_(ratio))
        turn = (ratio * second).add_(first.div_(total)).neg_()
        return torch.stack((speed, bending, turn, second))


class MountainCar(Physics):
    """The car in the valley; the state is position and velocity."""

    kind = MountainCarEnv
    names = (
        *("force", "gravity", "max_speed", "min_position", "max_position", "goal_position", "goal_velocity"),
    )
    low, high = (-0.6, 0.0), (-0.4, 0.0)
    size = 2

    def __init__(self, env: Any) -> None:
        self.pushes = [-1.0, 0.0, 1.0]
        self.rewards = (-1.0, 0.0)

    def constants(self, parameters: Sequence[Tensor]) -> Constants:
        """As every :class:`Physics`."""
        force, gravity, fastest, leftmost, rightmost, *goal = parameters
        return force, gravity, fastest, -fastest, leftmost, rightmost, torch.stack(goal)[:, None]

    def step(self, state: Tensor, push: Tensor, constants: Constants) -> Tensor:
        """As every :class:`Physics`: the car stops at the left end."""
        force, gravity, fastest, slowest, leftmost, rightmost, _ = constants
        place, speed = state.unbind()
        speed = (push * force).sub_((place * 3).cos_().mul_(gravity)).add_(speed)
        speed = torch.minimum(torch.maximum(speed, slowest, out=speed), fastest, out=speed)
        place = place + speed
        place = torch.minimum(torch.maximum(place, leftmost, out=place), rightmost, out=place)
        speed.masked_fill_((place == leftmost).logical_and_(speed < 0), 0.0)
        return torch.stack((place, speed))

    def ended(self, state: Tensor, constants: Constants) -> Tensor:
        """As every :class:`Physics`: whether the goal is reached, and fast enough."""
        return (state >= constants[-1]).all(0)


SIMULATORS: tuple[type[Physics], ...] = (CartPole, Acrobot, MountainCar)
