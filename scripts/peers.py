"""PPO by neoteny, by Stable-Baselines3 and by a plain loop like CleanRL's, and DQN by the first two.

All train the same networks on the same environments and their raw rewards, with the same numbers of
environments, steps, epochs, minibatches and gradient steps. Each function returns the wall and CPU seconds
of every update but the first, (updates, 2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from minigrid.wrappers import ImgObsWrapper
from torch import nn

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig, encoder, torso
from neoteny.agents.rewards import RewardConfig
from neoteny.envs import StreamConfig
from neoteny.envs.atari.game import make_game
from neoteny.envs.observations import read_observations
from neoteny.optim import AdamConfig
from neoteny.runners.probes import ProbeConfig
from neoteny.runners.run import Run
from neoteny.scripts.plain_loops import PlainPPO, ppo_loop

GRID = "MiniGrid-DoorKey-8x8-v0"
GAME = "Breakout"
NAMES = {"grid": "DoorKey-8x8", "atari": GAME}


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings of a training that is compared."""

    view: Literal["flat", "image", "atari"]
    """Observations: MiniGrid as a vector of 147 numbers or as an image for two convolutions, or Breakout."""
    num_envs: int
    amp: Literal["none", "bf16"] = "none"
    """Precision of neoteny; the others compute in float32."""
    agent: Literal["ppo", "dqn"] = "ppo"
    epochs: int = 4
    minibatches: int = 4
    lr: float = 2.5e-4
    device: str = "cpu"
    """Of Stable-Baselines3; the others train on the CPU."""

    @property
    def name(self) -> str:
        """The name in tables."""
        atari = self.view == "atari"
        return (self.agent.upper() if atari else self.view) + (", bf16" if self.amp == "bf16" else "")

    @property
    def num_steps(self) -> int:
        """Steps per environment between updates of PPO, or between logs of DQN."""
        return 32 if self.num_envs >= 256 else 64 if self.agent == "dqn" else 128

    @property
    def batch(self) -> int:
        """Steps of all environments between updates."""
        return self.num_envs * self.num_steps

    @property
    def network(self) -> NetworkConfig:
        """The network of each torso."""
        return NetworkConfig(hidden=(512,) if self.view == "atari" else (64, 64))

    @property
    def shared(self) -> bool:
        """Whether policy and value function share a torso."""
        return self.view == "atari"

    @property
    def stream(self) -> StreamConfig:
        """The environments as a stream of neoteny."""
        if self.view == "atari":
            return StreamConfig("atari", games=(GAME,), period=10**9, audit="off")
        return StreamConfig(GRID, observations="vectors" if self.view == "flat" else "auto")

    def make(self) -> gym.Env:
        """One environment without neoteny's engines."""
        if self.view == "atari":
            return make_game(GAME)
        return ImgObsWrapper(gym.make(GRID, disable_env_checker=True))


BUFFER = 8192
"""Capacity of DQN's replay memory in transitions."""


