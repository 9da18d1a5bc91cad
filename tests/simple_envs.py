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


class Cue(gym.Env):
    """Ten by ten planes of noise; one of two halves of a plane or of a column names the right action."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, dtype=np.uint8, where="last plane", channels_first=False, high=1):
        self.dtype, self.where, self.channels_first, self.high = dtype, where, channels_first, high
        shape = (4, 10, 10) if channels_first else (10, 10, 4)
        self.observation_space = gym.spaces.Box(0, high, shape, dtype)

    def observe(self):
        self.side = int(self.np_random.integers(2))
        planes = self.np_random.random((10, 10, 4)) < 0.1
        cue = (slice(None), slice(None), 3) if self.where == "last plane" else (slice(None), 9, 0)
        planes[cue] = False
        planes[(slice(5 * self.side, 5 * self.side + 5), *cue[1:])] = True
        seen = (planes * self.high).astype(self.dtype)
        return seen.transpose(2, 0, 1) if self.channels_first else seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        reward = float(action == self.side)
        return self.observe(), reward, self.steps >= 20, False, {}


register("Constant-v0", Constant, max_episode_steps=5)
register("Ending-v0", Ending, max_episode_steps=5)
register("Identity-v0", Identity, max_episode_steps=10)
