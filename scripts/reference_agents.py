"""Train a reference implementation on a task that never changes, and save the returns of its episodes.

python scripts/reference_agents.py sb3 ppo CartPole-v1 100000 1 returns.json

``sb3`` is Stable-Baselines3 with the settings of rl-zoo3 (github.com/DLR-RM/rl-baselines3-zoo), ``cleanrl`` a
plain loop with the settings of CleanRL's ppo.py and dqn.py (github.com/vwxyzjn/cleanrl).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FlatObsWrapper

from neoteny.configs.cli import launch_script
from neoteny.runners.disk.files import replace_file
from neoteny.scripts.plain_loops import PlainPPO, TanhActorCritic, dqn_loop, ppo_loop

Episodes = list[tuple[int, float]]
"""Steps of the run at the end of each episode, and its return."""

MINIGRID: dict[str, Any] = {
    "normalize": True, "n_envs": 8, "n_steps": 128, "batch_size": 64, "gae_lambda": 0.95, "gamma": 0.99,
    "n_epochs": 10, "ent_coef": 0.0, "learning_rate": 2.5e-4, "clip_range": 0.2,
}  # fmt: skip
WIDE = {"net_arch": [256, 256]}
ZOO: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "CartPole-v1"): {
        "n_envs": 8, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20,
        "ent_coef": 0.0, "learning_rate": "linear 1e-3", "clip_range": "linear 0.2",
    },
    ("ppo", "Acrobot-v1"): {
        "normalize": True, "n_envs": 16, "n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4,
        "ent_coef": 0.0,
    },
    ("ppo", "LunarLander-v3"): {
        "n_envs": 16, "n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4,
        "ent_coef": 0.01,
    },
    ("ppo", "MiniGrid-Empty-8x8-v0"): MINIGRID,  # those of Empty-Random-5x5
    ("ppo", "MiniGrid-DoorKey-5x5-v0"): MINIGRID,
    ("ppo", "MiniGrid-FourRooms-v0"): {**MINIGRID, "n_steps": 512},
    ("dqn", "CartPole-v1"): {
        "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000,
        "gamma": 0.99, "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128,
        "exploration_fraction": 0.16, "exploration_final_eps": 0.04, "policy_kwargs": WIDE,
    },
    ("dqn", "MountainCar-v0"): {
        "learning_rate": 4e-3, "batch_size": 128, "buffer_size": 10_000, "learning_starts": 1000,
        "gamma": 0.98, "target_update_interval": 600, "train_freq": 16, "gradient_steps": 8,
        "exploration_fraction": 0.2, "exploration_final_eps": 0.07, "policy_kwargs": WIDE,
    },
    ("dqn", "Acrobot-v1"): {
        "learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 0,
        "gamma": 0.99, "target_update_interval": 250, "train_freq": 4, "gradient_steps": -1,
        "exploration_fraction": 0.12, "exploration_final_eps": 0.1, "policy_kwargs": WIDE,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reference:
    """Train a reference implementation on a task that never changes."""

    implementation: tyro.conf.Positional[Literal["sb3", "cleanrl"]]
    """Stable-Baselines3 with the settings of rl-zoo3, or a plain loop with those of CleanRL."""
    agent: tyro.conf.Positional[Literal["ppo", "dqn"]]
    """Algorithm."""
    id: tyro.conf.Positional[str]
    """Gymnasium id of the environment."""
    steps: tyro.conf.Positional[int]
    """Environment steps, summed over sub-environments."""
    seed: tyro.conf.Positional[int]
    """Seed."""
    path: tyro.conf.Positional[Path]
    """JSON file for the episodes: steps of the run at their ends, and returns."""


def make(id: str) -> gym.Env:
    """An environment; of MiniGrid's dict observations one vector is made, as in rl-zoo3."""
    env = gym.make(id, disable_env_checker=True)
    return FlatObsWrapper(env) if isinstance(env.unwrapped, MiniGridEnv) else env


def schedule(value: Any) -> Any:
    """A setting, or a function of the remaining share of the run where it falls linearly to 0."""
    if not isinstance(value, str):
        return value
    initial = float(value.removeprefix("linear "))
    return lambda remaining: remaining * initial


def stable_baselines(agent: str, id: str, steps: int, seed: int) -> Episodes:
    """Train Stable-Baselines3 with the settings of rl-zoo3."""
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    episodes: Episodes = []

    class Returns(BaseCallback):
        """Collects the returns of episodes."""

        def _on_step(self) -> bool:
            ended = (info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
            episodes.extend((self.num_timesteps, float(each)) for each in ended)
            return True

    settings = {name: schedule(value) for name, value in ZOO[agent, id].items()}
    envs: Any = DummyVecEnv([lambda: Monitor(make(id))] * settings.pop("n_envs", 1))
    if settings.pop("normalize", False):
        envs = VecNormalize(envs, gamma=settings["gamma"])
    kind: Any = PPO if agent == "ppo" else DQN
    kind("MlpPolicy", envs, seed=seed, device="cpu", **settings).learn(steps, callback=Returns())
    envs.close()
    return episodes


def cleanrl(agent: str, id: str, steps: int, seed: int) -> Episodes:
    """Train a plain loop with the settings of CleanRL."""
    episodes: Episodes = []

    def on_episode(step: int, episode_return: float) -> None:
        episodes.append((step, episode_return))

    if agent == "dqn":
        dqn_loop(lambda: make(id), steps, seed, on_episode)
        return episodes
    settings, env = PlainPPO(), make(id)
    network = TanhActorCritic(int(np.prod(env.observation_space.shape)), int(env.action_space.n))  # type: ignore[arg-type,attr-defined]
    updates = steps // (settings.num_envs * settings.num_steps)
    ppo_loop(
        lambda: make(id), network, list(network.parameters()), settings, updates, seed, on_episode=on_episode
    )
    return episodes


IMPLEMENTATIONS: dict[str, Callable[[str, str, int, int], Episodes]] = {
    "sb3": stable_baselines,
    "cleanrl": cleanrl,
}


def main(args: Reference) -> int:
    """Train, and save the episodes."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    episodes = IMPLEMENTATIONS[args.implementation](args.agent, args.id, args.steps, args.seed)
    replace_file(args.path, json.dumps(episodes).encode())
    return 0


if __name__ == "__main__":
    launch_script(main, Reference)
