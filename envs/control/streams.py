"""Classic control streams: observations, actions or physics change. The fastest streams to start with."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np

from neoteny.envs.control.wrappers import PermutedActions, Repeat, Rotation
from neoteny.envs.registry import stream, task_rng
from neoteny.envs.tasks import TaskFunction


@stream("cartpole-rotations", period=16_384)
def cartpole_rotations(k: int, seed: int) -> gym.Env:
    """CartPole with its four observations rotated at random into sixteen dimensions and its actions permuted.

    The optimal behaviour stays the same, but observations and the meaning of actions are new in each task, so
    nothing learned transfers except the ability to learn. Episodes last at most 200 steps. Our own design.
    """
    rng = task_rng(seed, k)
    rotation = np.linalg.qr(rng.standard_normal((16, 4)))[0].astype(np.float32)
    order = rng.permutation(2)
    env = gym.make("CartPole-v1", max_episode_steps=200, disable_env_checker=True)
    return PermutedActions(Rotation(env, rotation), order)


@stream("cartpole-gravity", period=16_384)
def cartpole_gravity(k: int, seed: int) -> gym.Env:
    """CartPole on another planet: Earth first, then gravity drawn log-uniformly from 2 to 50 m/s^2.

    Episodes last at most 200 steps. Our own design.
    """
    env = gym.make("CartPole-v1", max_episode_steps=200, disable_env_checker=True)
    if k > 0:
        env.unwrapped.gravity = float(np.exp(task_rng(seed, k).uniform(np.log(2), np.log(50))))  # type: ignore[attr-defined]
    return env


def physics(name: str, small: int) -> Callable[[TaskFunction], TaskFunction]:
    """Register a task as ``<name>-jumps`` and ``<name>-drift``, and as ``-small`` forms of both.

    With ``-jumps`` the physics change at each switch; with ``-drift`` they change gradually over the whole
    visit, from those of the last task to those of this one. Full-size tasks last 500,000 steps, as
    LunarLander's in Chung et al. (2024), "Parseval Regularization for Continual Reinforcement Learning"
    (github.com/wechu/parseval_reg; 10,000,000 steps in all), which also draws physics for CartPole and
    Acrobot. The ``-drift`` form is ours.

    Args:
        name: of the environment.
        small: steps per task of the ``-small`` forms, which are ours.
    """

    def register(task: TaskFunction) -> TaskFunction:
        for suffix, period in (("", 500_000), ("-small", small)):
            stream(f"{name}-jumps{suffix}", period=period)(task)
            stream(f"{name}-drift{suffix}", period=period, drift_fraction=1.0)(task)
        return task

    return register


def draw(env: gym.Env, k: int, seed: int, **ranges: tuple[float, float]) -> gym.Env:
    """Draw attributes of the simulator log-uniformly from their ranges; task 0 keeps the default physics."""
    if k > 0:
        rng = task_rng(seed, k)
        for name, (low, high) in ranges.items():
            setattr(env.unwrapped, name, low * (high / low) ** rng.random())
    return env


@physics("cartpole", small=24_576)
def cartpole_physics(k: int, seed: int) -> gym.Env:
    """CartPole whose gravity, pole length and force are 10^-0.5 to 10^0.5 times the default, log-uniformly.

    Parameters and ranges are those of Chung et al.; the default physics of the first task and the limit of
    200 steps per episode are ours. Unlike there, no draw is rejected for being near the last one.
    """
    env = gym.make("CartPole-v1", max_episode_steps=200, disable_env_checker=True)
    draw(env, k, seed, gravity=(3.1, 31.0), length=(0.16, 1.6), force_mag=(3.2, 32.0))
    pole = env.unwrapped
    pole.polemass_length = pole.masspole * pole.length  # type: ignore[attr-defined]  # the simulator's cache
    return env


@physics("acrobot", small=40_960)
def acrobot_physics(k: int, seed: int) -> gym.Env:
    """Acrobot whose first link is 0.5 to 1.5 m long and whose links weigh 0.5 to 1.5 kg each, log-uniformly.

    Chung et al. vary the same and also LINK_LENGTH_2, which the simulator draws but never reads, from 0.1 to
    3.16 times the default. The narrower range, which leaves every task solvable within an episode's 500
    steps, and the default first are ours.
    """
    env = gym.make("Acrobot-v1", disable_env_checker=True)
    link = (0.5, 1.5)
    return draw(env, k, seed, LINK_LENGTH_1=link, LINK_MASS_1=link, LINK_MASS_2=link)


@physics("mountaincar", small=20_480)
def mountaincar_physics(k: int, seed: int) -> gym.Env:
    """MountainCar whose gravity and force are 0.7 to 1.4 times the default, log-uniformly.

    All but the length of the full-size tasks is ours. The reward is sparse, and single random actions never
    reach the goal: each action is therefore repeated 8 times, and episodes last at most 1000 simulator steps,
    125 agent steps, instead of 200.
    """
    env = gym.make("MountainCar-v0", max_episode_steps=1000, disable_env_checker=True)
    return Repeat(draw(env, k, seed, gravity=(0.00175, 0.0035), force=(0.0007, 0.0014)), times=8)


@physics("lunarlander", small=61_440)
def lunarlander_physics(k: int, seed: int) -> gym.Env:
    """LunarLander with gravity of 2 to 12 and wind of power 1 to 20, log-uniformly, after a calm first task.

    Chung et al. vary vertical and horizontal gravity, engine power and the initial push. Of these,
    Gymnasium's simulator offers only gravity as a parameter, read at each reset; wind, bounded by its largest
    recommended values, is ours. Needs the extra "box2d".
    """
    env = gym.make("LunarLander-v3", enable_wind=True, disable_env_checker=True)
    env.unwrapped.wind_power = env.unwrapped.turbulence_power = 0.0  # type: ignore[attr-defined]
    return draw(env, k, seed, gravity=(-2.0, -12.0), wind_power=(1.0, 20.0))