def now() -> tuple[float, float]:
    """Wall time and the CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def trainers(training: Training) -> dict[str, Callable[[Training, int], np.ndarray]]:
    """The implementations that are installed and have the agent, by name."""
    found: dict[str, Callable[[Training, int], np.ndarray]] = {"neoteny": neoteny}
    if training.agent == "ppo":
        found["plain loop"] = plain
    if importlib.util.find_spec("stable_baselines3"):
        found["Stable-Baselines3"] = stable_baselines
    return found


def neoteny(training: Training, updates: int) -> np.ndarray:
    """Train neoteny's agent."""
    times = []
    end_update = Run.end_update

    @contextlib.contextmanager
    def timed(*args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        with end_update(*args, **options) as metrics:
            yield metrics
        times.append(now())

    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "stream": training.stream, "network": training.network, "num_envs": training.num_envs,
            "total_steps": (updates + 1) * training.batch, "lr": training.lr, "probes": ProbeConfig(every=0),
            "checkpoint_every": 0, "optim": AdamConfig(), "amp": training.amp, "runs_dir": Path(folder),
            "threads": torch.get_num_threads(), "rewards": RewardConfig("none"),
        }  # fmt: skip
        with (
            unittest.mock.patch.object(Run, "end_update", timed),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            if training.agent == "dqn":
                own: dict[str, Any] = {
                    "log_every": training.batch, "learning_starts": training.batch, "buffer_size": BUFFER,
                    "train_every": training.num_envs, "gradient_steps": 2, "batch_size": 32,
                    "double": False, "target_every": 250,
                }  # fmt: skip
                dqn.main(dqn.Args(**own, **common))
            else:
                own = {
                    "num_steps": training.num_steps, "epochs": training.epochs,
                    "minibatches": training.minibatches, "shared_torso": training.shared,
                }  # fmt: skip
                ppo.main(ppo.Args(**own, **common))
    return np.diff(times, axis=0)


def plain(training: Training, updates: int) -> np.ndarray:
    """A loop like CleanRL's ppo.py with neoteny's networks."""
    with contextlib.closing(training.stream.make(1, seed=1)) as stream:  # which knows what observations are
        agent = ppo.ActorCritic(stream, training.network, training.shared)
    nn.utils.convert_conv2d_weight_memory_format(agent, torch.contiguous_format)
    settings = PlainPPO(
        training.num_envs, training.num_steps, training.epochs, training.minibatches, training.lr,
        anneal_lr=False, clip_values=False,
    )  # fmt: skip
    times: list[tuple[float, float]] = []
    ppo_loop(
        training.make, lambda x: agent(x.to(torch.uint8)), list(agent.parameters()), settings, updates + 1,
        on_update=lambda: times.append(now()),
    )  # fmt: skip
    return np.diff(times, axis=0)


def stable_baselines(training: Training, updates: int) -> np.ndarray:
    """Train Stable-Baselines3's PPO or DQN."""
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = training.make()
    space = env.observation_space
    env.close()

    class Convolutions(BaseFeaturesExtractor):
        """The convolutions and what comes before the two hidden linear layers."""

        def __init__(self, flat: gym.spaces.Box) -> None:
            encode = encoder(read_observations(space, "codes"))
            layers = list(torso(encode, space, training.network).children())[:-4]
            outputs = nn.Sequential(encode, *layers)(torch.zeros(1, 7, 7, 3, dtype=torch.uint8)).shape[1]
            super().__init__(flat, outputs)
            self.layers = nn.Sequential(encode, *layers)
            nn.utils.convert_conv2d_weight_memory_format(self.layers, torch.contiguous_format)

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            """Features, (B, features), of flat observations, (B, 147)."""
            return self.layers(observations.to(torch.uint8).view(-1, 7, 7, 3))

    class Stopwatch(BaseCallback):
        """Reads the clocks after each update."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[tuple[float, float]] = []

        def _on_rollout_start(self) -> None:
            if self.num_timesteps % training.batch == 0:  # DQN calls each step a rollout
                self.times.append(now())

        def _on_step(self) -> bool:
            return True

    options: dict[str, Any] = {"net_arch": [64, 64], "activation_fn": nn.ReLU}
    if training.view == "image":
        options |= {"features_extractor_class": Convolutions, "share_features_extractor": False}
    if training.view == "atari":  # whose policies have the three convolutions and 512 units
        policy, make, options = "CnnPolicy", training.make, {"net_arch": []}
    else:
        policy, make = "MlpPolicy", lambda: gym.wrappers.FlattenObservation(training.make())
    envs = DummyVecEnv([make] * training.num_envs)
    model: PPO | DQN = PPO(
        policy, envs, training.lr, training.num_steps, training.batch // training.minibatches,
        training.epochs, ent_coef=0.01, device=training.device, policy_kwargs=options,
    )  # fmt: skip
    if training.agent == "dqn":
        model = DQN(
            policy, envs, training.lr, BUFFER, learning_starts=training.batch, batch_size=32, train_freq=1,
            gradient_steps=2, target_update_interval=1000, device=training.device, policy_kwargs=options,
        )  # fmt: skip
    stopwatch = Stopwatch()
    model.learn((updates + 1) * training.batch, callback=stopwatch)
    envs.close()
    return np.diff([*stopwatch.times[1:], now()], axis=0)
