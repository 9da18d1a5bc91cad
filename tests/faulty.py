"""An environment that fails on demand, in a module that workers can import quickly."""

import contextlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import gymnasium as gym

from neoteny.envs import wrappers


class Faulty(gym.Wrapper):
    """In a worker, does what the first file of a folder says, once the place in its name is reached."""

    def __init__(self, env, folder, task):
        super().__init__(env)
        self.folder, self.task, self.steps = folder, task, 0
        self.reach(f"make {task}")

    def reset(self, **options):
        self.steps = 0
        self.reach(f"reset {self.task}")
        return super().reset(**options)

    def step(self, action):
        self.steps += 1
        self.reach(f"step {self.steps}")
        return super().step(action)

    def reach(self, place):
        if self.folder is None or multiprocessing.parent_process() is None:
            return
        for file in sorted(Path(self.folder).iterdir())[:1]:
            _, where, fault = file.name.split(",")
            if where == place:
                with contextlib.suppress(FileNotFoundError):  # another was faster
                    file.unlink()
                    getattr(self, fault)()

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self):
        os.kill(os.getpid(), signal.SIGSTOP)

    def end(self):
        os._exit(3)

    def hang(self):
        time.sleep(1000)

    def complain(self):
        raise KeyError("on purpose")


def drifting(folder, k, seed):
    """CartPole on planet k, whose gravity drifts from episode to episode."""
    env = gym.make("CartPole-v1")
    env.unwrapped.gravity = 10.0 * (k + 1)
    return wrappers.drift(Faulty(env, folder, k), {"gravity": wrappers.RandomWalk(0.3)}, seed=(seed, k))
