"""Classic control whose observations, actions or physics change: the fast first run."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TransformAction, TransformObservation

from neoteny.envs.stream import stream, task_rng


@stream("cartpole-rotations", period=16_384)
def cartpole_rotations(k: int, seed: int) -> gym.Env:
    """CartPole seen through a random rotation of its four numbers into sixteen, with its actions permuted.

    What is good to do stays the same; what it looks like and how it is said is new in each task, so nothing
    but the ability to learn again helps. Episodes last at most 200 steps. Our own design.
    """
    rng = task_rng(seed, k)
    rotation = np.linalg.qr(rng.standard_normal((16, 4)))[0].astype(np.float32)
    order = rng.permutation(2)
    env = gym.make("CartPole-v1", max_episode_steps=200, disable_env_checker=True)
    space = gym.spaces.Box(-np.inf, np.inf, (16,), np.float32)
    env = TransformObservation(env, lambda observation: rotation @ observation, space)
    return TransformAction(env, lambda action: int(order[action]), env.action_space)


@stream("cartpole-gravity", period=16_384)
def cartpole_gravity(k: int, seed: int) -> gym.Env:
    """CartPole on another planet: Earth first, then gravity drawn log-uniformly from 2 to 50 m/s^2.

    Episodes last at most 200 steps. Our own design.
    """
    env = gym.make("CartPole-v1", max_episode_steps=200, disable_env_checker=True)
    if k > 0:
        env.unwrapped.gravity = float(np.exp(task_rng(seed, k).uniform(np.log(2), np.log(50))))  # type: ignore[attr-defined]
    return env
