"""Environments in which one can say what an agent should learn."""

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import register


class Constant(gym.Env):
    """Reward 1 for ever: the value is 1 / (1 - gamma), time limit or not."""

    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.ones(2, np.float32), {}

    def step(self, action):
        return np.ones(2, np.float32), 1.0, False, False, {}


class Ending(Constant):
    """The same, but over at the fifth step, where the time is up too."""

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return super().reset()

    def step(self, action):
        self.steps += 1
        return np.ones(2, np.float32), 1.0, self.steps == 5, False, {}


class PayOrToil(Constant):
    """Task 0 pays 1 for ever, task 1 nothing; the observation says which of them is on."""

    def __init__(self, task, seed):
        self.task = task

    def reset(self, *, seed=None, options=None):
        return np.eye(2, dtype=np.float32)[self.task], {}

    def step(self, action):
        return np.eye(2, dtype=np.float32)[self.task], 1.0 - self.task, False, False, {}


class Identity(gym.Env):
    """Name the hot unit of the observation."""

    observation_space = gym.spaces.Box(0, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(4)

    def observe(self):
        self.target = int(self.np_random.integers(4))
        return np.eye(4, dtype=np.float32)[self.target]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        reward = float(action == self.target)
        return self.observe(), reward, False, False, {}


register("Constant-v0", Constant, max_episode_steps=5)
register("Ending-v0", Ending, max_episode_steps=5)
register("Identity-v0", Identity, max_episode_steps=10)
